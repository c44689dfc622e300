"""A URI that is not ours is never touched either: behind file://, and on a real S3 server on
loopback.
"""

import os
import time

import pytest

from bi_ray.files.errors import RunError
from bi_ray.runs import mirror, remote_lock
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.place import RunPlace
from bi_ray.runs.remote import Remote
from bi_ray.runs.stage_key import key_of
from tests.mirrored_runs import wait_until

KEY = key_of({"a": 1}, {})
ORDER = ("data", "sft", "rl")


def finish(run, stage):
    with run.commit(stage, KEY) as folder:
        (folder / "artifact").write_text(stage)


def snapshot(remote):
    return {name: (remote.read(name), remote.modified(name)) for name in remote.files_below("")}


@pytest.mark.parametrize(
    "name",
    [
        "report/thesis.txt",
        "config.yaml",
        "data/stage.json",
        "runs/old/data/stage.json",
        "notes/lock.json",
        "x",
    ],
)
@pytest.mark.parametrize(
    "enter",
    [lambda place: place.directory().__enter__(), lambda place: place.begin()],
    ids=["run", "study"],
)
def test_a_uri_with_files_of_somebody_else_is_refused(place, name, enter):
    theirs = Remote(place.uri)
    if name.startswith("runs/"):  # a run further down does not make one of the folder above
        theirs.write(name, '{"generation": "sent-0123456789abcdef", "content": {}}')
    else:
        theirs.write(name, '{"mine": 1}')
    before = snapshot(theirs)
    with pytest.raises(
        RunError, match="has files and is not a run directory, so nothing was written there"
    ) as caught:
        enter(place)
    assert len(str(caught.value).splitlines()) == 1
    assert snapshot(theirs) == before
    assert not place.path.exists()


@pytest.mark.parametrize("kept", ["sft/", "seed_0/sft/", "seed_0/work/"])
def test_a_run_or_study_from_before_the_mark_is_one(place, monkeypatch, kept):
    monkeypatch.setattr(mirror, "_SEND_WORK_S", 0.02)
    for at in (place, place / "seed_0"):
        with at.directory() as run:
            finish(run, "sft/bridge")
    with (place / "seed_0").directory() as run, run.keeping_work("rl/bridge", print):
        work = run.work("rl/bridge", KEY)
        StepDirectories(work).write(4, lambda folder: (folder / "weights").write_text("w"))
        wait_until(lambda: Remote((place / "seed_0").uri).checkpoints("work"))
    remote = Remote(place.uri)
    for name in remote.files_below(""):
        if not name.startswith(kept):
            remote.remove_file(name)
    place.begin()
    assert remote.exists(".bi-ray-run")


def test_a_run_that_was_killed_at_its_first_stage_is_one(place, tmp_path, monkeypatch):
    run = place.directory().__enter__()
    run._remote_lock._stop.set()
    run._lock.close()  # as the kernel does; the lock at the URI stays
    Remote(place.uri).remove_file(".bi-ray-run")
    Remote(place.uri).write("config.yaml", "name: x")
    monkeypatch.setattr(remote_lock, "STALE_S", 0.0)
    with RunPlace.of(place.uri, tmp_path / "there").directory():
        pass


def test_starting_again_leaves_files_of_somebody_else_at_the_uri(place):
    remote = Remote(place.uri)
    with place.directory() as run:
        finish(run, "data")
        finish(run, "sft/bridge")
        for name in ("sft/thesis.txt", "sft/bridge/thesis.txt", "rl/thesis.txt"):
            remote.write(name, "mine")
        run.forget_from(ORDER, "data")
    left = [name for name in remote.files_below("") if not name.startswith(".")]
    assert left == ["rl/thesis.txt", "sft/bridge/thesis.txt", "sft/thesis.txt"]


def test_a_report_at_the_uri_replaces_a_report_alone(place):
    remote, report = Remote(place.uri), place.path / "report"
    report.mkdir(parents=True)
    for name in ("summary.json", "report.html", "result.md"):
        (report / name).write_text("old")
    place.publish_report()
    (report / "result.md").unlink()
    (report / "summary.json").write_text("new")
    place.publish_report()
    assert remote.files_below("report") == ["report/report.html", "report/summary.json"]
    assert remote.read("report/summary.json") == "new"
    remote.write("report/thesis.txt", "mine")
    before = snapshot(remote)
    with pytest.raises(
        RunError, match=r"report/thesis\.txt at .*run is not part of a report; move it away"
    ):
        place.publish_report()
    assert snapshot(remote) == before


def test_what_a_kill_left_half_written_goes_after_a_day(tmp_path, monkeypatch):
    monkeypatch.setattr(remote_lock, "_SETTLE_S", 0.01)
    home = tmp_path / "home/run"

    def stop(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("pathlib.Path.replace", stop)
        patch.setattr("pathlib.Path.unlink", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            Remote(f"file://{home}").write("data/stage.json", "{}")
    with monkeypatch.context() as patch:
        patch.setattr(Remote, "remove_file", stop)
        with pytest.raises(KeyboardInterrupt):
            Remote(f"file://{home}").now()
    left = [file for file in home.rglob("*") if file.is_file()]
    assert len(left) == 2
    place = RunPlace.of(f"file://{home}", tmp_path / "here")
    with place.directory():
        assert all(file.exists() for file in left)  # somebody may be writing them
    for file in left:
        os.utime(file, (time.time() - 90_000, time.time() - 90_000))
    with place.directory():
        assert not any(file.exists() for file in left)
