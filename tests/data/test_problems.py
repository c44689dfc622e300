import json

import pytest
from datasets import Dataset

from bi_ray.config.recipes import BRIDGE, RECIPES, VANILLA, RecipeConfig
from bi_ray.config.run import ModelConfig, RunConfig
from bi_ray.config.tasks import PromptBenchConfig
from bi_ray.data.problems import read_problems, write_problems
from bi_ray.injection.demonstrations import write_demonstrations
from bi_ray.policy.checkpoint import load_tokenizer
from bi_ray.reasoning.graph import Graph
from bi_ray.reasoning.trace import Span
from bi_ray.rows.rejects import DataError
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


def test_a_set_has_no_problem_twice_and_says_what_a_constant_answer_scores(
    run_config, tools, tmp_path
):
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
    manifest = write_demonstrations(
        tools[0], BRIDGE, run_config, tmp_path / "sft", tools[1], tmp_path / "bridge"
    )
    rows = Dataset.load_from_disk(str(tmp_path / "bridge"))
    spans = []
    for row in rows:
        for span in row["spans"]:
            spans.append((span["behavior"], row["response"][span["start"] : span["end"]]))
    assert all(text.startswith(" = ") for name, text in spans if name == "subgoal")
    assert all(text.startswith("since ") for name, text in spans if name == "analysis")
    assert all(text.endswith("get back") for name, text in spans if name == "reflection")
    assert (
        manifest["behaviors_per_demonstration"]["subgoal"]
        == sum(name == "subgoal" for name, _ in spans) / 40
    )
    for row in rows:
        assert tools[1].decode(row["response_tokens"]) == row["response"] + tools[1].eos_token


def test_a_prompt_that_is_too_long_says_which_option_to_change(run_config, tools, tmp_path):
    with pytest.raises(DataError, match=r"raise model.max_prompt_tokens \(10\)"):
        write_problems(
            tools[0], "rl", 3, tools[1], ModelConfig(max_prompt_tokens=10), tmp_path / "rl"
        )


def test_a_demonstration_that_is_too_long_says_which_option_to_change(run_config, tools, tmp_path):
    write_problems(tools[0], "sft", 3, tools[1], run_config.model, tmp_path / "sft")
    short = run_config.model_copy(
        update={"model": run_config.model.model_copy(update={"max_response_tokens": 9})}
    )
    with pytest.raises(DataError, match=r"raise model.max_response_tokens \(9\)"):
        write_demonstrations(
            tools[0], BRIDGE, short, tmp_path / "sft", tools[1], tmp_path / "bridge"
        )


def test_a_dataset_without_answers_is_refused(tmp_path):
    row = {"id": "x", "question": "?", "answer": "", "graph": "{}", "prompt_tokens": [1]}
    Dataset.from_list([row]).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match="row 0: no answer"):
        read_problems(tmp_path / "set")


def test_more_problems_than_there_are_is_an_error(run_config, tools, tmp_path):
    config = PromptBenchConfig(name_pool=48, sets={"rl": {"depth": 1}})
    with pytest.raises((DataError, ValueError), match="depth or redundant_nodes"):
        write_problems(build_task(config, 0), "rl", 50, tools[1], run_config.model, tmp_path / "rl")


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def user_run(tiny_model, tmp_path):
    """A run over 12 rows of a user, the last with a long question, and its task."""
    rows = [
        {"question": f"{i} + 1 = ?", "answer": i + 1, "chain_of_thought": "Let me see."}
        for i in range(11)
    ]
    rows += [{"question": "and " * 200, "answer": 5, "chain_of_thought": "?"}]
    test = [{"question": f"{i} - 1 = ?", "answer": i - 1} for i in range(5)]
    data, test = jsonl(tmp_path / "data.jsonl", rows), jsonl(tmp_path / "test.jsonl", test)
    config = RunConfig(
        name="user",
        task={
            "kind": "jsonl",
            "sets": {"sft": {"path": data}, "rl": {"path": data}, "test_id": {"path": test}},
        },
        arms=["vanilla"],
        evaluation={"sets": ["test_id"]},
        readiness={"queries": 0},
        model=ModelConfig(
            path=str(tiny_model(True)), max_prompt_tokens=200, max_response_tokens=60
        ),
    )
    return config, build_task(config.task, 0), load_tokenizer(config.model.path)


def test_a_user_s_rows_become_a_set_and_come_back_whole(user_run, tmp_path):
    config, task, tokenizer = user_run
    manifest = write_problems(task, "sft", None, tokenizer, config.model, tmp_path / "sft")
    assert manifest["problems"] == 11
    assert [(reject.line, reject.reason.partition(":")[0]) for reject in task.rejects.rows] == [
        (12, "prompt too long")
    ]
    rows = read_problems(tmp_path / "sft")
    assert [row.problem() for row in rows] == [
        problem for i in range(12) if "and" not in (problem := task.problem("sft", i)).question
    ]
    assert all(row.graph == "" for row in rows)


def test_as_many_of_a_user_s_problems_as_are_asked_for(user_run, tmp_path):
    config, task, tokenizer = user_run
    assert write_problems(task, "rl", 4, tokenizer, config.model, tmp_path / "rl")["problems"] == 4
    few = write_problems(task, "rl", 50, tokenizer, config.model, tmp_path / "few", exactly=False)
    assert few["problems"] == 11
    with pytest.raises(
        DataError,
        match=r"set rl: 11 usable problems, and task.sets.rl.problems asks for 50(.|\n)*too long",
    ):
        write_problems(task, "rl", 50, tokenizer, config.model, tmp_path / "many")
    short = config.model.model_copy(update={"max_prompt_tokens": 2})
    with pytest.raises(DataError, match="set rl: 0 usable problems"):
        write_problems(task, "rl", None, tokenizer, short, tmp_path / "none")


def test_a_user_s_demonstrations_are_taken_as_they_are(user_run, tmp_path):
    config, task, tokenizer = user_run
    write_problems(task, "sft", None, tokenizer, config.model, tmp_path / "sft")
    manifest = write_demonstrations(
        task, VANILLA, config, tmp_path / "sft", tokenizer, tmp_path / "vanilla"
    )
    assert (manifest["demonstrations"], manifest["rejected"]) == (11, [])
    for row in Dataset.load_from_disk(str(tmp_path / "vanilla")):
        assert row["response"].startswith("<think>\nLet me see.\n</think>")
        assert tokenizer.decode(row["response_tokens"]) == row["response"] + tokenizer.eos_token


def test_an_arm_s_own_file_is_checked_row_by_row(user_run, run_config, tools, tmp_path):
    good = {"question": "9 + 9 = ?", "response": "wait <answer>18</answer>"}
    good["spans"] = [{"start": 0, "end": 4, "behavior": "reflection"}]
    rows = [
        good,
        {"question": "3 - 1 = ?", "response": "<answer>2</answer>"},  # of the test set
        {"question": "8 + 9 = ?", "response": "word " * 100 + "<answer>17</answer>"},
        {"question": "no response", "answer": 2},
        {"question": "7 + 9 = ?", "answer": 16, "response": "<answer>17</answer>"},
    ]
    recipe = RecipeConfig(demonstrations=jsonl(tmp_path / "own.jsonl", rows))
    config, task, tokenizer = user_run
    write_problems(task, "sft", None, tokenizer, config.model, tmp_path / "sft")
    manifest = write_demonstrations(
        task, recipe, config, tmp_path / "sft", tokenizer, tmp_path / "own"
    )
    (row,) = Dataset.load_from_disk(str(tmp_path / "own"))
    assert row["id"] == "own-1"
    assert [Span(**span) for span in row["spans"]] == [Span(0, 4, "reflection")]
    assert manifest["behaviors_per_demonstration"] == {"reflection": 1}
    kept = [json.loads(line) for line in (tmp_path / "own/rejects.jsonl").read_text().splitlines()]
    reasons = {reject["line"]: reject["reason"] for reject in kept}
    assert "in the set test_id too" in reasons[2]
    assert reasons[3].startswith("demonstration too long")
    assert reasons[4].startswith("no chain of thought and no response")
    assert reasons[5].startswith("its response is not right")
    # and beside generated problems just so
    for name in ("sft", "test_id", "test_ood"):
        write_problems(tools[0], name, 3, tools[1], run_config.model, tmp_path / "data" / name)
    run = run_config.model_copy(update={"model": config.model})
    manifest = write_demonstrations(
        tools[0], recipe, run, tmp_path / "data/sft", tools[1], tmp_path / "generated"
    )
    assert manifest["demonstrations"] == 2


def test_an_arm_s_own_file_may_answer_a_question_in_several_ways(run_config, tools, tmp_path):
    rows = [
        {
            "question": f"{i} + 8 = ?",
            "response": f"<think>\nway {way}\n</think>\n<answer>{i + 8}</answer>",
        }
        for i in range(20)
        for way in range(2)
    ]
    recipe = RecipeConfig(demonstrations=jsonl(tmp_path / "own.jsonl", rows))
    for name in ("sft", "test_id", "test_ood"):
        write_problems(tools[0], name, 3, tools[1], run_config.model, tmp_path / "data" / name)
    manifest = write_demonstrations(
        tools[0], recipe, run_config, tmp_path / "data/sft", tools[1], tmp_path / "own"
    )
    assert (manifest["demonstrations"], manifest["problems"], manifest["rejected"]) == (40, 20, [])


def test_a_file_without_a_usable_demonstration_stops(user_run, tmp_path):
    config, task, tokenizer = user_run
    recipe = RecipeConfig(
        demonstrations=jsonl(tmp_path / "own.jsonl", [{"question": "?", "answer": 1}])
    )
    with pytest.raises(DataError, match=r"no demonstration can be used(.|\n)*no chain of thought"):
        write_demonstrations(task, recipe, config, tmp_path / "sft", tokenizer, tmp_path / "own")


@pytest.fixture
def write(run_config, tools, tmp_path):
    """``write(name)``: the manifest and the rows of a named recipe, on the same 40 problems."""
    write_problems(tools[0], "sft", 40, tools[1], run_config.model, tmp_path / "sft")

    def write_recipe(name):
        manifest = write_demonstrations(
            tools[0], RECIPES[name], run_config, tmp_path / "sft", tools[1], tmp_path / name
        )
        return manifest, Dataset.load_from_disk(str(tmp_path / name))

    return write_recipe


def test_token_spans_decode_to_what_the_character_spans_cover(tools, write):
    found = 0
    for row in write("bridge")[1]:
        assert [span["behavior"] for span in row["token_spans"]] == [
            span["behavior"] for span in row["spans"]
        ]
        for tokens, characters in zip(row["token_spans"], row["spans"], strict=True):
            text = tools[1].decode(row["response_tokens"][tokens["start"] : tokens["end"]])
            assert row["response"][characters["start"] : characters["end"]] in text
            found += 1
    assert found > 40


def test_vanilla_is_matched_in_tokens_by_more_problems(write):
    bridge, _ = write("bridge")
    matched, rows = write("vanilla_tokens")
    lengths = [len(row["response_tokens"]) for row in rows]
    assert matched["response_tokens"] == sum(lengths)
    assert abs(sum(lengths) - bridge["response_tokens"]) <= max(lengths) / 2
    assert matched["problems"] == len(rows) == len(set(rows["id"])) > 40
    assert len(set(rows["question"])) == len(rows)
    assert rows.select(range(40)).to_list() == write("vanilla")[1].to_list()
    assert not any(rows["spans"])


def test_filler_is_matched_row_by_row(write):
    (bridge, rows), (filler, filled) = write("bridge"), write("filler")
    assert filler["response_tokens"] == bridge["response_tokens"]
    assert [len(row["response_tokens"]) for row in filled] == [
        len(row["response_tokens"]) for row in rows
    ]


@pytest.mark.parametrize("name", ["pp_aug", "rc_aug"])
def test_copies_are_rows_of_their_own(tools, write, name):
    manifest, rows = write(name)
    assert (manifest["demonstrations"], manifest["problems"]) == (80, 40)
    assert len(set(rows["id"])) == 80
    assert rows["problem"][::2] == rows["problem"][1::2]
    different = "question" if name == "pp_aug" else "response"
    assert (
        sum(a != b for a, b in zip(rows[different][::2], rows[different][1::2], strict=True)) > 20
    )
    for row in rows:
        assert row["question"] in tools[1].decode(row["prompt_tokens"])


def test_a_token_match_with_an_easier_corpus_adds_nothing(run_config, tools, tmp_path):
    write_problems(tools[0], "sft", 5, tools[1], run_config.model, tmp_path / "sft")
    recipe = BRIDGE.model_copy(update={"same_total_as": VANILLA})
    manifest = write_demonstrations(
        tools[0], recipe, run_config, tmp_path / "sft", tools[1], tmp_path / "out"
    )
    assert manifest["demonstrations"] == 5
