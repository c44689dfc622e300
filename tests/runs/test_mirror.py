"""Runs at a URI: in a folder behind file://, and on a real S3 server on loopback."""

import json
import os
import shutil
import socket
import threading
import time
from contextlib import suppress

import pytest

from bi_ray.config.training import SFTConfig
from bi_ray.files.errors import RunError
from bi_ray.runs import mirror, remote_files, remote_lock
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.directory import RunDirectory, StageChanged
from bi_ray.runs.lock import RunLocked
from bi_ray.runs.mirror import MirroredRun
from bi_ray.runs.place import RunPlace
from bi_ray.runs.remote import Remote
from bi_ray.runs.remote_lock import LOCK, read_lock
from bi_ray.runs.stage_key import key_of
from bi_ray.runs.status import describe_status

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
    monkeypatch.setattr(remote_lock, "_SETTLE_S", 0.01)


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
        (folder / "deep" / "er" / "artifact").write_text(text)
        (folder / "empty").touch()


def content(run, stage):
    return (run.artifact(stage) / "deep" / "er" / "artifact").read_text()


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
        assert (run.artifact("sft/bridge") / "empty").exists()
        assert sorted(file.name for file in run.artifact("data").iterdir()) == [
            "deep",
            "empty",
            "stage.json",
        ]
        assert run.run_id == place.directory().run_id != RunDirectory(place.path).run_id


def test_a_stage_is_there_whole_or_not_at_all(place, elsewhere, monkeypatch):
    """Cut off amid its files; the next start here sends it."""
    copies = []

    def copy_files(source, *args):
        if len(copies) == 1:
            raise OSError("the line is down")
        copies.append(source)
        return real(source, *args)

    real = remote_files.copy_files
    with place.directory() as run:
        monkeypatch.setattr(remote_files, "copy_files", copy_files)
        with pytest.raises(RunError, match=r"cannot write .*run: the line is down"):
            finish(run, "data")
        monkeypatch.setattr(remote_files, "copy_files", real)
    assert len(copies) == 1
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
        assert sorted(file.name for file in run.artifact("data").rglob("*")) == [
            "other",
            "stage.json",
        ]


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


def checkpoint(work, step, text="weights"):
    def fill(folder):
        (folder / "policy").mkdir()
        (folder / "policy" / "model").write_text(text)
        (folder / "reference").write_text(text)

    # As trainings do it, first: a checkpoint that is sent takes the metrics along.
    with open(work / "metrics.jsonl", "a") as file:
        file.write(f'{{"step": {step}}}\n')
    (work / "checkpoints").mkdir(exist_ok=True)
    StepDirectories(work / "checkpoints", keep_last=9).write(step, fill)


def steps_at(place):
    return [int(name.rpartition("_")[2]) for name in Remote(place.uri).checkpoints("work")]


def wait_until(condition):
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


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
        time.sleep(1)
        assert read_lock(Remote(place.uri)).holder.time > began + 0.2


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


def test_the_report_and_a_study_go_there_too(place, elsewhere):
    (place.path / "report").mkdir(parents=True)
    (place.path / "report" / "summary.json").write_text("{}")
    place.publish_report()
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
        f"{place.name}: not in use",
        "  done     sft/bridge               0 s",
    ]


def test_no_bucket_and_no_such_kind_are_one_error(s3, tmp_path):
    with (
        pytest.raises(RunError, match=r"s3://nowhere/run: .*bucket"),
        MirroredRun(f"s3://nowhere/run{s3}", tmp_path),
    ):
        pass
    with pytest.raises(RunError, match="cannot open ftp://x/y"):
        RunPlace.of("ftp://x/y", tmp_path).directory()


@pytest.mark.parametrize("held_up_at", ["1_first", "2_second", "3_third", "stage.json"])
def test_a_stage_is_never_a_mixture_of_two_runs(
    place, elsewhere, tmp_path, uri, monkeypatch, held_up_at
):
    """A run is held up while it sends, for so long that another one takes over, sends the same
    stage, and ends.
    """
    monkeypatch.setattr(remote_lock, "RENEW_S", 1000)
    held_up, gate = threading.Event(), threading.Event()
    names = ("1_first", "2_second", "3_third")

    def hold_up(name, real):
        def call(self, *args):
            if threading.current_thread().name == "late" and str(args).find(name) >= 0:
                held_up.set()
                gate.wait(20)
            return real(self, *args)

        return call

    def commit(run, text):
        with run.commit("data", KEY) as folder:
            for name in names:
                (folder / name).write_text(text)

    def be_late():
        with suppress(RunLocked), place.directory() as run:
            commit(run, "A")

    monkeypatch.setattr(Remote, "send_file", hold_up(held_up_at, Remote.send_file))
    monkeypatch.setattr(Remote, "write", hold_up(f"data/{held_up_at}", Remote.write))
    late = threading.Thread(target=be_late, name="late")
    late.start()
    assert held_up.wait(20)
    monkeypatch.setattr(remote_lock, "STALE_S", 0.0)
    with elsewhere.directory() as run:
        commit(run, "B")
        gate.set()
        late.join(20)
    with RunPlace.of(uri, tmp_path / "third").directory() as run:
        assert run.is_done("data", KEY)
        texts = {(run.artifact("data") / name).read_text() for name in names}
    # whole; the mark of A came after that of B
    assert texts == {"A" if held_up_at == "stage.json" else "B"}


@pytest.mark.parametrize("damage", ["changed", "missing", "no mark", "mark without files"])
def test_a_stage_that_is_not_whole_at_the_uri_is_sent_or_made_again(tmp_path, caplog, damage):
    home = tmp_path / "home/run"
    place, elsewhere = (
        RunPlace.of(f"file://{home}", tmp_path / where) for where in ("here", "there")
    )
    with place.directory() as run:
        finish(run, "data")
    [file] = (home / "data").glob("*/deep/er/artifact")
    if damage == "changed":
        file.write_text("mode")
    elif damage == "missing":
        file.unlink()
    else:
        (home / "data/stage.json").write_text(
            '{"gen'
            if damage == "no mark"
            else '{"generation": "sent-0123456789abcdef", "content": {}}'
        )
    with elsewhere.directory() as run:
        assert not run.is_done("data", KEY)
    assert "data at " in caplog.text or "data/stage.json at " in caplog.text
    with place.directory() as run:
        assert content(run, "data") == "made"
    if "mark" in damage:  # the copy's is whole and was sent again
        with elsewhere.directory() as run:
            assert content(run, "data") == "made"


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


def test_what_a_bucket_of_somebody_else_names_stays_inside_the_copy(tmp_path):
    home = tmp_path / "home/run"
    place, elsewhere = (
        RunPlace.of(f"file://{home}", tmp_path / where) for where in ("here", "there/deep")
    )
    with place.directory() as run:
        finish(run, "data")
    mark = json.loads((home / "data/stage.json").read_text())
    record = mark["content"]["files"].pop("deep/er/artifact")
    mark["content"]["files"]["../../../../escaped"] = record
    (home / "data/stage.json").write_text(json.dumps(mark))
    with elsewhere.directory() as run:
        assert not run.is_done("data", KEY)
    assert list(tmp_path.rglob("escaped")) == []


def test_half_sent_files_are_removed_when_nobody_can_be_sending_them(tmp_path):
    home = tmp_path / "home/run"
    place = RunPlace.of(f"file://{home}", tmp_path / "here")
    with place.directory() as run:
        finish(run, "data")
    for generation, age_s in (("sent-" + "0" * 16, 90_000), ("sent-" + "1" * 16, 60)):
        file = home / "data" / generation / "half"
        file.parent.mkdir()
        file.touch()
        os.utime(file, (time.time() - age_s, time.time() - age_s))
    (home / "sft").mkdir()
    (home / "sft/stage.json").write_text("damaged")
    (home / "sft/sent-2222222222222222").mkdir()
    (home / "sft/sent-2222222222222222/file").touch()
    os.utime(home / "sft/sent-2222222222222222/file", (0, 0))
    old = next((home / "data").glob("*/empty"))
    os.utime(old, (0, 0))
    with place.directory():
        pass
    folders = {path.name for path in (home / "data").iterdir()} - {"stage.json"}
    # whoever repairs the mark finds its files
    assert (home / "sft/sent-2222222222222222/file").exists()
    assert folders == {old.parent.name, "sent-" + "1" * 16}


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
    monkeypatch.setenv(
        "RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"metadata": {"job_submission_id": "mine"}})
    )
    with pytest.raises(RunError, match="runs/x, is relative: a job runs in a copy"):
        make("runs/x")
    with RunDirectory(tmp_path):
        assert "job mine on" in (tmp_path / ".lock").read_text()


@pytest.mark.parametrize(
    "damage", [lambda file: os.truncate(file, 1), os.unlink], ids=["cut", "missing"]
)
def test_a_stage_that_is_damaged_in_the_copy_comes_again_from_the_uri(place, damage):
    with place.directory() as run:
        finish(run, "data")
    damage(place.path / "data/deep/er/artifact")
    with place.directory() as run:
        assert run.is_done("data", KEY)
        assert content(run, "data") == "made"
