"""The checkpoints of unfinished stages at a URI."""

import shutil
import time
from contextlib import suppress

import pytest

from bi_ray.config.training import SFTConfig
from bi_ray.runs import mirror, remote_files
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.directory import StageChanged
from bi_ray.runs.place import RunPlace
from bi_ray.runs.remote import Remote
from bi_ray.runs.stage_key import key_of
from bi_ray.runs.status import describe_status
from tests.mirrored_runs import KEY, LONG, ORDER, checkpoint, finish, steps_at, wait_until


def test_checkpoints_of_an_unfinished_stage_are_there_elsewhere(place, elsewhere, monkeypatch):
    monkeypatch.setattr(mirror, "_SEND_WORK_S", 0.02)
    with (
        place.directory() as run,
        suppress(KeyboardInterrupt),
        run.keeping_work("rl/bridge", print),
    ):
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
        assert sorted(path.name for path in (work / "checkpoints").iterdir()) == [
            "step_4",
            "step_6",
            "step_8",
        ]
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
        assert (
            sorted(path.name for path in (run.path / "work/rl/bridge/checkpoints").iterdir())[-1]
            == "step_7"
        )
        run.forget_from(ORDER, "rl")
    assert steps_at(place) == []
    with elsewhere.directory() as run:
        assert not (run.path / "rl/bridge").exists()


def test_a_checkpoint_that_cannot_be_sent_is_said_once_and_sent_later(place, monkeypatch):
    monkeypatch.setattr(mirror, "_SEND_WORK_S", 0.02)
    notes, real = [], remote_files.copy_files

    def copy_files(*_):
        raise OSError("the line is down")

    with place.directory() as run, run.keeping_work("sft/bridge", notes.append):
        monkeypatch.setattr(remote_files, "copy_files", copy_files)
        checkpoint(run.work("sft/bridge", KEY), 1)
        wait_until(lambda: notes)
        time.sleep(0.3)
        monkeypatch.setattr(remote_files, "copy_files", real)
        wait_until(lambda: steps_at(place) == [1])
    assert len(notes) == 1
    assert notes[0].startswith("checkpoints of sft/bridge stay in ")
    assert "the line is down" in notes[0]


def flip(file):
    whole = file.read_bytes()
    file.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])


def test_a_damaged_checkpoint_in_the_copy_comes_again_from_the_uri(place, monkeypatch):
    monkeypatch.setattr(mirror, "_SEND_WORK_S", 0.02)
    with place.directory() as run, run.keeping_work("rl/bridge", print):
        for step in (2, 4):
            checkpoint(run.work("rl/bridge", KEY), step)
        wait_until(lambda: steps_at(place) == [2, 4])
    checkpoints = place.path / "work/rl/bridge/checkpoints"
    flip(checkpoints / "step_4/policy/model")
    with place.directory():
        assert (checkpoints / "step_4/policy/model").read_text() == "weights"
        assert (checkpoints / "step_4.damaged").exists()
        assert StepDirectories(checkpoints).recover(4) == 4


def test_a_damaged_checkpoint_at_the_uri_is_left_out(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(mirror, "_SEND_WORK_S", 0.02)
    home = tmp_path / "home/run"
    place, elsewhere = (
        RunPlace.of(f"file://{home}", tmp_path / where) for where in ("here", "there")
    )
    with place.directory() as run, run.keeping_work("rl/bridge", print):
        for step in (2, 4):
            checkpoint(run.work("rl/bridge", KEY), step)
        wait_until(lambda: steps_at(place) == [2, 4])
    [file] = (home / "work/rl/bridge/checkpoints/step_4").glob("*/policy/model")
    flip(file)
    with elsewhere.directory() as run:
        found = [path.name for path in (run.path / "work/rl/bridge/checkpoints").iterdir()]
    assert found == ["step_2"]
    assert "step_4 at " in caplog.text
    assert "is left out: policy/model has changed" in caplog.text


@pytest.mark.parametrize("name", ["step_x", "step_", "step_99999999999999999999", "step_4.damaged"])
def test_odd_names_of_checkpoints_end_nothing(tmp_path, monkeypatch, name):
    monkeypatch.setattr(mirror, "_SEND_WORK_S", 0.02)
    home = tmp_path / "home/run"
    place, elsewhere = (
        RunPlace.of(f"file://{home}", tmp_path / where) for where in ("here", "there")
    )
    with place.directory() as run, run.keeping_work("rl/bridge", print):
        checkpoint(run.work("rl/bridge", KEY), 4)
        wait_until(lambda: steps_at(place) == [4])
    for checkpoints in (
        home / "work/rl/bridge/checkpoints",
        place.path / "work/rl/bridge/checkpoints",
    ):
        shutil.copytree(checkpoints / "step_4", checkpoints / name)
    for at in (elsewhere, place):
        with at.directory() as run:
            assert StepDirectories(run.path / "work/rl/bridge/checkpoints").recover(12) == 4


@pytest.mark.parametrize(
    "error", [KeyError("x"), ValueError("x"), OSError("x"), PermissionError("x"), MemoryError()]
)
def test_whatever_fails_is_reported_once_and_checkpoints_are_sent_later(
    tmp_path, monkeypatch, error
):
    monkeypatch.setattr(mirror, "_SEND_WORK_S", 0.01)
    place, notes, calls = RunPlace.of(f"file://{tmp_path}/home/run", tmp_path / "here"), [], []

    def fail(*_):
        calls.append(1)
        raise error

    with place.directory() as run, run.keeping_work("sft/bridge", notes.append):
        with monkeypatch.context() as patch:
            patch.setattr(Remote, "send_file", fail)
            checkpoint(run.work("sft/bridge", KEY), 1)
            wait_until(lambda: len(calls) > 3)
        wait_until(lambda: steps_at(place) == [1])
    [note] = notes
    assert note.startswith("checkpoints of sft/bridge stay in ")
    assert type(error).__name__ in note


def test_a_terminal_that_is_gone_does_not_stop_the_sending(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "_SEND_WORK_S", 0.01)
    place, calls = RunPlace.of(f"file://{tmp_path}/home/run", tmp_path / "here"), []

    def fail(*_):
        calls.append(1)
        raise OSError("the line is down")

    def note(_):
        raise BrokenPipeError

    with place.directory() as run, run.keeping_work("sft/bridge", note):
        with monkeypatch.context() as patch:
            patch.setattr(Remote, "send_file", fail)
            checkpoint(run.work("sft/bridge", KEY), 1)
            wait_until(lambda: len(calls) > 2)
        wait_until(lambda: steps_at(place) == [1])


def test_a_training_that_renames_its_checkpoints_meanwhile_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setattr(mirror, "_SEND_WORK_S", 0.0005)
    place, notes = RunPlace.of(f"file://{tmp_path}/home/run", tmp_path / "here"), []
    with place.directory() as run, run.keeping_work("rl/bridge", notes.append):
        work = run.work("rl/bridge", KEY)
        directories = StepDirectories(work, keep_last=1)
        for step in range(1, 120):
            directories.write(step, lambda folder: (folder / "weights").write_text("w" * 2000))
        wait_until(lambda: 119 in steps_at(place))
    assert notes == []
