# ruff: noqa: PT012  (the block under test is the body of a context manager)
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from bi_ray.config.files import load_config, save_config
from bi_ray.config.run import RunConfig
from bi_ray.config.training import SFTConfig
from bi_ray.files.atomic import write_atomically, write_text
from bi_ray.files.errors import DiskFull, RunError
from bi_ray.runs.directory import RunDirectory, StageChanged, begin_directory
from bi_ray.runs.lock import RunLocked, lock_holder
from bi_ray.runs.metrics import append_metrics, cut_metrics, read_steps
from bi_ray.runs.place import RunPlace
from bi_ray.runs.process import code_version
from bi_ray.runs.records import remedy_for
from bi_ray.runs.stage_key import differences, key_of
from bi_ray.runs.stages import stage_damage
from bi_ray.runs.status import describe_status

QUICKSTART = Path(__file__).parents[2] / "configs/quickstart.yaml"

KEY = key_of({"sft": SFTConfig(epochs=5)}, {"data": "1a"})
OTHER = key_of({"sft": SFTConfig(epochs=10)}, {"data": "1a"})


def child(code: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def wait_for_line(process: subprocess.Popen) -> str:
    return process.stdout.readline().strip()


# --- write_atomically


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "a" / "b"
    with write_atomically(target) as folder:
        (folder / "x").write_text("new")
        assert not target.exists()
    assert (target / "x").read_text() == "new"
    with write_atomically(target) as folder:
        (folder / "y").write_text("newer")
    assert [path.name for path in target.iterdir()] == ["y"]
    assert [path.name for path in target.parent.iterdir()] == ["b"]


def test_an_error_leaves_the_old_folder(tmp_path):
    target = tmp_path / "a"
    with write_atomically(target) as folder:
        (folder / "x").write_text("old")
    with pytest.raises(KeyboardInterrupt), write_atomically(target) as folder:
        (folder / "x").write_text("new")
        raise KeyboardInterrupt
    assert (target / "x").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_kill_between_the_renames_loses_nothing(tmp_path):
    target = tmp_path / "a"
    (tmp_path / ".bi-ray-old-a").mkdir()
    (tmp_path / ".bi-ray-old-a" / "x").write_text("old")
    with pytest.raises(ZeroDivisionError), write_atomically(target):
        assert (target / "x").read_text() == "old"
        raise ZeroDivisionError
    assert (target / "x").read_text() == "old"


# --- keys


def test_a_key_depends_on_every_value_and_on_nothing_else():
    assert key_of({"b": 1, "a": {"y": (1, 2), "x": 0}}, {"p": "1", "q": "2"}).digest == (
        key_of({"a": {"x": 0, "y": [1, 2]}, "b": 1}, {"q": "2", "p": "1"}).digest
    )
    digests = [
        KEY.digest,
        OTHER.digest,
        key_of({"sft": SFTConfig(epochs=5)}, {"data": "1b"}).digest,
        key_of({"sft": SFTConfig(epochs=5)}, {}).digest,
        key_of({"sft": SFTConfig(epochs=5), "seed": 0}, {"data": "1a"}).digest,
    ]
    assert len(set(digests)) == len(digests)
    assert KEY.config["sft"]["optimizer"]["betas"] == [0.9, 0.95]


def test_a_key_is_the_same_in_another_process():
    code = (
        "from bi_ray.config import SFTConfig; from bi_ray.runs.stage_key import key_of;"
        "print(key_of({'sft': SFTConfig(epochs=5)}, {'data': '1a'}).digest)"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip() == KEY.digest


def test_what_is_no_number_makes_no_key():
    with pytest.raises(ValueError, match="not JSON compliant"):
        key_of({"rate": float("nan")}, {})


def test_differences_leaf_by_leaf():
    old = {
        "sft": {"epochs": 5, "rate": 0.1},
        "arms": {"a": [{"p": 0.1}]},
        "sets": ["x", "y"],
        "gone": 1,
    }
    new = {
        "sft": {"epochs": 10, "rate": 0.1},
        "arms": {"a": [{"p": 0.2}, {"p": 1}]},
        "sets": ["x"],
        "come": None,
    }
    assert differences(old, new) == [
        "sft.epochs: 5 -> 10",
        "arms.a[0].p: 0.1 -> 0.2",
        'sets: ["x", "y"] -> ["x"]',
        "gone: 1 -> (absent)",
        "arms.a[1].p: (absent) -> 1",
        "come: (absent) -> null",
    ]
    assert differences(old, old) == []


# --- stages


def finish(run: RunDirectory, stage: str, key=KEY) -> None:
    with run.commit(stage, key) as folder:
        (folder / "artifact").write_text(stage)


def test_a_stage_is_done_once_it_is_committed(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        assert not run.is_done("sft/vanilla", KEY)
        with run.commit("sft/vanilla", KEY) as folder:
            (folder / "artifact").write_text("x")
            assert not run.is_done("sft/vanilla", KEY)
            time.sleep(0.05)
        assert run.is_done("sft/vanilla", KEY)
        assert not run.is_done("sft/bridge", KEY)
    kept = json.loads((tmp_path / "run/sft/vanilla/stage.json").read_text())
    assert kept["key"] == KEY.digest
    assert kept["config"]["sft"]["epochs"] == 5
    assert kept["inputs"] == {"data": "1a"}
    assert kept["code_version"] == code_version()
    assert 0.05 <= kept["seconds"] < 5
    with run.commit("later", KEY, began=time.monotonic() - 100) as folder:
        pass
    assert 100 <= json.loads((tmp_path / "run/later/stage.json").read_text())["seconds"] < 105
    assert RunDirectory(tmp_path / "run").artifact("sft/vanilla") == tmp_path / "run/sft/vanilla"


def test_a_changed_config_is_shown_and_refused(tmp_path):
    with RunDirectory(tmp_path) as run:
        finish(run, "sft/vanilla")
        with pytest.raises(StageChanged) as caught:
            run.is_done("sft/vanilla", OTHER)
        assert (tmp_path / "sft/vanilla/artifact").exists()
    message = str(caught.value)
    assert "sft.epochs: 5 -> 10" in message
    assert "learning_rate" not in message
    assert "new run directory" in message
    assert "--from sft" in message


def test_changed_inputs_are_shown_and_refused(tmp_path):
    with RunDirectory(tmp_path) as run:
        finish(run, "sft/vanilla")
        with pytest.raises(StageChanged, match=r'inputs\.data: "1a" -> "2b"'):
            run.is_done("sft/vanilla", key_of({"sft": SFTConfig(epochs=5)}, {"data": "2b"}))


def test_many_differences_are_cut_short(tmp_path):
    with RunDirectory(tmp_path) as run:
        finish(run, "data", key_of({"x": {f"a{i}": 0 for i in range(50)}}, {}))
        with pytest.raises(StageChanged, match="and 30 more") as caught:
            run.is_done("data", key_of({"x": {f"a{i}": 1 for i in range(50)}}, {}))
    assert len(str(caught.value).splitlines()) == 23


def test_a_failed_stage_leaves_nothing_behind(tmp_path):
    with RunDirectory(tmp_path) as run:
        with pytest.raises(ZeroDivisionError), run.commit("data", KEY) as folder:
            (folder / "half").write_text("x")
            raise ZeroDivisionError
        assert not run.is_done("data", KEY)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bi-ray-run", ".lock"]


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_stage_of_which_no_files_are_recorded_is_read_as_it_is(tmp_path):
    with RunDirectory(tmp_path / "run") as run:
        with run.commit("sft/vanilla", KEY) as folder:
            (folder / "weights").write_text("w")
        record = json.loads((run.artifact("sft/vanilla") / "stage.json").read_text())
        del record["files"]
        (run.artifact("sft/vanilla") / "stage.json").write_text(json.dumps(record))
        assert run.is_done("sft/vanilla", KEY)
        run.require_whole("sft/vanilla")
        assert stage_damage(run.artifact("sft/vanilla")) is None


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda stage: flip_a_bit(stage / "policy/weights"),
            "policy/weights has changed since it was written",
        ),
        (
            lambda stage: os.truncate(stage / "policy/weights", 3),
            "policy/weights has 3 bytes, not 4,000",
        ),
        (lambda stage: (stage / "policy/weights").unlink(), "policy/weights is missing"),
        (lambda stage: os.truncate(stage / "stage.json", 30), "stage.json is damaged"),
        (lambda stage: (stage / "stage.json").write_text("[]"), "stage.json is damaged"),
        (lambda stage: (stage / "stage.json").write_text("{}"), "stage.json is damaged"),
    ],
)
def test_a_damaged_stage_is_found_before_the_next_one_reads_it(tmp_path, damage, words):
    with RunDirectory(tmp_path / "run") as run:
        with run.commit("sft/vanilla", KEY) as folder:
            (folder / "policy").mkdir()
            (folder / "policy/weights").write_bytes(os.urandom(4000))
        run.require_whole("sft/vanilla")
    damage(run.artifact("sft/vanilla"))
    with RunDirectory(tmp_path / "run") as run, pytest.raises(RunError) as caught:
        run.require_whole("sft/vanilla")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert str(tmp_path / "run/sft/vanilla") in message
    assert words in message
    assert message.endswith("again with --from sft")


def test_work_stays_until_the_stage_is_committed(tmp_path):
    with RunDirectory(tmp_path) as run:
        (run.work("rl/bridge", KEY) / "step_3").write_text("x")
    with RunDirectory(tmp_path) as run:
        assert (run.work("rl/bridge", KEY) / "step_3").exists()
        assert not run.is_done("rl/bridge", KEY)
        with pytest.raises(StageChanged, match=r"sft.epochs: 5 -> 10"):
            run.work("rl/bridge", OTHER)
        with run.commit("rl/bridge", KEY) as folder:
            (run.work("rl/bridge", KEY) / "step_3").rename(folder / "step_3")
        assert (run.artifact("rl/bridge") / "step_3").exists()
        assert not (tmp_path / "work/rl/bridge").exists()


ORDER = ("data", "sft", "rl", "eval")


def test_from_a_stage_on_everything_is_forgotten(tmp_path):
    with RunDirectory(tmp_path) as run:
        for stage in ("data", "sft/vanilla", "sft/bridge", "rl/vanilla"):
            finish(run, stage)
        run.work("rl/bridge", KEY)
        run.forget_from(ORDER, "sft")
        assert run.is_done("data", KEY)
        for stage in ("sft/vanilla", "sft/bridge", "rl/vanilla"):
            assert not run.is_done(stage, OTHER)  # gone, so nothing to be refused
        run.work("rl/bridge", OTHER)
        with pytest.raises(
            RunError, match="no stage is called 'stf'; the stages are data, sft, rl, eval"
        ):
            run.forget_from(ORDER, "stf")


# --- lock


HOLD = (
    "import time; from bi_ray.runs.directory import RunDirectory\n"
    "with RunDirectory({!r}): print('in', flush=True); time.sleep(60)"
)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path):
    holder = child(HOLD.format(str(tmp_path)))
    try:
        assert wait_for_line(holder) == "in"
        with (
            pytest.raises(RunLocked, match=f"{tmp_path} is in use by process {holder.pid}"),
            RunDirectory(tmp_path),
        ):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with RunDirectory(tmp_path):
            assert (tmp_path / ".lock").read_text() == str(os.getpid())
    finally:
        holder.kill()
        holder.wait()


def test_a_second_use_in_this_process_is_refused_too(tmp_path):
    with RunDirectory(tmp_path):
        with pytest.raises(RunLocked, match=f"process {os.getpid()}"), RunDirectory(tmp_path):
            pass
        # a refused one did not break the lock
        with pytest.raises(RunLocked), RunDirectory(tmp_path):
            pass
    with RunDirectory(tmp_path):
        pass


def test_what_a_killed_process_left_half_written_is_removed(tmp_path):
    code = (
        "import time\n"
        "from bi_ray.runs.directory import RunDirectory\n"
        "from bi_ray.runs.stage_key import key_of\n"
        f"run = RunDirectory({str(tmp_path)!r})\n"
        "with run, run.commit('sft/vanilla', key_of({}, {})) as folder:\n"
        "    (folder / 'half').write_text('x'); print('in', flush=True); time.sleep(60)"
    )
    writer = child(code)
    assert wait_for_line(writer) == "in"
    writer.kill()
    writer.wait()
    assert list(tmp_path.glob("sft/.bi-ray-tmp-vanilla.*"))
    with RunDirectory(tmp_path) as run:
        assert not list(tmp_path.rglob(".bi-ray-tmp-*"))
        assert not run.is_done("sft/vanilla", KEY)


# --- places and disks


@pytest.mark.parametrize("place", ["s3://bucket/run", "gs://bucket", "file:///tmp/x"])
def test_uris_are_refused(place):
    with pytest.raises(RunError, match="this command works in a directory"):
        RunDirectory(place)


def test_a_file_is_no_run_directory(tmp_path):
    (tmp_path / "x").touch()
    with pytest.raises(RunError, match="x is a file"):
        RunDirectory(tmp_path / "x")


def test_the_path_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert RunDirectory("runs/a").path == tmp_path / "runs/a"


def test_a_full_disk_is_one_clear_error(tmp_path):
    with RunDirectory(tmp_path) as run:
        with (
            pytest.raises(
                DiskFull, match=f"no space left on the disk of {tmp_path} while stage data"
            ),
            run.commit("data", KEY) as folder,
        ):
            (folder / "part").write_text("x")
            with open("/dev/full", "w") as full:  # the kernel's own full disk
                full.write("x" * 100_000)
        assert not run.is_done("data", KEY)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".bi-ray-run", ".lock"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 200 KiB."""
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", tmp_path]).returncode
    ):
        pytest.skip("may not mount here")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


def test_a_disk_that_fills_under_safetensors(small_disk):
    """Its errors are of a type of its own; torch.save's do not even say why, but weights are never
    pickled here.
    """
    with RunDirectory(small_disk / "run") as run:
        finish(run, "data")
        with pytest.raises(DiskFull), run.commit("sft/vanilla", KEY) as folder:
            save_file({"w": torch.zeros(10**6)}, folder / "model.safetensors")
        assert run.is_done("data", KEY)
        assert not run.is_done("sft/vanilla", KEY)
    assert not list((small_disk / "run").rglob(".bi-ray-tmp-*"))


def test_other_errors_stay_what_they_are(tmp_path):
    with RunDirectory(tmp_path) as run, pytest.raises(PermissionError), run.commit("data", KEY):
        raise PermissionError(13, "Permission denied")


def test_a_whole_config_makes_a_key():
    run = RunConfig.model_validate(
        {
            "name": "r",
            "task": {"sets": {n: {} for n in ("sft", "rl", "test_id", "test_ood")}},
            "arms": ["bridge"],
        }
    )
    assert (
        key_of({"run": run}, {}).config["run"]["arms"]["bridge"]["behaviors"][0]["name"]
        == "reflection"
    )


# --- on the disk before it has its name


@pytest.fixture
def synced(monkeypatch):
    """What was synced, by inode, and what was renamed, in their order."""
    events = []
    fsync, rename, replace = os.fsync, os.rename, os.replace

    def record_sync(descriptor):
        events.append(("sync", os.fstat(descriptor).st_ino))
        fsync(descriptor)

    def recorder(call):
        def record(source, target, **options):
            events.append(("rename", Path(target).name))
            call(source, target, **options)

        return record

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "rename", recorder(rename))
    monkeypatch.setattr(os, "replace", recorder(replace))
    return events


def inode(path):
    return ("sync", path.stat().st_ino)


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, synced):
    for text in ("old", "new"):
        synced.clear()
        write_text(tmp_path / "x", text)
        assert synced == [inode(tmp_path / "x"), ("rename", "x"), inode(tmp_path)]
    save_config(load_config(QUICKSTART, RunConfig), tmp_path / "config.yaml")
    assert synced[-2:] == [("rename", "config.yaml"), inode(tmp_path)]
    append_metrics(tmp_path / "metrics.jsonl", {"step": 1})
    synced.clear()
    cut_metrics(tmp_path / "metrics.jsonl", 0)
    assert synced == [
        inode(tmp_path / "metrics.jsonl"),
        ("rename", "metrics.jsonl"),
        inode(tmp_path),
    ]


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path, synced):
    with RunDirectory(tmp_path) as run, run.commit("data", KEY) as folder:
        (folder / "deep/er").mkdir(parents=True)
        (folder / "deep/er/x").write_text("x")
    position = synced.index(("rename", "data"))
    for name in ("", "deep", "deep/er", "deep/er/x", "stage.json"):
        assert inode(tmp_path / "data" / name) in synced[:position]
    assert inode(tmp_path) in synced[position:]


# --- errors name the file


def test_every_error_of_the_file_system_names_the_file(small_disk):
    files = {
        "metrics.jsonl": lambda file: append_metrics(file, {"step": 2, "x": "y" * 300_000}),
        "config.yaml": lambda file: save_config(load_config(QUICKSTART, RunConfig), file),
        "x.json": lambda file: write_text(file, "x" * 300_000),
    }
    for name in files:
        (small_disk / name).write_text('{"step": 1}\n')
    run = RunDirectory(small_disk / "run")
    with run:
        pass
    (small_disk / "run/.lock").write_text("")
    with open(small_disk / "fill", "wb", buffering=0) as fill, suppress(OSError):
        while fill.write(b"x" * 4096):
            pass
    for name, write in files.items():
        with pytest.raises(OSError, match=rf"No space left on device: '{small_disk / name}'"):
            write(small_disk / name)
        assert (small_disk / name).read_text() == '{"step": 1}\n'
    with pytest.raises(OSError, match=rf"No space left on device: '{small_disk}/run/\.lock'"), run:
        pass
    assert not list(small_disk.rglob(".bi-ray-tmp-*"))


def test_a_lock_file_of_any_content_is_shown_in_one_line(tmp_path):
    with RunDirectory(tmp_path):
        for content in (b"\xff\xfe\x00", b"", b"[1]\n\n{}", b"7" * 10**6, b"4711 (job a on b)"):
            (tmp_path / ".lock").write_bytes(content)
            with pytest.raises(RunLocked) as caught, RunDirectory(tmp_path):
                pass
            assert len(str(caught.value).splitlines()) == 1
            assert len(str(caught.value)) < 600
            assert len(lock_holder(tmp_path).splitlines()) == 1
    assert lock_holder(tmp_path) is None
    (tmp_path / ".lock").unlink()
    (tmp_path / ".lock").mkdir()
    with pytest.raises(
        RunError, match=r"\.lock is not a readable lock file: it is a directory; remove it"
    ):
        lock_holder(tmp_path)
    with pytest.raises(OSError, match=r"\.lock"), RunDirectory(tmp_path):
        pass


def test_a_metrics_row_begins_a_line_of_its_own(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n{"step": 2, "lo')
    append_metrics(tmp_path / "metrics.jsonl", {"step": 3})
    assert [row["step"] for row in read_steps(tmp_path / "metrics.jsonl")] == [1, 3]
    (tmp_path / "metrics.jsonl").write_text('{"ste')
    append_metrics(tmp_path / "metrics.jsonl", {"step": 1})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n'


@pytest.mark.parametrize(
    "line", ["garbage", "[1]", "{}", "null", '{"step": "x"}', "", '{"step": 1}{"step": 2}']
)
def test_a_bad_row_is_named_by_its_line(tmp_path, line):
    begin_directory(tmp_path)
    file = tmp_path / "rl/bridge/metrics.jsonl"
    file.parent.mkdir(parents=True)
    file.write_text(f'{{"step": 1}}\n{line}\n{{"step": 3}}\n')
    with pytest.raises(RunError) as caught:
        read_steps(file)
    assert str(caught.value).startswith(f"{file}, line 2, is damaged (")
    assert str(caught.value).endswith("): make it again with --from rl")


def test_a_durable_metrics_row_is_on_the_disk(tmp_path, synced):
    append_metrics(tmp_path / "metrics.jsonl", {"step": 1})
    assert synced == []
    append_metrics(tmp_path / "metrics.jsonl", {"step": 2}, durable=True)
    assert synced == [inode(tmp_path / "metrics.jsonl")]


def test_weights_that_were_removed_to_make_room_are_missed_by_readers_alone(tmp_path):
    with RunDirectory(tmp_path) as run:
        finish(run, "sft/bridge")
    (tmp_path / "sft/bridge/artifact").unlink()
    with RunDirectory(tmp_path) as run:
        assert run.is_done("sft/bridge", KEY)
        with pytest.raises(
            RunError, match="artifact is missing; make the stage again with --from sft"
        ):
            run.require_whole("sft/bridge")
    assert describe_status(RunPlace(tmp_path))[1].startswith("  done     sft/bridge")
    (tmp_path / "sft/bridge/artifact").write_text("longer than it was")
    with RunDirectory(tmp_path) as run, pytest.raises(RunError, match="artifact is damaged"):
        run.is_done("sft/bridge", KEY)
    with pytest.raises(RunError, match="artifact is damaged"):
        describe_status(RunPlace(tmp_path))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("rl/bridge/x.json", "make it again with --from rl"),
        ("work/sft/bridge/x.json", "make it again with --from sft"),
        ("checkpoint/x.json", "restore it from a copy, or remove it and make it again"),
        ("work/x.json", "restore it from a copy, or remove it and make it again"),
    ],
)
def test_a_remedy_names_stages_alone(tmp_path, name, remedy):
    begin_directory(tmp_path)
    assert remedy_for(tmp_path / name) == remedy
