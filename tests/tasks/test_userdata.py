import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import yaml
from datasets import Dataset

from bi_ray.answers.checker import AnswerChecker
from bi_ray.config.base import ConfigError
from bi_ray.config.run import RunConfig
from bi_ray.config.tasks import UserDataConfig
from bi_ray.reasoning.trace import Span
from bi_ray.rows.rejects import DataError, Rejects
from bi_ray.tasks.base import SPLIT_RANGES, ChecksAnswers, FiniteTask, text_hash
from bi_ray.tasks.registry import build_task, data_files, target_config
from bi_ray.tasks.userdata import UserDataTask

SETS = ("sft", "rl", "val", "val_ood", "test_id", "test_ood", "influence_target")


def sums(count, first=0):
    return [
        {
            "question": f"What is {i} + {i + 1}?",
            "answer": 2 * i + 1,
            "chain_of_thought": f"{i} + {i + 1} = {2 * i + 1}",
        }
        for i in range(first, first + count)
    ]


def jsonl(path, rows):
    path.write_text(
        "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows)
    )
    return str(path)


def task_of(seed=0, **options):
    return UserDataTask(UserDataConfig.model_validate({"kind": "jsonl"} | options), seed)


def one_set(path, name="rl", **options):
    return task_of(sets={name: {"path": path}}, **options)


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "directory"])
def test_a_file_of_every_kind_becomes_problems(kind, tmp_path):
    rows = sums(20)
    if kind == "jsonl":
        path = jsonl(tmp_path / "rows.jsonl", rows)
    elif kind == "parquet":
        path = str(tmp_path / "rows.parquet")
        parquet.write_table(pa.Table.from_pylist(rows), path)
    else:
        path = str(tmp_path / "rows")
        Dataset.from_list(rows).save_to_disk(path)
    task = one_set(path)
    assert isinstance(task, FiniteTask)
    assert isinstance(task, ChecksAnswers)
    problems = [task.problem("rl", i) for i in range(task.available("rl"))]
    assert sorted((p.question, p.answer) for p in problems) == sorted(
        (r["question"], str(r["answer"])) for r in rows
    )
    assert {p.id for p in problems} == {f"rl-{line}" for line in range(1, 21)}
    for problem in problems:
        assert problem.graph is None
        assert problem.id == f"rl-{problem.place.line}"
        assert rows[problem.place.line - 1]["question"] == problem.question
        assert task.answer_is_right(
            problem.response, problem.question, problem.answer, problem.reference
        )
    with pytest.raises(DataError, match="20 problems"):
        task.problem("rl", 20)


def test_one_file_is_split_by_its_questions_and_by_nothing_else(tmp_path):
    rows = sums(1000)
    task = task_of(path=jsonl(tmp_path / "a.jsonl", rows), sets={name: {} for name in SETS})
    questions = {
        name: [task.problem(name, i).question for i in range(task.available(name))] for name in SETS
    }
    assert sum(map(len, questions.values())) == 1000
    assert len({question for found in questions.values() for question in found}) == 1000
    assert not task.rejects.rows
    for name in SETS[1:]:
        assert all(int(text_hash(q), 16) % 1000 in SPLIT_RANGES[name] for q in questions[name])
        assert len(questions[name]) == pytest.approx(len(SPLIT_RANGES[name]), rel=0.5)
    assert 400 < len(questions["sft"]) < 600
    # the same in any order of the rows, beside any other rows, and under any seed but for the order
    fewer = task_of(path=jsonl(tmp_path / "b.jsonl", rows[500::-1]), sets={"rl": {}}, seed=1)
    again = {fewer.problem("rl", i).question for i in range(fewer.available("rl"))}
    assert again == {row["question"] for row in rows[:501]} & set(questions["rl"])


def test_the_seed_orders_a_set_and_nothing_else(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", sums(50))
    first, same, other = (one_set(path, seed=seed) for seed in (0, 0, 1))
    ids = [[task.problem("rl", i).id for i in range(50)] for task in (first, same, other)]
    assert ids[0] == ids[1] != ids[2]
    assert sorted(ids[0]) == sorted(ids[2])


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{", "not valid JSON"),
        ('"text"', "not a JSON object: found str"),
        ({"answer": 3}, "no question (field 'question'): the row has 'answer'"),
        ({"question": " ", "answer": 3}, "no question"),
        (
            {"question": ["a"], "answer": 3},
            "field 'question' has to be text or a number, found a list",
        ),
        ({"question": "q"}, "no answer (field 'answer')"),
        ({"question": "q", "answer": None}, "no answer"),
        ({"question": "q", "answer": ""}, "no answer"),
        (
            {"question": "q", "answer": {"value": 3}},
            "field 'answer' has to be text or a number, found an object",
        ),
        ({"question": "What is 0 + 1?", "answer": 1}, "duplicate question: the same as in line 1"),
        ({"question": "WHAT IS  0 + 1?", "answer": 1}, "duplicate question: the same as in line 1"),
        (
            {"question": "q", "answer": "three"},
            "the answer is not a number, which checker numeric needs: 'three'",
        ),
        (
            {"question": "q", "answer": 3, "response": "<answer>4</answer>"},
            "its response is not right: the answer is '3'",
        ),
        ({"question": "q", "answer": 3, "response": "3"}, "it gives None"),
        (
            {"question": "q", "response": "<answer>3</answer>", "spans": [{"start": 0}]},
            "spans are not a list of start, end and behavior",
        ),
        (
            {
                "question": "q",
                "response": "<answer>3</answer>",
                "spans": [{"start": 0, "end": 99, "behavior": "x"}],
            },
            "spans overlap, are empty or lie outside",
        ),
        (
            {
                "question": "q",
                "response": "<answer>3</answer>",
                "spans": [
                    {"start": 0, "end": 5, "behavior": "x"},
                    {"start": 4, "end": 9, "behavior": "y"},
                ],
            },
            "spans overlap",
        ),
    ],
)
def test_a_bad_row_is_left_out_with_its_reason(tmp_path, row, reason):
    rows = [*sums(3), row, *sums(2, first=10)]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    task = one_set(path, answer={"checker": "numeric"})
    assert task.available("rl") == 5
    (reject,) = task.rejects.rows
    assert (reject.file, reject.line) == (path, 4)
    assert reason in reject.reason
    strict = one_set(path, answer={"checker": "numeric"}, strict=True)
    with pytest.raises(DataError, match=r"rows.jsonl, line 4: "):
        strict.available("rl")


def test_sft_needs_demonstrations_and_other_sets_do_not(tmp_path):
    rows = sums(4)
    del rows[1]["chain_of_thought"]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    task = task_of(sets={"sft": {"path": path}, "rl": {"path": path}})
    assert (task.available("rl"), task.available("sft")) == (4, 3)
    assert [(reject.line, reject.reason[:19]) for reject in task.rejects.rows] == [
        (2, "no chain of thought")
    ]
    problem = next(p for p in (task.problem("sft", i) for i in range(3)) if p.id == "sft-1")
    assert (
        problem.response == "<think>\n0 + 1 = 1\n</think>\n<answer> The final answer is 1 </answer>"
    )


def test_nothing_is_trained_on_that_is_tested_with(tmp_path):
    train, test = (
        jsonl(tmp_path / "train.jsonl", sums(10)),
        jsonl(tmp_path / "test.jsonl", sums(10, first=8)),
    )
    sets = {"sft": {"path": train}, "rl": {"path": train}, "test_id": {"path": test}}
    task = task_of(sets=sets)
    assert [task.available(name) for name in ("sft", "rl", "test_id")] == [8, 8, 10]
    assert {reject.line for reject in task.rejects.rows} == {9, 10}
    assert all("in the set test_id too" in reject.reason for reject in task.rejects.rows)


def test_the_answer_may_stand_in_the_response_alone(tmp_path):
    rows = [
        {"question": "How many?", "answer": "2 + 3 = 5\n#### 5"},
        {"question": "And now?", "answer": "no idea"},
    ]
    task = one_set(
        jsonl(tmp_path / "rows.jsonl", rows),
        name="sft",
        fields={"answer": "none", "response": "answer"},
        answer={"extract": "hashes", "checker": "numeric"},
    )
    assert task.available("sft") == 1
    problem = task.problem("sft", 0)
    assert (problem.answer, problem.response) == ("5", rows[0]["answer"])
    assert "#### " not in problem.answer
    assert task.system_prompt.endswith("after ####.")


def test_fields_have_the_names_that_they_have(tmp_path):
    rows = [{"prompt": "How many?", "gold": 5, "reasoning": "2 + 3 = 5"}]
    fields = {"question": "prompt", "answer": "gold", "chain_of_thought": "reasoning"}
    task = one_set(jsonl(tmp_path / "rows.jsonl", rows), fields=fields, answer={"extract": "boxed"})
    problem = task.problem("rl", 0)
    assert (problem.question, problem.answer) == ("How many?", "5")
    assert problem.response == "2 + 3 = 5\nThe answer is \\boxed{5}."


def test_spans_of_an_injected_response_are_kept(tmp_path):
    response = "<think>\nwait, no\n2 + 3 = 5\n</think>\n<answer> The final answer is 5 </answer>"
    spans = [
        {"start": 17, "end": 26, "behavior": "subgoal"},
        {"start": 8, "end": 16, "behavior": "reflection"},
    ]
    path = jsonl(
        tmp_path / "injected.jsonl", [{"question": "q", "response": response, "spans": spans}]
    )
    rejects = Rejects()
    (row,) = one_set(path).read_demonstrations(path, rejects)
    assert row.spans == (Span(8, 16, "reflection"), Span(17, 26, "subgoal"))
    assert row.answer == "5"
    assert not rejects.rows


def test_a_function_that_fails_over_a_row_is_a_bad_row_and_one_that_is_not_there_stops(
    tmp_path, monkeypatch
):
    (tmp_path / "checks_of_rows.py").write_text(
        "def check(question, answer, response):\n    return 1 / int(answer) > 0\n"
    )
    monkeypatch.chdir(tmp_path)
    path = jsonl(
        tmp_path / "rows.jsonl",
        [{"question": f"q{i}", "answer": i, "response": "x"} for i in (0, 1)],
    )
    task = one_set(path, answer={"checker": "function", "function": "checks_of_rows:check"})
    assert task.available("rl") == 1
    assert "ZeroDivisionError" in task.rejects.rows[0].reason
    with pytest.raises(ConfigError, match="does not import"):
        one_set(path, answer={"checker": "function", "function": "no_such_module:check"}).available(
            "rl"
        )


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        one_set(str(tmp_path / "absent.jsonl")).available("rl")
    with pytest.raises(ConfigError, match=r"task.sets lacks val"):
        one_set(jsonl(tmp_path / "rows.jsonl", sums(1))).available("val")


def test_the_target_of_influence_is_a_set_or_a_part_of_the_one_file(tmp_path):
    path, other = (
        jsonl(tmp_path / "a.jsonl", sums(1000)),
        jsonl(tmp_path / "b.jsonl", sums(7, first=5000)),
    )
    config = UserDataConfig(kind="jsonl", path=path, sets={"rl": {}})
    task = build_task(target_config(config, None, 5), 0)
    assert 20 < task.available("influence_target") < 90
    own = UserDataConfig(
        kind="jsonl", sets={"rl": {"path": path}, "influence_target": {"path": other}}
    )
    assert build_task(target_config(own, None, 5), 0).available("influence_target") == 7
    assert data_files(own).keys() == {path, other}
    assert len(set(data_files(own).values())) == 2


def test_free_text_has_no_trace(tmp_path):
    task = one_set(jsonl(tmp_path / "a.jsonl", sums(1)))
    assert task.parse_trace("<think>\nx\n</think>") == []
    assert task.behavior_spans("wait, no") == []
    with pytest.raises(ValueError, match="free text"):
        task.render([], None)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sets": {"rl": {}}}, "set rl: set its path"),
        ({"path": "a.jsonl", "sets": {"pretrain": {}}}, "set pretrain"),
        ({"path": "a.jsonl", "sets": {"rl": {"problems": 0}}}, "greater than 0"),
        ({"path": "a.jsonl", "sets": {"rll": {}}}, "rll"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(ValueError, match=words):
        UserDataConfig(kind="jsonl", **options)


def test_the_examples_of_the_documentation_are_good():
    text = (Path(__file__).parents[2] / "docs/data.md").read_text()
    first, *more = [
        yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    ]
    config = RunConfig.model_validate(first)
    assert config.task.answer.checker == "math"
    assert len(more) == 3
    sets = {name: {} for name in ("sft", "rl", "test_id")}
    for part in more:
        whole = first | {"task": first["task"] | {"sets": sets}} | part
        if part.get("task", {}).get("kind") == "jsonl":
            whole["task"] = part["task"] | {"path": "a.jsonl", "sets": sets}
        RunConfig.model_validate(whole)
        if whole["task"]["kind"] == "reasoning_gym":
            pytest.importorskip("reasoning_gym")
            assert build_task(RunConfig.model_validate(whole).task, 0).problem("test_ood", 0).answer


def test_several_demonstrations_of_one_question_are_all_kept_and_asked_once(tmp_path):
    rows = [
        {
            "question": f"{i} + 1?",
            "answer": i + 1,
            "response": f"<think>\nway {way}\n</think>\n<answer>{i + 1}</answer>",
        }
        for i in range(5)
        for way in (1, 2, 2, 3)  # rejection sampling gives the same one twice, too
    ]
    path = jsonl(tmp_path / "rows.jsonl", rows)
    rejects = Rejects()
    assert len(one_set(path).read_demonstrations(path, rejects)) == 20
    assert rejects.rows == []
    task = task_of(sets={"sft": {"path": path}})
    assert task.available("sft") == 20
    assert len({task.problem("sft", index).id for index in range(20)}) == 20
    for name in ("rl", "test_id", "val"):
        task = one_set(path, name)
        assert task.available(name) == 5
        assert [reject.reason for reject in task.rejects.rows[:3]] == [
            "duplicate question: the same as in line 1"
        ] * 3


def test_rows_of_one_question_are_all_in_the_same_set(tmp_path):
    rows = [
        {"question": question, "answer": i, "response": f"<think>{way}</think><answer>{i}</answer>"}
        for i in range(100)
        for way, question in enumerate((f"Compute {i}².", f"compute  {i}²."))
    ]
    task = task_of(path=jsonl(tmp_path / "a.jsonl", rows), sets={name: {} for name in SETS})
    asked = {
        name: [task.problem(name, i).question for i in range(task.available(name))] for name in SETS
    }
    hashes = {
        name: {text_hash(question) for question in questions} for name, questions in asked.items()
    }
    assert sum(map(len, hashes.values())) == len(set().union(*hashes.values())) == 100
    assert len(asked["sft"]) == 2 * len(hashes["sft"])
    assert all(len(asked[name]) == len(hashes[name]) for name in SETS if name != "sft")


def test_questions_that_differ_in_a_raised_digit_are_no_duplicates(tmp_path):
    rows = [{"question": "Compute 2³.", "answer": 8}, {"question": "Compute 23.", "answer": 23}]
    assert one_set(jsonl(tmp_path / "rows.jsonl", rows)).available("rl") == 2


@pytest.mark.parametrize("checker", ["exact", "numeric"])
@pytest.mark.parametrize("method", ["fault_of", "is_right"])
def test_a_check_in_this_process_that_fails_is_a_bad_row_with_a_traceback(
    checker, method, tmp_path, monkeypatch, caplog
):
    check = getattr(AnswerChecker, method)

    def fails_once(self, *arguments):
        if arguments[-1] == "3":
            raise RecursionError("too deep\nfor this")
        return check(self, *arguments)

    monkeypatch.setattr(AnswerChecker, method, fails_once)
    path = jsonl(tmp_path / "rows.jsonl", sums(4))
    task = one_set(path, answer={"checker": checker, "extract": "hashes"})
    assert task.available("rl") == 3
    (reject,) = task.rejects.rows
    reason = "the check of the answer raised RecursionError: too deep for this"
    assert (reject.line, reject.reason) == (2, reason)
    (record,) = caplog.records
    assert record.exc_info
