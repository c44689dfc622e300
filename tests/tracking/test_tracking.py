"""Each tracker is written to for real, offline, and read back with its own library's reader."""

import json
import struct
import time
from typing import ClassVar

import pytest
from pydantic import ValidationError

from bi_ray.config.run import TRACKERS, RunConfig
from bi_ray.runs.metrics import append_metrics, cut_metrics
from bi_ray.tracking.base import Tracked
from bi_ray.tracking.following import KNOWN, Tracking, make_trackers

SET = {"problems": 4, "depth": 2, "redundant_nodes": [1, 2]}
ROWS = [
    {"step": 0, "validation/val/greedy": 0.25},
    {"step": 1, "reward": 0.5, "loss": -1.0, "note": "text"},
]
ROWS += [{"step": 2, "reward": 0.75, "loss": float("nan"), "validation/val/greedy": 0.5}]
EXPECTED = {
    "validation/val/greedy": [(0, 0.25), (2, 0.5)],
    "reward": [(1, 0.5), (2, 0.75)],
    "loss": [(1, -1.0)],
}


def config(trackers):
    task = {"kind": "promptbench", "sets": {"rl": SET, "test_id": SET}}
    evaluation = {"sets": ["test_id"]}
    return RunConfig.model_validate(
        {
            "name": "tracked",
            "task": task,
            "arms": ["base"],
            "evaluation": evaluation,
            "trackers": trackers,
        }
    )


def training(folder):
    run = config([])
    return Tracked(
        "tracked", "0a1b", "rl", "base", folder / "trackers", run.model_dump(mode="json")
    )


def test_every_tracker_that_a_configuration_may_name_has_its_class():
    assert KNOWN.keys() == set(TRACKERS)


def follow(folder, trackers, rows=ROWS):
    """A training that logs, is killed after step 1, and logs step 1 again and step 2: two processes
    of the command.
    """
    notes = []
    metrics = folder / "metrics.jsonl"
    for part in (rows[:2], rows[1:]):
        with Tracking(
            make_trackers(config(trackers), notes.append), training(folder), metrics, notes.append
        ):
            if metrics.exists():
                cut_metrics(metrics, 0)
            for row in part:
                append_metrics(metrics, row)
    return notes


def test_tensorboard(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert follow(tmp_path, ["tensorboard"]) == []
    found = EventAccumulator(str(tmp_path / "trackers/tensorboard/rl/base"))
    found.Reload()
    read = {
        name: [(e.step, e.value) for e in found.Scalars(name)] for name in found.Tags()["scalars"]
    }
    assert read == EXPECTED


def wandb_records(file):
    """The messages of a .wandb file: LevelDB's log format behind 7 bytes; the library's reader of
    it is its Go core.
    """
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if place + 7 + length > len(data):  # wandb's service has not written it whole yet
            return
        parts += data[place + 7 : place + 7 + length]
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(parts)
            parts = b""
        place += 7 + length
        if 32768 - place % 32768 < 7:  # the rest of a block has no room for a header
            place += -place % 32768


def test_wandb_offline(tmp_path):
    assert follow(tmp_path, {"wandb": {"mode": "offline", "project": "mine"}}) == []
    read, ids = {}, set()
    for file in sorted((tmp_path / "trackers/wandb").glob("offline-run-*/*.wandb")):
        # wandb's service may still be writing when the run has been finished
        deadline = time.monotonic() + 30
        while not any(record.HasField("exit") for record in wandb_records(file)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for record in wandb_records(file):
            if record.WhichOneof("record_type") == "run":
                ids.add((record.run.project, record.run.display_name, record.run.run_id))
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json)
                for item in record.history.item
            }
            for name in values.keys() & EXPECTED.keys():
                read.setdefault(name, []).append((record.history.step.num, values[name]))
    assert read == EXPECTED
    # both processes, one run: `wandb sync` joins them
    assert ids == {("mine", "tracked/rl/base", "0a1b-rl-base")}


def test_mlflow(tmp_path):
    from mlflow import MlflowClient

    assert follow(tmp_path, ["mlflow"]) == []
    client = MlflowClient(f"sqlite:///{tmp_path}/trackers/mlflow.db")
    experiment = client.get_experiment_by_name("bi_ray")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_name == "tracked/rl/base"
    assert run.info.status == "FINISHED"
    assert run.data.tags["arm"] == "base"
    for name, expected in EXPECTED.items():
        history = client.get_metric_history(run.info.run_id, name)
        assert [(metric.step, metric.value) for metric in history] == expected


def test_trackio(tmp_path, monkeypatch):
    import trackio.sqlite_storage
    import trackio.utils

    # read at import; a user sets TRACKIO_DIR before that
    for module in (trackio.utils, trackio.sqlite_storage):
        monkeypatch.setattr(module, "TRACKIO_DIR", tmp_path / "trackio", raising=False)
    assert follow(tmp_path, ["trackio"]) == []
    (name,) = trackio.sqlite_storage.SQLiteStorage.get_runs("bi_ray")
    assert name == "tracked/rl/base-0a1b"
    rows = trackio.sqlite_storage.SQLiteStorage.get_logs("bi_ray", name)
    for name, expected in EXPECTED.items():
        assert [(row["step"], row[name]) for row in rows if name in row] == expected


class Kept:
    """A tracker of one's own."""

    logs: ClassVar = []

    def __init__(self, fail_at=None, **options):
        self.fail_at, self.options = fail_at, options

    def begin(self, training):
        self.logs.append(("begin", training.name, self.options))

    def log(self, step, figures):
        if step == self.fail_at:
            raise OSError("its server is gone")
        self.logs.append((step, figures))

    def end(self):
        self.logs.append(("end",))


@pytest.fixture(autouse=True)
def _no_logs():
    Kept.logs.clear()


def test_a_tracker_of_ones_own_gets_every_step_once(tmp_path):
    assert follow(tmp_path, {f"{__name__}:Kept": {"color": "red"}}) == []
    begin = ("begin", "tracked/rl/base", {"color": "red"})
    first, second = (0, {"validation/val/greedy": 0.25}), (1, {"reward": 0.5, "loss": -1.0})
    third = (2, {"reward": 0.75, "validation/val/greedy": 0.5})
    assert Kept.logs == [begin, first, second, ("end",), begin, third, ("end",)]


def test_a_tracker_that_fails_is_said_once_and_the_others_go_on(tmp_path):
    notes = follow(tmp_path, {f"{__name__}:Kept": {"fail_at": 1}, "tensorboard": {}})
    assert notes == [
        f"tracker {__name__}:Kept is left out from now on: OSError: its server is gone"
    ]
    assert [entry[0] for entry in Kept.logs] == ["begin", 0, "begin", 2, "end"]
    assert list((tmp_path / "trackers/tensorboard/rl/base").iterdir())


def test_a_tracker_that_cannot_be_made_is_said(tmp_path, monkeypatch):
    notes = follow(
        tmp_path, {"no.such:Tracker": {}, f"{__name__}:Absent": {}, "tensorboard": {"color": 1}}
    )
    assert len(notes) == 6  # three, in each of two processes
    assert notes[0].startswith(
        "tracker no.such:Tracker is left out: ConfigError: trackers.no.such:Tracker: no.such does"
    )
    assert "has no class 'Absent'" in notes[1]
    assert "unexpected keyword argument 'color'" in notes[2]


def test_a_slow_tracker_holds_nobody_up(tmp_path, monkeypatch):
    from bi_ray.tracking import following

    monkeypatch.setattr(following, "_END_S", 0.2)
    monkeypatch.setattr(Kept, "log", lambda *_: time.sleep(5))
    append_metrics(tmp_path / "metrics.jsonl", ROWS[0])
    notes, began = [], time.monotonic()
    made = make_trackers(config([f"{__name__}:Kept"]), notes.append)
    with Tracking(made, training(tmp_path), tmp_path / "metrics.jsonl", notes.append):
        pass
    assert time.monotonic() - began < 3
    assert notes == [
        "trackers did not take the last figures within 0.2 s; the run continues without them"
    ]


def test_unknown_names_are_refused_with_the_known_ones():
    with pytest.raises(
        ValidationError, match=r"unknown tracker 'wandbb'; known: tensorboard, wandb, mlflow"
    ):
        config(["wandbb"])


@pytest.mark.parametrize("mark", ["", "x", "\0\0", "[1]"])
def test_a_damaged_mark_costs_nothing_but_figures_twice(tmp_path, mark):
    for row in ROWS[:2]:
        append_metrics(tmp_path / "metrics.jsonl", row)
    (tmp_path / "tracked").write_text(mark)
    notes = follow(tmp_path, [f"{__name__}:Kept"])
    assert [entry[0] for entry in Kept.logs] == ["begin", 0, 1, "end", "begin", 2, "end"]
    assert notes == [
        f"{tmp_path}/tracked is damaged: trackers get every step of tracked/rl/base again"
    ]
    assert (tmp_path / "tracked").read_text() == "2"


def test_a_bad_row_holds_figures_back_only_while_it_is_there(tmp_path, monkeypatch):
    from bi_ray.tracking import following

    monkeypatch.setattr(following, "_FOLLOW_S", 0.02)
    metrics, notes = tmp_path / "metrics.jsonl", []
    append_metrics(metrics, ROWS[0])
    made = make_trackers(config([f"{__name__}:Kept"]), notes.append)
    with Tracking(made, training(tmp_path), metrics, notes.append):
        wait_until(lambda: len(Kept.logs) == 2)
        whole = metrics.read_text()
        metrics.write_text(whole + "garbage\n")
        wait_until(lambda: notes)
        metrics.write_text(whole)
        append_metrics(metrics, ROWS[1])
        wait_until(lambda: len(Kept.logs) == 3)
    assert [entry[0] for entry in Kept.logs] == ["begin", 0, 1, "end"]
    (note,) = notes
    assert note.startswith("trackers of tracked/rl/base get no new figures for now: ")
    assert f"{metrics}, line 2, is damaged (not JSON)" in note


def wait_until(condition):
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
