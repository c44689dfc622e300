"""Published weights: where they are, what they are called, and who may write over what."""

import os
import signal
import stat
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from bi_ray.files.private import PrivacyError
from bi_ray.policy import published
from bi_ray.policy.checkpoint import save_weights
from bi_ray.policy.files import CheckpointError
from bi_ray.policy.published import (
    SHARED_MEMORY,
    SPARE,
    WeightOwner,
    hold_weights,
    make_weights_directory,
    new_copies_directory,
    publish_weights,
    published_file,
    weights_directory,
)
from bi_ray.policy.version import PolicyVersion
from tests.listeners import needs_root


@pytest.fixture
def memory(tmp_path, monkeypatch):
    folder = tmp_path / "bi_ray_of_me"
    monkeypatch.setattr(published, "SHARED_MEMORY", folder)
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


def test_versions_are_written_and_read_and_ordered():
    versions = [PolicyVersion(2, 3), PolicyVersion(1, 10), PolicyVersion(1, 9)]
    assert [str(version) for version in sorted(versions)] == ["1.9", "1.10", "2.3"]
    for version in versions:
        assert PolicyVersion.parse(str(version)) == version
    for text in ("", "1", "1.2.3", "a.b"):
        with pytest.raises(ValueError):
            PolicyVersion.parse(text)


def test_the_file_of_a_version_and_the_folders_of_a_run():
    directory = weights_directory("run")
    assert published_file(directory, PolicyVersion(1, 10)) == directory / "1.10.safetensors"
    first, second = new_copies_directory("run"), new_copies_directory("run")
    assert first != second
    assert first.parent == second.parent == directory


def publish(directory, *versions):
    for version in versions:
        publish_weights({"w": torch.ones(4)}, published_file(directory, version))


V1, V2, V3 = PolicyVersion(1, 9), PolicyVersion(1, 10), PolicyVersion(2, 1)


def test_of_the_released_files_one_becomes_the_spare_one(tmp_path):
    publish(tmp_path, V1, V2, V3)
    WeightOwner(tmp_path).release(V3)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["2.1.safetensors", SPARE]


def test_copies_from_another_node_leave_no_spare_file(tmp_path):
    publish(tmp_path, V1, V2)
    WeightOwner(tmp_path).release(V2, spare=False)
    assert [file.name for file in tmp_path.iterdir()] == ["1.10.safetensors"]


def test_what_is_held_is_never_written_over(tmp_path):
    publish(tmp_path, V1)
    held = hold_weights(published_file(tmp_path, V1), "influence_9.held")
    WeightOwner(tmp_path).release(V2)
    assert [file.name for file in tmp_path.iterdir()] == [held.name]
    publish_weights({"w": torch.zeros(4)}, published_file(tmp_path, V2))
    assert load_file(held)["w"].sum() == 4


def test_a_file_system_without_hard_links_gets_a_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise PermissionError("no links here")

    monkeypatch.setattr(published.os, "link", refuse)
    publish(tmp_path, V1)
    held = hold_weights(published_file(tmp_path, V1), "a.held")
    published_file(tmp_path, V1).unlink()
    assert load_file(held)["w"].sum() == 4
    with pytest.raises(FileNotFoundError):
        hold_weights(published_file(tmp_path, V1), "b.held")


def test_a_file_is_read_in_chunks(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "_CHUNK_BYTES", 3)
    (tmp_path / "file").write_bytes(b"1234567")
    owner = WeightOwner(tmp_path)
    chunks = [owner.read(str(tmp_path / "file"), offset) for offset in (0, 3, 6, 7)]
    assert chunks == [b"123", b"456", b"7", b""]


def test_a_tied_head_is_left_out_of_published_weights_alone_and_a_head_of_its_own_never(tmp_path):
    embedding = torch.ones(4, 2)
    shared = {"model.embed_tokens.weight": embedding, "lm_head.weight": embedding}
    own = {"model.embed_tokens.weight": embedding, "lm_head.weight": torch.zeros(4, 2)}
    copied = shared | {"lm_head.weight": embedding.clone()}  # as shards are gathered
    for name, state, names in (("b", shared, 1), ("c", own, 2), ("d", copied, 1)):
        publish_weights(state, tmp_path / name)
        assert len(load_file(tmp_path / name)) == names
    save_weights(shared, tmp_path / "a", {"lm_head.weight": "model.embed_tokens.weight"})
    assert len(load_file(tmp_path / "a")) == 2


def random_state(seed, rows):
    generator = torch.Generator().manual_seed(seed)
    state = {f"layer {i}": torch.randn(rows, 7, generator=generator) for i in range(3)}
    state |= {
        dtype: state["layer 0"].to(getattr(torch, dtype))
        for dtype in ("bfloat16", "float16", "float64")
    }
    return state | {"scalar": torch.tensor(seed + 0.5), "turned": state["layer 1"].T}


def same(found, state):
    return found.keys() == state.keys() and all(
        torch.equal(found[name], state[name]) for name in state
    )


def test_published_weights_are_written_over_a_spare_file_of_any_size(tmp_path):
    first, larger, smaller = random_state(0, 50), random_state(1, 90), random_state(2, 10)
    publish_weights(first, tmp_path / "1.1.safetensors")
    inode = (tmp_path / "1.1.safetensors").stat().st_ino
    for version, state in (("1.2", larger), ("1.3", smaller), ("1.4", first)):
        next(tmp_path.iterdir()).rename(tmp_path / SPARE)
        publish_weights(state, tmp_path / f"{version}.safetensors")
        [file] = tmp_path.iterdir()
        assert file.stat().st_ino == inode
        assert same(load_file(file), state)


def test_a_spare_file_that_is_too_small_for_a_full_disk_leaves_nothing(tmp_path, small_files):
    (tmp_path / SPARE).write_bytes(b"x" * 1000)
    with pytest.raises(CheckpointError, match=r"1\.1\.safetensors was not written.*needs 4 MiB"):
        publish_weights({"w": torch.zeros(1_000_000)}, tmp_path / "1.1.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_published_weights_are_for_this_user_alone(tmp_path):
    publish_weights({"w": torch.zeros(4)}, tmp_path / "1.1.safetensors")
    assert (tmp_path / "1.1.safetensors").stat().st_mode & 0o777 == 0o600


def test_weights_that_a_killed_learner_left_in_memory_go_with_the_next_ones(tmp_path):
    writer = os.fork()
    if writer == 0:
        try:
            Path.replace = lambda source, _: (
                source.exists() and os.kill(os.getpid(), signal.SIGKILL)
            )
            publish_weights({"w": torch.zeros(4)}, tmp_path / "1.1.safetensors")
        finally:
            os._exit(1)
    os.waitpid(writer, 0)
    assert len(list(tmp_path.iterdir())) == 1
    publish_weights({"w": torch.zeros(4)}, tmp_path / "2.1.safetensors")
    assert [file.name for file in tmp_path.iterdir()] == ["2.1.safetensors"]
