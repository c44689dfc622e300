import json

import pytest
from datasets import Dataset

from bi_ray.config import BRIDGE, ModelConfig, PromptBenchConfig, RunConfig
from bi_ray.policy.checkpoint import load_tokenizer
from bi_ray.problems import DataError, read_problems, write_demonstrations, write_problems
from bi_ray.reasoning.graph import Graph
from bi_ray.tasks.registry import build_task

EASY = {"problems": 12, "depth": 2, "redundant_nodes": [1, 4]}


@pytest.fixture(scope="module")
def run_config(tiny_model):
    sets = {name: EASY for name in ("sft", "rl", "test_id", "test_ood")}
    return RunConfig(
        name="problems",
        task=PromptBenchConfig(name_pool=48, sets=sets),
        arms=["bridge"],
        model=ModelConfig(path=str(tiny_model(True))),
    )


@pytest.fixture(scope="module")
def tools(run_config):
    return build_task(run_config.task, 0), load_tokenizer(run_config.model.path)


def test_a_set_has_no_problem_twice_and_says_what_a_constant_answer_scores(run_config, tools, tmp_path):
    manifest = write_problems(tools[0], "rl", 40, tools[1], run_config.model, tmp_path / "rl")
    rows = read_problems(tmp_path / "rl")
    hashes = [Graph.from_json(row.graph).hash() for row in rows]
    assert len(set(hashes)) == 40
    assert manifest["hashes"] == hashes
    answers = [row.answer for row in rows]
    assert manifest["best_constant_accuracy"] == max(map(answers.count, answers)) / 40
    assert manifest["zero_answer_share"] == answers.count("0") / 40
    assert json.loads((tmp_path / "rl" / "manifest.json").read_text()) == manifest


def test_demonstrations_keep_every_span(run_config, tools, tmp_path):
    write_problems(tools[0], "sft", 40, tools[1], run_config.model, tmp_path / "sft")
    manifest = write_demonstrations(tools[0], BRIDGE, run_config, tmp_path / "sft", tools[1], tmp_path / "bridge")
    rows = Dataset.load_from_disk(str(tmp_path / "bridge"))
    spans = [(span["behaviour"], row["response"][span["start"] : span["end"]]) for row in rows for span in row["spans"]]
    assert all(text.startswith(" = ") for name, text in spans if name == "subgoal")
    assert all(text.startswith("since ") for name, text in spans if name == "analysis")
    assert all(text.endswith("get back") for name, text in spans if name == "reflection")
    assert manifest["behaviours_per_demonstration"]["subgoal"] == sum(name == "subgoal" for name, _ in spans) / 40
    for row in rows:
        assert tools[1].decode(row["response_tokens"]) == row["response"] + tools[1].eos_token


def test_a_prompt_that_is_too_long_says_which_option_to_change(run_config, tools, tmp_path):
    with pytest.raises(DataError, match=r"raise model.max_prompt_tokens \(10\)"):
        write_problems(tools[0], "rl", 3, tools[1], ModelConfig(max_prompt_tokens=10), tmp_path / "rl")


def test_a_demonstration_that_is_too_long_says_which_option_to_change(run_config, tools, tmp_path):
    write_problems(tools[0], "sft", 3, tools[1], run_config.model, tmp_path / "sft")
    short = run_config.model_copy(update={"model": run_config.model.model_copy(update={"max_response_tokens": 9})})
    with pytest.raises(DataError, match=r"raise model.max_response_tokens \(9\)"):
        write_demonstrations(tools[0], BRIDGE, short, tmp_path / "sft", tools[1], tmp_path / "bridge")


def test_a_dataset_without_answers_is_refused(tmp_path):
    row = {"id": "x", "question": "?", "answer": "", "graph": "{}", "prompt_tokens": [1]}
    Dataset.from_list([row]).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="row 0: no answer"):
        read_problems(tmp_path / "set")


def test_more_problems_than_there_are_is_an_error(run_config, tools, tmp_path):
    config = PromptBenchConfig(name_pool=48, sets={"rl": {"depth": 1}})
    with pytest.raises((DataError, ValueError), match="depth or redundant_nodes"):
        write_problems(build_task(config, 0), "rl", 50, tools[1], run_config.model, tmp_path / "rl")
