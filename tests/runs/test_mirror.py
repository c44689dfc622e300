"""The finished stages of a run at a URI."""

import json
import os
import threading
import time
from contextlib import suppress

import pytest

from bi_ray.files.errors import RunError
from bi_ray.runs import remote_files, remote_lock
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.lock import RunLocked
from bi_ray.runs.mirror import MirroredRun
from bi_ray.runs.place import RunPlace
from bi_ray.runs.remote import Remote
from bi_ray.runs.status import describe_status
from tests.mirrored_runs import KEY, LONG, ORDER, content, finish


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
    "damage", [lambda file: os.truncate(file, 1), os.unlink], ids=["cut", "missing"]
)
def test_a_stage_that_is_damaged_in_the_copy_comes_again_from_the_uri(place, damage):
    with place.directory() as run:
        finish(run, "data")
    damage(place.path / "data/deep/er/artifact")
    with place.directory() as run:
        assert run.is_done("data", KEY)
        assert content(run, "data") == "made"
