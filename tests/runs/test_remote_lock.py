"""The lock of a run at a URI."""

import json
import os
import socket
import time

import pytest

from bi_ray.runs import remote_lock
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.lock import RunLocked
from bi_ray.runs.place import RunPlace
from bi_ray.runs.remote import Remote
from bi_ray.runs.remote_lock import LOCK, read_lock
from bi_ray.runs.status import describe_status
from tests.mirrored_runs import content, finish, wait_until


def test_a_second_machine_is_refused_while_the_lock_is_fresh(place, elsewhere, monkeypatch):
    with place.directory():
        with pytest.raises(
            RunLocked, match=rf"process {os.getpid()} on {socket.gethostname()}:{place.path}"
        ):
            elsewhere.directory().__enter__()
        with RunDirectory(elsewhere.path):
            pass  # the refused one holds nothing
        assert f"in use by process {os.getpid()}" in describe_status(elsewhere)[0]
        monkeypatch.setattr(remote_lock, "STALE_S", 0.0)
        with elsewhere.directory():  # whoever held it must be gone
            pass
    monkeypatch.undo()
    with elsewhere.directory():
        pass
    assert not Remote(place.uri).exists(LOCK)


def test_a_killed_process_of_this_machine_is_in_nobodys_way(place):
    run = place.directory().__enter__()
    run._remote_lock._stop.set()
    run._lock.close()  # as the kernel does; the lock at the URI stays
    with place.directory():
        pass


def test_who_lost_the_lock_sends_nothing(place, elsewhere, monkeypatch):
    monkeypatch.setattr(remote_lock, "STALE_S", 0.0)
    with place.directory() as first, elsewhere.directory() as second:
        with pytest.raises(RunLocked):
            finish(first, "data", "of the first")
        finish(second, "data", "of the second")
    with place.directory() as run:
        # whole, and sent now that the lock is held again
        assert content(run, "data") == "of the first"


def test_a_lock_is_renewed(place, elsewhere, monkeypatch):
    monkeypatch.setattr(remote_lock, "RENEW_S", 0.05)
    with place.directory():
        began = read_lock(Remote(place.uri)).holder.time
        wait_until(lambda: read_lock(Remote(place.uri)).holder.time > began + 0.2)


STRANGE_LOCKS = [
    "",
    "{",
    "{}",
    "[]",
    "null",
    "\x00" * 50,
    '{"owner": "a"}',
    '{"owner": "a", "time": "x", "process": "p", "token": "t"}',
    '{"owner": "a", "time": NaN, "process": "p", "token": "t"}',
    '{"owner": ["a"], "time": 1, "process": "p", "token": "t"}',
]


@pytest.mark.parametrize("text", STRANGE_LOCKS)
def test_a_lock_that_cannot_be_read_holds_until_it_is_old(tmp_path, monkeypatch, caplog, text):
    place = RunPlace.of(f"file://{tmp_path}/home/run", tmp_path / "here")
    Remote(place.uri).write(LOCK, text)
    with pytest.raises(RunLocked) as caught, place.directory():
        pass
    assert len(str(caught.value).splitlines()) == 1
    assert "in use by an unknown process" in str(caught.value)
    assert "its lock cannot be read" in describe_status(place)[0]
    monkeypatch.setattr(remote_lock, "STALE_S", 0.0)
    with place.directory():
        assert read_lock(Remote(place.uri)).holder.owner.endswith(str(place.path))
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert "lock.json cannot be read and was not renewed lately; it is replaced" in line


@pytest.mark.parametrize("clock_error_s", [-86_400, 86_400])
def test_the_clock_of_a_holder_does_not_matter(tmp_path, clock_error_s):
    """What counts is when the store wrote the lock."""
    place = RunPlace.of(f"file://{tmp_path}/home/run", tmp_path / "here")
    holder = {
        "owner": "elsewhere:/run",
        "process": "7",
        "token": "t",
        "time": time.time() + clock_error_s,
    }
    Remote(place.uri).write(LOCK, json.dumps(holder))
    with pytest.raises(RunLocked, match="in use by process 7 on elsewhere:/run"), place.directory():
        pass
    past = time.time() - 200
    os.utime(tmp_path / "home/run" / LOCK, (past, past))
    with place.directory():
        pass


@pytest.mark.parametrize(
    "error", [OSError("odd"), KeyError("token"), ValueError("odd"), RuntimeError("odd")]
)
def test_a_lock_is_renewed_whatever_goes_wrong_in_between(tmp_path, monkeypatch, error):
    monkeypatch.setattr(remote_lock, "RENEW_S", 0.02)
    place = RunPlace.of(f"file://{tmp_path}/home/run", tmp_path / "here")
    with place.directory() as run:
        lock, failures = run._remote_lock, []
        write = lock._write

        def fail():
            failures.append(1)
            raise error

        monkeypatch.setattr(lock, "_write", fail)
        wait_until(lambda: len(failures) > 1)
        monkeypatch.setattr(lock, "_write", write)
        began = read_lock(Remote(place.uri)).modified
        wait_until(lambda: read_lock(Remote(place.uri)).modified > began)
