"""Runs at a URI: in a folder behind file://, and on a real S3 server on loopback."""

import json
import os
import shutil
import socket
import time
from contextlib import suppress

import pytest

from bi_ray import mirror
from bi_ray.config import SFTConfig
from bi_ray.mirror import LOCK, MirroredRun, Remote, RunPlace, read_lock
from bi_ray.status import describe_status
from bi_ray.store import RunDirectory, RunError, RunLocked, StageChanged, key_of

KEY = key_of({"sft": SFTConfig(epochs=5)}, {"data": "1a"})
ORDER = ("data", "sft", "rl")
LONG = "x" * 7_000_000  # longer than one part of an upload


@pytest.fixture(params=["file", "s3"])
def uri(request, tmp_path):
    if request.param == "file":
        return f"file://{tmp_path}/home/run"
    return f"s3://bucket/{tmp_path.name}/run{request.getfixturevalue('s3')}"


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(mirror, "_SETTLE_S", 0.01)


@pytest.fixture
def place(uri, tmp_path):
    """The place as one machine sees it; ``elsewhere`` is the same on another machine."""
    return RunPlace.of(uri, tmp_path / "here")


@pytest.fixture
def elsewhere(uri, tmp_path):
    return RunPlace.of(uri, tmp_path / "there")


def finish(run, stage, text="made"):
    with run.commit(stage, KEY) as folder:
        (folder / "deep" / "er").mkdir(parents=True)
        (folder / "deep" / "er" / "artefact").write_text(text)
        (folder / "empty").touch()


def content(run, stage):
    return (run.artefact(stage) / "deep" / "er" / "artefact").read_text()


def test_what_is_finished_here_is_there_elsewhere(place, elsewhere):
    with place.directory() as run:
        finish(run, "data", LONG)
        finish(run, "sft/bridge")
        (run.work("rl/bridge", KEY) / "step_3").touch()
    with elsewhere.directory() as run:
        assert run.path != place.path
        assert run.is_done("data", KEY)
        assert run.is_done("sft/bridge", KEY)
        assert not run.is_done("rl/bridge", KEY)
        assert content(run, "data") == LONG
        assert (run.artefact("sft/bridge") / "empty").exists()
        assert sorted(file.name for file in run.artefact("data").iterdir()) == ["deep", "empty", "stage.json"]
        assert run.run_id == place.directory().run_id != RunDirectory(place.path).run_id


def test_a_stage_is_there_whole_or_not_at_all(place, elsewhere, monkeypatch):
    """Cut off before the last file, which is stage.json; the next start here sends it."""
    copies = []

    def copy_files(source, *args):
        if len(copies) == 2:
            raise OSError("the line is down")
        copies.append(source)
        return real(source, *args)

    real = mirror.copy_files
    with place.directory() as run:
        monkeypatch.setattr(mirror, "copy_files", copy_files)
        with pytest.raises(RunError, match=r"cannot write .*run: the line is down"):
            finish(run, "data")
        monkeypatch.setattr(mirror, "copy_files", real)
    assert len(copies) == 2
    with elsewhere.directory() as run:
        assert not run.is_done("data", KEY)
    with place.directory() as run:
        assert run.is_done("data", KEY)
    with elsewhere.directory() as run:
        assert content(run, "data") == "made"


def test_the_uri_is_right_about_what_was_made_again_elsewhere(place, elsewhere):
    with place.directory() as run:
        finish(run, "data")
        finish(run, "sft/bridge", "old")
        finish(run, "rl/bridge", "old")
    with elsewhere.directory() as run:
        run.forget_from(ORDER, "sft")
        finish(run, "sft/bridge", "new")
    with place.directory() as run:
        assert content(run, "data") == "made"
        assert content(run, "sft/bridge") == "new"
        assert not run.is_done("rl/bridge", KEY)


def test_a_replaced_stage_keeps_nothing_of_the_old_one(place, elsewhere):
    with place.directory() as run:
        finish(run, "data")
        with run.commit("data", KEY) as folder:
            (folder / "other").touch()
    with elsewhere.directory() as run:
        assert sorted(file.name for file in run.artefact("data").rglob("*")) == ["other", "stage.json"]


def test_a_second_machine_is_refused_while_the_lock_is_fresh(place, elsewhere, monkeypatch):
    with place.directory():
        with pytest.raises(RunLocked, match=rf"process {os.getpid()} on {socket.gethostname()}:{place.path}"):
            elsewhere.directory().__enter__()
        with RunDirectory(elsewhere.path):
            pass  # the refused one holds nothing
        assert f"in use by process {os.getpid()}" in describe_status(elsewhere)[0]
        monkeypatch.setattr(mirror, "STALE_S", 0.0)
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


def checkpoint(work, step, text="weights"):
    folder = work / "checkpoints" / f"step_{step}"
    (folder / "policy").mkdir(parents=True)
    (folder / "policy" / "model").write_text(text)
    (folder / "reference").write_text(text)
    (folder / "state.json").write_text("{}")
    with open(work / "metrics.jsonl", "a") as file:
        file.write(f'{{"step": {step}}}\n')


def steps_at(place):
    return [int(name.rpartition("_")[2]) for name in Remote(place.uri).folders_with("state.json", "work")]


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_checkpoints_of_an_unfinished_stage_are_there_elsewhere(place, elsewhere, monkeypatch):
    monkeypatch.setattr(mirror, "_SEND_WORK_S", 0.02)
    with place.directory() as run, suppress(KeyboardInterrupt), run.keeping_work("rl/bridge", print):
        work = run.work("rl/bridge", KEY)
        for step in (2, 4):
            checkpoint(work, step, f"of {step}")
            wait_until(lambda step=step: step in steps_at(place))
        shutil.rmtree(work / "checkpoints/step_2")
        checkpoint(work, 6, LONG)
        wait_until(lambda: steps_at(place) == [4, 6])
        checkpoint(work, 8, "of 8")  # the last look, when the block ends with an error, sends it
        raise KeyboardInterrupt
    Remote(place.uri).write("work/rl/bridge/checkpoints/step_9/policy/model", "cut off")
    assert describe_status(elsewhere)[1:] == [
        "  in work  rl/bridge                step 8"
    ]  # before anything is fetched
    with elsewhere.directory() as run:
        assert not run.is_done("rl/bridge", KEY)
        work = run.work("rl/bridge", KEY)
        assert sorted(path.name for path in (work / "checkpoints").iterdir()) == ["step_4", "step_6", "step_8"]
        assert (work / "checkpoints/step_6/policy/model").read_text() == LONG
        assert (work / "checkpoints/step_8/reference").read_text() == "of 8"
        assert (work / "metrics.jsonl").read_text().count("step") == 4
        with pytest.raises(StageChanged):
            run.work("rl/bridge", key_of({"sft": SFTConfig(epochs=6)}, {"data": "1a"}))
        finish(run, "rl/bridge")
    assert steps_at(place) == []
    assert Remote(place.uri).stages().keys() == {"rl/bridge"}


def test_the_newer_checkpoint_is_taken(place, elsewhere, monkeypatch):
    monkeypatch.setattr(mirror, "_SEND_WORK_S", 0.02)

    def train(at, step, text):
        with at.directory() as run, run.keeping_work("rl/bridge", print):
            checkpoint(run.work("rl/bridge", KEY), step, text)
            wait_until(lambda: step in steps_at(place))

    def newest(at):
        with at.directory() as run:
            return (run.path / "work/rl/bridge/checkpoints/step_4/policy/model").read_text()

    train(place, 4, "here")
    with elsewhere.directory() as run:
        checkpoint(run.work("rl/bridge", KEY), 5, "there, not sent: killed")
    assert newest(elsewhere) == "here"
    with elsewhere.directory() as run:
        assert (run.path / "work/rl/bridge/checkpoints/step_5").exists()
    train(elsewhere, 7, "there")
    with place.directory() as run:
        assert sorted(path.name for path in (run.path / "work/rl/bridge/checkpoints").iterdir())[-1] == "step_7"
        run.forget_from(ORDER, "rl")
    assert steps_at(place) == []
    with elsewhere.directory() as run:
        assert not (run.path / "rl/bridge").exists()


def test_a_checkpoint_that_cannot_be_sent_is_said_once_and_sent_later(place, monkeypatch):
    monkeypatch.setattr(mirror, "_SEND_WORK_S", 0.02)
    notes, real = [], mirror.copy_files

    def copy_files(*_):
        raise OSError("the line is down")

    with place.directory() as run, run.keeping_work("sft/bridge", notes.append):
        monkeypatch.setattr(mirror, "copy_files", copy_files)
        checkpoint(run.work("sft/bridge", KEY), 1)
        wait_until(lambda: notes)
        time.sleep(0.3)
        monkeypatch.setattr(mirror, "copy_files", real)
        wait_until(lambda: steps_at(place) == [1])
    assert len(notes) == 1
    assert notes[0].startswith("checkpoints of sft/bridge stay in ")
    assert "the line is down" in notes[0]


def test_who_lost_the_lock_sends_nothing(place, elsewhere, monkeypatch):
    monkeypatch.setattr(mirror, "STALE_S", 0.0)
    with place.directory() as first, elsewhere.directory() as second:
        with pytest.raises(RunLocked):
            finish(first, "data", "of the first")
        finish(second, "data", "of the second")
    with place.directory() as run:
        assert content(run, "data") == "of the first"  # whole, and sent now that the lock is held again


def test_a_lock_is_renewed(place, elsewhere, monkeypatch):
    monkeypatch.setattr(mirror, "RENEW_S", 0.05)
    with place.directory():
        began = read_lock(Remote(place.uri))["time"]
        time.sleep(1)
        assert read_lock(Remote(place.uri))["time"] > began + 0.2


def test_a_lock_that_was_written_in_part_is_nobodys(place):
    Remote(place.uri).write(LOCK, '{"owner": "some')
    with place.directory():
        assert read_lock(Remote(place.uri))["owner"].endswith(str(place.path))


def test_the_report_and_a_study_go_there_too(place, elsewhere):
    (place.path / "report").mkdir(parents=True)
    (place.path / "report" / "summary.json").write_text("{}")
    place.publish("report")
    assert Remote(place.uri).read("report/summary.json") == "{}"
    seed = place / "seed_1"
    with seed.directory() as run:
        finish(run, "data")
    assert Remote((elsewhere / "seed_1").uri).stages().keys() == {"data"}
    assert seed.path == place.path / "seed_1"
    assert describe_status(place) == describe_status(seed)


def test_status_reads_the_uri(place, elsewhere, tmp_path):
    with pytest.raises(RunError, match="holds no run"):
        describe_status(place)
    with place.directory() as run:
        finish(run, "sft/bridge")
    assert describe_status(elsewhere) == [
        f"{place.name}: nobody works in it now",
        "  done     sft/bridge               0 s",
    ]


def test_no_bucket_and_no_such_kind_are_one_error(s3, tmp_path):
    with pytest.raises(RunError, match=r"s3://nowhere/run: .*bucket"), MirroredRun(f"s3://nowhere/run{s3}", tmp_path):
        pass
    with pytest.raises(RunError, match="cannot open ftp://x/y"):
        RunPlace.of("ftp://x/y", tmp_path).directory()


def test_credentials_are_not_shown():
    place = RunPlace.of("s3://key:secret@bucket/a/run/?region=x")
    assert place.name == "s3://bucket/a/run"
    assert (place / "seed_0").uri == "s3://key:secret@bucket/a/run/seed_0?region=x"


def test_where_the_working_copy_is(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("BI_RAY_LOCAL", raising=False)
    one, other = RunPlace.of("s3://a/run"), RunPlace.of("s3://b/run/")
    assert one.path.parent == tmp_path / "cache" / "bi_ray"
    assert one.path != other.path
    assert RunPlace.of("s3://b/run").path == other.path
    monkeypatch.setenv("BI_RAY_LOCAL", str(tmp_path / "shared"))
    assert RunPlace.of("s3://a/run").path == tmp_path / "shared" / one.path.name


@pytest.mark.parametrize("make", [RunDirectory, RunPlace.of])
def test_a_job_refuses_a_relative_directory(make, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "mine"}}))
    with pytest.raises(RunError, match="runs/x, is relative: a job runs in a copy"):
        make("runs/x")
    with RunDirectory(tmp_path):
        assert "job mine on" in (tmp_path / ".lock").read_text()
