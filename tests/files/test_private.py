"""What other users of the machine can read, put in the way, or make this user believe."""

import os
import signal
import stat
from pathlib import Path

import pytest

from bi_ray.files.private import PrivacyError, private_folder, read_own, write_private
from bi_ray.runs.directory import RunDirectory
from tests.listeners import needs_root

OTHER_USER = 12345


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_private_folder_is_for_this_user_alone_whatever_it_was(tmp_path):
    assert mode(private_folder(tmp_path / "new/inner")) == 0o700
    (tmp_path / "open").mkdir(mode=0o755)
    assert mode(private_folder(tmp_path / "open")) == 0o700


def test_a_link_a_file_and_a_place_without_rights_are_refused(tmp_path):
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "target")
    (tmp_path / "file").write_text("")
    with pytest.raises(PrivacyError, match="link is a link"):
        private_folder(tmp_path / "link")
    with pytest.raises(PrivacyError, match="cannot make the folder"):
        private_folder(tmp_path / "file")
    with pytest.raises(PrivacyError, match="cannot make the folder /proc/"):
        private_folder(tmp_path.__class__("/proc/nothing"))


@needs_root
def test_a_folder_of_another_user_is_refused(tmp_path):
    (tmp_path / "theirs").mkdir(mode=0o700)
    os.chown(tmp_path / "theirs", OTHER_USER, OTHER_USER)
    with pytest.raises(
        PrivacyError, match=f"theirs belongs to user {OTHER_USER}, and this is user 0"
    ):
        private_folder(tmp_path / "theirs")


def test_a_private_file_takes_the_place_of_one_that_all_can_read(tmp_path):
    file = tmp_path / "secret"
    file.write_text("old and long")
    file.chmod(0o644)
    assert write_private(file, "new")
    assert (file.read_text(), mode(file)) == ("new", 0o600)
    assert read_own(file) == "new"
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("bits", [0o020, 0o002])
def test_what_others_can_write_to_is_not_read(tmp_path, bits):
    folder = private_folder(tmp_path / "run")
    write_private(folder / "file", "x")
    (folder / "file").chmod(0o600 | bits)
    with pytest.raises(PrivacyError, match=r"others can write to .*/run/file"):
        read_own(folder / "file")
    (folder / "file").chmod(0o600)
    folder.chmod(0o700 | bits)
    with pytest.raises(PrivacyError, match=r"others can write to .*/run "):
        read_own(folder / "file")


def test_a_link_to_a_file_is_not_read_and_a_missing_one_is_said(tmp_path):
    write_private(tmp_path / "file", "x")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with pytest.raises(PrivacyError, match="cannot read"):
        read_own(tmp_path / "link")
    with pytest.raises(FileNotFoundError):
        read_own(tmp_path / "absent")


@needs_root
@pytest.mark.parametrize("theirs", ["run", "run/file"])
def test_what_another_user_owns_is_not_read(tmp_path, theirs):
    folder = private_folder(tmp_path / "run")
    write_private(folder / "file", "x")
    os.chown(tmp_path / theirs, OTHER_USER, OTHER_USER)
    with pytest.raises(PrivacyError, match=f"{theirs} belongs to user {OTHER_USER}"):
        read_own(folder / "file")


def test_a_secret_that_a_killed_writer_left_goes_with_the_next_start(tmp_path):
    with RunDirectory(tmp_path):
        pass
    writer = os.fork()
    if writer == 0:
        try:
            Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
            write_private(tmp_path / ".cluster.json", "a token")
        finally:
            os._exit(1)
    os.waitpid(writer, 0)
    assert any(file.read_text() == "a token" for file in tmp_path.iterdir())
    with RunDirectory(tmp_path):
        assert sorted(os.listdir(tmp_path)) == [".bi-ray-run", ".lock"]
