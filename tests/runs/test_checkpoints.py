import json
import os
import re
import shutil

import pytest
import xxhash

from bi_ray.files.errors import DiskFull
from bi_ray.runs.checkpoints import StepDirectories
from bi_ray.runs.layout import step_of
from bi_ray.runs.metrics import append_metrics, cut_metrics, read_metrics


def fill(folder):
    (folder / "weights").write_text("w")


def test_newest_steps_stay_and_leftovers_of_a_kill_go(tmp_path):
    directories = StepDirectories(tmp_path / "steps", keep_last=2)
    assert directories.recover() == 0
    for step in (2, 10, 4):
        directories.write(step, fill)
    assert {path.name for path in directories.directory.iterdir()} == {"step_4", "step_10"}
    state = json.loads((directories.path(10) / "state.json").read_text())
    record = {"bytes": 1, "xxh3_128": xxhash.xxh3_128_hexdigest(b"w")}
    assert state == {"step": 10, "files": {"weights": record}}
    # killed while it was being filled
    (directories.directory / ".bi-ray-tmp-step_12.77.tmp").mkdir()
    # killed between the two renames
    directories.path(10).rename(directories.directory / ".bi-ray-old-step_10")
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

    with pytest.raises(
        DiskFull,
        match=r"no space left on the disk of .* while the checkpoint of step 4 was written",
    ):
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


WEIGHTS, OPTIMIZER = "policy/model.safetensors", "optimizer.safetensors"


def fill_whole(folder):
    (folder / "policy").mkdir()
    (folder / WEIGHTS).write_bytes(os.urandom(4000))
    (folder / "policy/config.json").write_text('{"hidden_size": 64}')
    (folder / OPTIMIZER).write_bytes(os.urandom(8000))
    (folder / "adapters.safetensors").write_bytes(os.urandom(100))
    (folder / "reference.safetensors").write_bytes(os.urandom(4000))


def cut(name, size):
    return lambda folder: os.truncate(folder / name, size)


def flip(name, position, mask=1):
    def damage(folder):
        content = bytearray((folder / name).read_bytes())
        content[position] ^= mask
        (folder / name).write_bytes(content)

    return damage


def remove(name):
    return lambda folder: (folder / name).unlink()


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def zeros(name):
    """What some file systems show after a power cut: the size is right, the content is not."""
    return lambda folder: (folder / name).write_bytes(bytes((folder / name).stat().st_size))


def edit_state(change):
    def damage(folder):
        state = json.loads((folder / "state.json").read_text())
        change(state)
        (folder / "state.json").write_text(json.dumps(state))

    return damage


def empty(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def replace_by_a_file(folder):
    shutil.rmtree(folder)
    folder.write_text("x")


def rename_within(folder):
    (folder / OPTIMIZER).rename(folder / "optimizer.safetensors.bak")


def state_as_a_folder(folder):
    (folder / "state.json").unlink()
    (folder / "state.json").mkdir()


def swap_steps(folder):
    older = folder.with_name("step_5")
    for name in (WEIGHTS, OPTIMIZER):
        shutil.copy(older / name, folder / name)


DAMAGE = {
    "weights cut": (cut(WEIGHTS, 100), "model.safetensors has 100 bytes, not 4,000"),
    "weights empty": (cut(WEIGHTS, 0), "model.safetensors has 0 bytes, not 4,000"),
    "weights longer": (cut(WEIGHTS, 5000), "has 5,000 bytes"),
    "weights absent": (remove(WEIGHTS), "policy/model.safetensors is missing"),
    "weights all zero": (zeros(WEIGHTS), "model.safetensors has changed"),
    "first bit of the weights": (flip(WEIGHTS, 0), "model.safetensors has changed"),
    "a bit in the middle": (flip(WEIGHTS, 2000, 16), "model.safetensors has changed"),
    "last bit of the weights": (flip(WEIGHTS, -1, 128), "model.safetensors has changed"),
    "policy absent": (lambda folder: shutil.rmtree(folder / "policy"), "policy/.* is missing"),
    "config cut": (cut("policy/config.json", 5), "config.json has 5 bytes"),
    "config of another width": (flip("policy/config.json", 16), "config.json has changed"),
    "optimizer cut": (cut(OPTIMIZER, 100), "optimizer.safetensors has 100 bytes"),
    "optimizer absent": (remove(OPTIMIZER), "optimizer.safetensors is missing"),
    "optimizer renamed": (rename_within, "optimizer.safetensors"),
    "a bit of the optimizer": (flip(OPTIMIZER, 7000), "optimizer.safetensors has changed"),
    "a bit of the adapters": (flip("adapters.safetensors", 50), "adapters.safetensors has changed"),
    "a bit of the reference": (
        flip("reference.safetensors", 9),
        "reference.safetensors has changed",
    ),
    "files of another step": (swap_steps, "has changed"),
    "an extra file": (
        write("policy/model-00001.safetensors", "x"),
        "model-00001.* does not belong there",
    ),
    "state cut": (cut("state.json", 3), "state.json is cut short or damaged"),
    "state empty": (cut("state.json", 0), "state.json is cut short"),
    "state absent": (remove("state.json"), "state.json is missing"),
    "state all zero": (zeros("state.json"), "state.json is cut short"),
    "state not UTF-8": (flip("state.json", 0, 255), "state.json is cut short"),
    "state a list": (write("state.json", "[]"), "state.json is cut short"),
    "state of another step": (edit_state(lambda s: s.update(step=7)), "state.json is of step 7"),
    "state with a text for a step": (
        edit_state(lambda s: s.update(step="10")),
        "state.json is cut short",
    ),
    "state without digests": (edit_state(lambda s: s.pop("files")), "state.json is cut short"),
    "state without a file": (
        edit_state(lambda s: s["files"].pop(WEIGHTS)),
        "does not belong there",
    ),
    "state a folder": (state_as_a_folder, "state.json cannot be read"),
    "an empty folder": (empty, "state.json is missing"),
    "a file": (replace_by_a_file, "not a directory"),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("whole")
    for step in (5, 10):
        StepDirectories(directory).write(step, fill_whole)
    return directory


def files_below(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("name", DAMAGE)
def test_the_older_checkpoint_is_taken_where_the_newest_is_damaged(tmp_path, whole, name):
    damage, words = DAMAGE[name]
    directories = StepDirectories(tmp_path / "steps")
    shutil.copytree(whole, directories.directory)
    damage(directories.path(10))
    notes = []
    assert directories.recover(12, notes.append) == 5
    assert files_below(directories.path(5)) == files_below(whole / "step_5")
    [note] = notes
    assert len(note.splitlines()) == 1
    assert re.search(words, note)
    assert "step_10" in note
    assert (directories.directory / "step_10.damaged").exists()  # nothing is lost
    assert directories.recover(12, notes.append) == 5  # and nothing is reported twice
    assert len(notes) == 1
    directories.write(10, fill_whole)
    assert {path.name for path in directories.directory.iterdir()} == {"step_5", "step_10"}
    assert directories.recover(12) == 10


def test_training_starts_anew_where_no_checkpoint_is_whole(tmp_path, whole):
    directories = StepDirectories(tmp_path / "steps")
    shutil.copytree(whole, directories.directory)
    for step in (5, 10):
        flip(WEIGHTS, step)(directories.path(step))
    notes = []
    assert directories.recover(12, notes.append) == 0
    assert [note.partition(":")[0] for note in notes] == [
        f"checkpoint {directories.path(10)} is left out",
        f"checkpoint {directories.path(5)} is left out",
        f"no intact checkpoint is left in {directories.directory}",
    ]


@pytest.mark.parametrize("state_fits", [False, True])
def test_a_step_beyond_the_training_is_left_out(tmp_path, whole, state_fits):
    directories = StepDirectories(tmp_path / "steps")
    shutil.copytree(whole, directories.directory)
    huge = directories.path(99999999999999999999)
    shutil.copytree(directories.path(10), huge)
    if state_fits:
        edit_state(lambda state: state.update(step=99999999999999999999))(huge)
    notes = []
    assert directories.recover(12, notes.append) == 10
    assert len(notes) == 1
    assert "has only 12 steps" in notes[0]


def test_names_that_are_not_of_steps_are_left_alone(tmp_path, whole):
    names = [
        "step_",
        "step_x",
        "step_07",
        "step_-3",
        "step_1e3",
        "step_٣",
        "step_0",
        "Step_11",
        "step_11.bak",
        "x",
    ]
    directories = StepDirectories(tmp_path / "steps")
    shutil.copytree(whole, directories.directory)
    for name in names:
        (directories.directory / name).mkdir()
    assert [name for name in names if step_of(name) is not None] == []
    assert directories.recover(12) == 10
    assert directories.whole_steps() == {5, 10}
    directories.write(12, fill_whole)
    assert all((directories.directory / name).is_dir() for name in names)


def test_a_damaged_best_step_is_found_before_it_becomes_the_result(tmp_path, whole):
    directories = StepDirectories(tmp_path / "steps")
    shutil.copytree(whole, directories.directory)
    flip(WEIGHTS, 77)(directories.path(5))
    notes = []
    assert directories.recover(10, notes.append) == 10  # what training resumes from is whole
    assert notes == []
    assert directories.whole_steps(notes.append) == {10}
    assert "step_5 is left out: policy/model.safetensors has changed" in notes[0]


def test_everything_is_on_the_disk_before_the_folder_gets_its_name(tmp_path, monkeypatch):
    directories = StepDirectories(tmp_path / "steps")
    step, fsync, before, after = directories.path(5), os.fsync, [], []

    def record(descriptor):
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        (after if step.exists() else before).append(path)
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)
    directories.write(5, fill_whole)
    names = {path.name for path in step.rglob("*")}  # each is unique
    assert names <= {os.path.basename(path) for path in before}
    assert str(tmp_path / "steps") in after


def test_a_kill_while_an_old_step_goes_leaves_no_part_of_it(tmp_path, monkeypatch):
    directories = StepDirectories(tmp_path, keep_last=1)
    directories.write(5, fill_whole)

    def remove_a_part(folder, **_):
        if (folder / WEIGHTS).exists():
            (folder / WEIGHTS).unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", remove_a_part)
        with pytest.raises(KeyboardInterrupt):
            directories.write(10, fill_whole)
    notes = []
    assert directories.recover(12, notes.append) == 10
    assert [path.name for path in tmp_path.iterdir()] == ["step_10"]
    assert directories.whole_steps(notes.append) == {10}
    assert notes == []
