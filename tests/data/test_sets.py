"""Sets made on disk: the same bytes by any number of processes, killed in between or not, in little
memory.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import load_dataset

from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.data import sets as dataset
from bi_ray.data import shards
from bi_ray.data.sets import read_manifest, write_set
from bi_ray.files.atomic import put_in_place
from bi_ray.reasoning.graph import Graph
from bi_ray.rows.fields import rows_of
from bi_ray.rows.rejects import DataError, Rejects
from bi_ray.runs.lock import RunLocked

ROOT = Path(__file__).parents[2]
QUICKSTART = load_config(ROOT / "configs" / "quickstart.yaml", RunConfig)


def files_of(directory):
    return {file.name: file.read_bytes() for file in sorted(directory.iterdir())}


@pytest.mark.parametrize("export", ["arrow", "jsonl", "parquet", "messages", "verl"])
def test_the_files_do_not_depend_on_the_number_of_processes(tmp_path, export):
    for processes in (1, 2, 8) if export == "arrow" else (1, 2):
        write_set(QUICKSTART, "rl", 300, tmp_path / str(processes), export, processes)
    first, *others = (files_of(folder) for folder in sorted(tmp_path.iterdir()))
    assert all(files == first for files in others)
    assert len(first) >= 3


def test_a_set_says_what_it_is(tmp_path):
    manifest = write_set(QUICKSTART, "sft", 300, tmp_path / "set", "parquet")
    rows = [row for _, row in rows_of(tmp_path / "set", Rejects())]
    answers = [row["answer"] for row in rows]
    hashes = [Graph.from_json(row["graph"]).hash() for row in rows]
    assert [row["hash"] for row in rows] == hashes
    assert len(set(hashes)) == 300
    assert manifest["best_constant_accuracy"] == max(map(answers.count, answers)) / 300
    assert manifest["zero_answer_share"] == answers.count("0") / 300
    assert read_manifest(tmp_path / "set") == manifest
    assert manifest["made_from"]["task"] == QUICKSTART.task.model_dump(mode="json")
    loaded = load_dataset(str(tmp_path / "set"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.to_list() == rows  # the card's header says which files


def test_a_set_that_is_there_is_left_as_it_is_and_another_one_refused(tmp_path):
    made = write_set(QUICKSTART, "sft", 50, tmp_path / "set")
    before = os.stat(tmp_path / "set" / "data-00000.arrow").st_mtime_ns
    assert write_set(QUICKSTART, "sft", 50, tmp_path / "set") == made
    assert os.stat(tmp_path / "set" / "data-00000.arrow").st_mtime_ns == before
    with pytest.raises(DataError, match="exists already; remove it"):
        write_set(QUICKSTART, "sft", 51, tmp_path / "set")


def test_a_user_s_file_is_a_set_too(tmp_path):
    lines = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(8)]
    lines[3] = {"question": "What is 2 + 1?", "answer": "3"}
    file = tmp_path / "mine.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{}\n")
    task = {"kind": "jsonl", "sets": {"rl": {"path": str(file)}}}
    run = {
        "name": "mine",
        "task": task,
        "arms": {"base": {"sft": False}},
        "evaluation": {"sets": []},
    }
    config = RunConfig.model_validate(run | {"readiness": {"queries": 0}})
    manifest = write_set(config, "rl", None, tmp_path / "set", "messages", 2)
    assert (manifest["problems"], manifest["rejected"]) == (7, 2)
    rejects = [
        json.loads(line) for line in (tmp_path / "set" / "rejects.jsonl").read_text().splitlines()
    ]
    assert sorted(reject["line"] for reject in rejects) == [4, 9]
    rows = [row for _, row in rows_of(tmp_path / "set", Rejects())]
    assert {row["prompt"][1]["content"]: row["answer"] for row in rows} == {
        f"What is {n} + 1?": str(n + 1) for n in range(8) if n != 3
    }
    file.write_text(
        file.read_text() + json.dumps({"question": "What is 9 + 1?", "answer": "10"}) + "\n"
    )
    with pytest.raises(DataError, match="exists already"):  # it is another file now
        write_set(config, "rl", None, tmp_path / "set", "messages")


class Stop(Exception):
    """A kill that leaves everything as it is."""


def stop_at(count):
    def look(done):
        if done == count:
            raise Stop

    return look


@pytest.mark.parametrize("stops", [[30], [100, 101, 250], [299]])
def test_work_goes_on_behind_the_last_whole_file(tmp_path, monkeypatch, stops):
    monkeypatch.setattr(shards, "ROWS_PER_BATCH", 20)
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 60)
    monkeypatch.setattr("bi_ray.data.sets.ROWS_PER_SHARD", 60)
    whole = write_set(QUICKSTART, "sft", 300, tmp_path / "whole", "jsonl")
    begun = []
    for stop in stops:
        with pytest.raises(Stop):
            write_set(QUICKSTART, "sft", 300, tmp_path / "broken", "jsonl", 1, stop_at(stop))
    manifest = write_set(QUICKSTART, "sft", 300, tmp_path / "broken", "jsonl", 2, begun.append)
    assert begun[0] == stops[-1] // 60 * 60  # what was whole is not made again
    assert manifest == whole
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")
    assert not (tmp_path / "broken.partial").exists()


@pytest.mark.parametrize("at", ["before the rename", "after the rename"])
def test_a_set_that_was_killed_at_its_end_is_finished_by_the_same_call(tmp_path, monkeypatch, at):
    def stop(fresh, target):
        if at == "after the rename":
            put_in_place(fresh, target)
        raise Stop

    whole = write_set(QUICKSTART, "sft", 30, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(dataset, "put_in_place", stop)
        with pytest.raises(Stop):
            write_set(QUICKSTART, "sft", 30, tmp_path / "broken")
    assert write_set(QUICKSTART, "sft", 30, tmp_path / "broken") == whole
    assert files_of(tmp_path / "broken") == files_of(tmp_path / "whole")
    assert sorted(os.listdir(tmp_path)) == ["broken", "whole"]


def test_work_begun_under_other_settings_is_not_mixed_in(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "ROWS_PER_BATCH", 20)
    monkeypatch.setattr(shards, "ROWS_PER_SHARD", 20)
    monkeypatch.setattr("bi_ray.data.sets.ROWS_PER_SHARD", 20)
    with pytest.raises(Stop):
        write_set(QUICKSTART, "sft", 100, tmp_path / "set", on_progress=stop_at(50))
    with pytest.raises(
        DataError, match=r"begun under other settings:\n  problems: 100 -> 90\nremove it"
    ):
        write_set(QUICKSTART, "sft", 90, tmp_path / "set")


_COMMAND = "from bi_ray.cli.main import main; main()"


def begin_command(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", _COMMAND, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(ROOT), "BI_RAY_CODE_VERSION": "the one that began"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_the_command_goes_on_after_a_kill(tmp_path):
    arguments = [
        "data",
        ROOT / "configs/quickstart.yaml",
        "--problems",
        40_000,
        "--format",
        "jsonl",
        "--processes",
        2,
    ]
    killed = begin_command(*arguments, "--out", tmp_path / "killed")
    while not (tmp_path / "killed.partial" / "progress.json").exists():
        assert killed.poll() is None
        time.sleep(0.05)
    with pytest.raises(RunLocked):
        write_set(QUICKSTART, "sft", 40_000, tmp_path / "killed", "jsonl")
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert not (tmp_path / "killed").exists()
    for out in ("killed", "whole"):
        said = begin_command(*arguments, "--out", tmp_path / out).communicate()[0]
        assert "40,000 problems" in said
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


_PEAK = """
import json, resource, sys
from pathlib import Path
from bi_ray.config import RunConfig, load_config
from bi_ray.data.sets import write_set
if __name__ == "__main__":
    config = load_config(sys.argv[1], RunConfig)
    peaks = {}
    def look(done):
        if done in (20_000, 200_000):
            peaks[done] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    write_set(config, "rl", 200_000, Path(sys.argv[2]), sys.argv[3], 2, look)
    print(json.dumps(peaks))
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("export", ["arrow", "verl"])
def test_memory_does_not_grow_with_the_set(tmp_path, export):
    (tmp_path / "peak.py").write_text(_PEAK)
    said = subprocess.run(
        [
            sys.executable,
            tmp_path / "peak.py",
            ROOT / "configs/quickstart.yaml",
            tmp_path / "set",
            export,
        ],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    peaks = {int(done): mib for done, mib in json.loads(said).items()}
    few, many = peaks[20_000], peaks[200_000]
    print(f"peak RSS {few:.0f} MiB at 20,000 problems, {many:.0f} MiB at 200,000 ({export})")
    assert many - few < 20
