"""Where weights are published: a folder of shared memory that no other user can read or make first."""

import os
import stat

import pytest

from actors.weights import shared_memory as weight_sync
from bi_ray.files.private import PrivacyError
from bi_ray.policy.published import SHARED_MEMORY, WeightOwner, make_weights_directory
from tests.listeners import needs_root


@pytest.fixture
def memory(tmp_path, monkeypatch):
    folder = tmp_path / "bi_ray_of_me"
    monkeypatch.setattr(weight_sync, "SHARED_MEMORY", folder)
    return folder


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_every_user_has_a_folder_of_their_own():
    assert SHARED_MEMORY.name.endswith(f"_{os.geteuid()}")


@pytest.mark.parametrize("before", [None, 0o755, 0o777])
def test_nobody_else_can_enter_it(memory, before):
    if before is not None:
        memory.mkdir()
        memory.chmod(before)
    make_weights_directory(memory / "run/copies")
    assert [mode(memory), mode(memory / "run/copies")] == [0o700, 0o700]
    WeightOwner(memory / "run").clear()
    make_weights_directory(memory / "run")
    assert mode(memory / "run") == 0o700


def test_a_link_in_its_place_is_refused(memory, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    memory.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(PrivacyError, match="is a link"):
        make_weights_directory(memory / "run")
    assert not list((tmp_path / "elsewhere").iterdir())


@needs_root
def test_a_folder_that_another_user_made_first_is_refused(memory):
    memory.mkdir(mode=0o777)
    os.chown(memory, 12345, 12345)
    with pytest.raises(PrivacyError, match=r"belongs to user 12345, and this is user 0"):
        make_weights_directory(memory / "run")
    assert not list(memory.iterdir())
