import json

import pytest

from bi_ray.learning.progress import StepDirectories
from bi_ray.metrics import append_metrics, cut_metrics, read_metrics
from bi_ray.store import DiskFull


def fill(folder):
    (folder / "weights").write_text("w")


def test_newest_steps_stay_and_leftovers_of_a_kill_go(tmp_path):
    directories = StepDirectories(tmp_path / "steps", keep_last=2)
    assert directories.recover() == 0
    for step in (2, 10, 4):
        directories.write(step, fill)
    assert {path.name for path in directories.directory.iterdir()} == {"step_4", "step_10"}
    assert json.loads((directories.path(10) / "state.json").read_text()) == {"step": 10}
    (directories.directory / ".bi-ray-tmp-step_12.77.tmp").mkdir()  # killed while it was being filled
    directories.path(10).rename(directories.directory / ".bi-ray-old-step_10")  # killed between the two renames
    assert directories.recover() == 10
    assert {path.name for path in directories.directory.iterdir()} == {"step_4", "step_10"}


def test_a_failed_write_leaves_nothing(tmp_path):
    directories = StepDirectories(tmp_path)

    def fail(folder):
        fill(folder)
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        directories.write(1, fail)
    assert directories.recover() == 0
    assert not list(tmp_path.iterdir())


def test_the_best_steps_stay_beside_the_newest(tmp_path):
    scores = {}
    directories = StepDirectories(tmp_path, keep_last=1, keep_best=2, scores=lambda: scores)
    left = {}
    for step, score in ((10, 0.5), (20, 0.9), (25, None), (30, 0.9), (40, 0.1), (50, 0.95)):
        if score is not None:
            scores[step] = score  # as in a run: the validation is there before the checkpoint
        directories.write(step, fill)
        left[step] = {int(path.name.removeprefix("step_")) for path in tmp_path.iterdir()}
    assert left == {
        10: {10},
        20: {10, 20},
        25: {10, 20, 25},
        30: {20, 30},
        40: {20, 30, 40},
        50: {20, 50},  # of equal ones the earlier
    }


def test_a_full_disk_is_said_and_older_steps_stay(tmp_path):
    directories = StepDirectories(tmp_path)
    directories.write(2, fill)

    def fill_up(folder):
        fill(folder)
        with open("/dev/full", "w") as full:  # the kernel's own answer of a disk without space
            full.write("w")

    with pytest.raises(DiskFull, match=r"no space left on the disk of .* while the checkpoint of step 4 was written"):
        directories.write(4, fill_up)
    assert directories.recover() == 2


def test_metrics_have_no_step_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_metrics(path) == []
    for step in (1, 2, 3):
        append_metrics(path, {"step": step, "loss": step / 2})
    with open(path, "a") as file:
        file.write('{"step": 4, "lo')  # killed in the middle of a line
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    cut_metrics(path, 2)
    append_metrics(path, {"step": 3, "loss": 9.0})
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    assert read_metrics(path)[-1]["loss"] == 9.0
