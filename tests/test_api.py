"""The Python API: cheap to import, and what it gives back."""

import subprocess
import sys

import pytest
from datasets import Dataset, load_from_disk

import bi_ray
from bi_ray.config.base import ConfigError
from bi_ray.config.files import load_config
from bi_ray.config.recipes import RecipeConfig
from bi_ray.config.run import RunConfig
from bi_ray.config.tasks import PromptBenchConfig
from bi_ray.data.sets import write_set
from bi_ray.rows.rejects import DataError, Rejects
from bi_ray.tasks.registry import build_task
from tests.data.test_sets import QUICKSTART, ROOT

HEAVY = ("torch", "datasets", "transformers", "pyarrow", "numpy", "pydantic", "ray", "vllm")


def modules_after(code):
    program = f"{code}\nimport sys\nprint(*sys.modules)"
    said = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, text=True, capture_output=True, check=True
    )
    return set(said.stdout.split())


def test_importing_costs_nothing():
    assert not modules_after("import bi_ray").intersection(HEAVY)
    assert not modules_after("import bi_ray\nbi_ray.inject").intersection(
        {"torch", "datasets", "transformers"}
    )
    assert not modules_after("import bi_ray.cli.main").intersection(
        {"torch", "datasets", "transformers", "ray", "vllm"}
    )


def test_it_is_found_like_any_attribute():
    assert {"generate", "inject", "check"} <= set(dir(bi_ray))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = bi_ray.nothing


@pytest.fixture(scope="module")
def problems():
    return bi_ray.generate(QUICKSTART, "sft", 60)


def test_generate_gives_what_the_command_writes(problems, tmp_path):
    write_set(QUICKSTART, "sft", 60, tmp_path / "set")
    assert load_from_disk(str(tmp_path / "set")).to_list() == problems.to_list()
    assert len(bi_ray.generate(ROOT / "configs" / "quickstart.yaml", "test_id")) == 500
    with pytest.raises(ConfigError, match="no set val: the configuration has sft, rl"):
        bi_ray.generate(QUICKSTART, "val")


def test_inject_then_check(problems):
    made = bi_ray.inject(problems, recipe="bridge", task=QUICKSTART, seed=1)
    assert made.column_names == ["id", "question", "answer", "response", "spans", "graph"]
    assert made["id"] == problems["id"]
    grades = bi_ray.check(made, task=QUICKSTART.task)
    assert all(grades["right"])
    assert all(grades["trace_valid"])
    shown = {one["behavior"] for row in grades["behaviors"] for one in row}
    assert shown == {"subgoal", "analysis", "reflection"}
    assert (
        made.to_list()
        == bi_ray.inject(
            problems.to_list(), recipe="bridge", task=build_task(QUICKSTART.task, 0), seed=1
        ).to_list()
    )


def test_behaviors_one_by_one(problems):
    made = bi_ray.inject(problems, behaviors=["reflection:1.0"], task=QUICKSTART)
    assert {span["behavior"] for row in made for span in row["spans"]} == {"reflection"}
    plain = bi_ray.inject(problems, recipe=RecipeConfig(), task=QUICKSTART)
    assert not any(plain["spans"])


def test_a_directory_says_its_task_itself(tmp_path):
    write_set(QUICKSTART, "rl", 30, tmp_path / "set", "parquet")
    made = bi_ray.inject(tmp_path / "set", recipe="subgoal")
    assert len(made) == 30
    with pytest.raises(ConfigError, match="no task given"):
        bi_ray.inject(made, recipe="subgoal")


def test_bad_rows_are_a_warning_an_error_or_collected(problems):
    rows = [problems[0], {"question": "", "id": "x"}, problems[1]]
    with pytest.warns(UserWarning, match="the dataset: 1 row left out, no question"):
        assert len(bi_ray.inject(rows, recipe="bridge", task=QUICKSTART)) == 2
    rejects = Rejects()
    assert len(bi_ray.inject(rows, recipe="bridge", task=QUICKSTART, rejects=rejects)) == 2
    assert len(rejects.rows) == 1
    with pytest.raises(DataError, match="the dataset, line 2: no question"):
        bi_ray.inject(Dataset.from_list(rows), recipe="bridge", task=QUICKSTART, strict=True)


def test_checking_what_a_model_wrote(problems):
    rows = [
        row | {"response": f"<answer> The final answer is {row['answer']} </answer>"}
        for row in problems
    ]
    grades = bi_ray.check(rows, task=QUICKSTART)
    assert all(grades["right"])
    assert not any(grades["trace_valid"])
    assert not any(grades["format_right"])
    assert all("no line of a known form" in reason for reason in grades["trace_fault"])


def test_other_tasks_read_other_questions():
    other = PromptBenchConfig(order="reversed", sets={"sft": {"depth": 2}})
    run = load_config(ROOT / "configs" / "quickstart.yaml", RunConfig).model_copy(
        update={"task": other}
    )
    made = bi_ray.inject(bi_ray.generate(run, "sft", 5), recipe="vanilla", task=run)
    assert len(made) == 5


@pytest.mark.parametrize("rows", [{"question": "a"}, 5])
def test_what_are_no_rows_is_refused(rows):
    with pytest.raises(ConfigError, match="rows are a list of mappings"):
        bi_ray.inject(rows, recipe="bridge", task=PromptBenchConfig(sets={}))


@pytest.mark.parametrize("task", [42, {"kind": "nothing"}])
def test_what_is_no_task_is_refused(task):
    with pytest.raises(ConfigError, match="task"):
        bi_ray.inject([], recipe="bridge", task=task)


def test_a_task_as_plain_options_and_a_single_behavior_as_text(problems):
    made = bi_ray.inject(
        problems, behaviors="subgoal", task={"kind": "promptbench", "name_pool": 48, "sets": {}}
    )
    assert len(made) == 60
    with pytest.raises(ConfigError, match="problems: expected 1 or more, got -1"):
        bi_ray.generate(QUICKSTART, "rl", -1)
