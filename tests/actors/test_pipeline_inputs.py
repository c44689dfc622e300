"""What a stage reads is compared with its digests first; stages that need no cluster."""

import os

import pytest
from rich.console import Console

from actors.pipeline import Pipeline
from bi_ray.config.run import RunConfig
from bi_ray.files.errors import RunError
from bi_ray.runs.directory import RunDirectory
from bi_ray.runs.display import Display


@pytest.fixture
def pipeline(tiny_model, tmp_path):
    sets = {"sft": {"problems": 2, "depth": 2}, "rl": {"problems": 2, "depth": 2}}
    config = RunConfig.model_validate(
        {
            "name": "inputs",
            "task": {"kind": "promptbench", "name_pool": 48, "sets": sets},
            "arms": ["vanilla", "bridge", "base"],
            "model": {
                "path": str(tiny_model(True)),
                "max_prompt_tokens": 512,
                "max_response_tokens": 512,
            },
            "evaluation": {"sets": []},
            "readiness": {"queries": 0},
        }
    )
    return lambda: Pipeline(config, RunDirectory(tmp_path / "run"), Display(Console(quiet=True)))


def test_a_damaged_stage_ends_the_run_before_the_next_one_reads_it(pipeline, tmp_path):
    first = pipeline()
    with first.run_directory:
        data = first.data()
        first.sft_data("vanilla", data)
    [file] = (tmp_path / "run/data/sft").glob("*.arrow")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    again = pipeline()
    with again.run_directory:
        data = again.data()
        again.sft_data("vanilla", data)  # done already: nothing is read
        with pytest.raises(
            RunError, match=rf"run/data is damaged: sft/{file.name} has changed .*--from data"
        ):
            again.sft_data("bridge", data)


def cut_largest(stage):
    file = max(
        (path for path in stage.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size
    )
    os.truncate(file, 100)
    return rf"{stage.name} is damaged: .*{file.name} has 100 bytes, not"


def test_training_does_not_begin_from_what_is_damaged(pipeline, tmp_path):
    run = pipeline()
    with run.run_directory:
        data = run.data()
        demonstrations, base = run.sft_data("vanilla", data), run.no_sft("base", data)
        with pytest.raises(RunError, match=cut_largest(tmp_path / "run/sft_data/vanilla")):
            run.sft("vanilla", demonstrations, "sft")
        words = cut_largest(tmp_path / "run/sft/base")
        with pytest.raises(RunError, match=words):
            run.rl("base", base)
        with pytest.raises(RunError, match=words):
            run.evaluate("base", "sft", base)


def test_a_base_inside_the_run_directory_is_no_stage(pipeline, tmp_path):
    run = pipeline()
    policies = (
        "sft/bridge/policy",
        "sft_double/bridge/policy",
        "checkpoint/model",
        "model",
        "../elsewhere",
    )
    assert [run._stages_of(tmp_path / "run" / policy) for policy in policies] == [
        ["sft/bridge"],
        ["sft_double/bridge"],
        [],
        [],
        [],
    ]
