import math
import time

import numpy as np
import pytest

from bi_ray.config.base import ConfigError
from bi_ray.config.evaluation import VerifierConfig
from bi_ray.config.recipes import BRIDGE
from bi_ray.config.tasks import DifficultyConfig, PromptBenchConfig, UserDataConfig
from bi_ray.data.problems import ProblemRow
from bi_ray.injection.recipes import Recipe
from bi_ray.reasoning.trace import StepKind
from bi_ray.tasks.promptbench.task import PromptBenchTask
from bi_ray.tasks.userdata import UserDataTask
from bi_ray.verification.verdicts import (
    DataFailure,
    Judge,
    Verdict,
    VerificationItem,
    Verifier,
    load_reward_function,
)

TASK = PromptBenchTask(
    PromptBenchConfig(
        sets={"sft": DifficultyConfig(depth=4, redundant_nodes=(2, 6))}, max_abs_value=100
    ),
    seed=0,
)
PROBLEM = TASK.problem("sft", 0)
GOOD = Recipe(BRIDGE, seed=0).demonstrate(TASK, PROBLEM).response


def verdict_of(
    response: str, truncated: bool = False, format_reward: float = 0.0, **options
) -> Verdict:
    judge = Judge(TASK, VerifierConfig(**options), format_reward)
    return judge(item_of(response, truncated))


def item_of(response: str, truncated: bool = False) -> VerificationItem:
    return VerificationItem(
        PROBLEM.question, PROBLEM.graph.to_json(), PROBLEM.answer, response, truncated
    )


def test_every_demonstration_is_right_valid_and_counted():
    counted = {"reflection": 0, "analysis": 0, "subgoal": 0}
    for i in range(60):
        problem = TASK.problem("sft", i)
        demonstration = Recipe(BRIDGE, seed=0).demonstrate(TASK, problem)
        row = ProblemRow(problem.id, problem.question, problem.answer, problem.graph.to_json(), ())
        verdict = Judge(TASK)(VerificationItem.of(row, demonstration.response, truncated=False))
        spans = [span.behavior for span in demonstration.spans]
        assert verdict == Verdict(
            reward=1.0,
            right=True,
            format_right=True,
            truncated=False,
            trace_valid=True,
            trace_fault=None,
            reflections=spans.count("reflection"),
            analyses=spans.count("analysis"),
            subgoals=spans.count("subgoal"),
            first_bad_step=None,
            progress=1.0,
            right_reflections=spans.count("reflection"),
        )
        counted = {name: count + spans.count(name) for name, count in counted.items()}
    assert min(counted.values()) > 10


def test_a_wrong_answer_under_a_valid_trace():
    response = GOOD.replace(
        f"answer is {PROBLEM.answer} <", f"answer is {int(PROBLEM.answer) + 1} <"
    )
    verdict = verdict_of(response)
    assert (verdict.reward, verdict.right, verdict.format_right, verdict.trace_valid) == (
        0.0,
        False,
        True,
        True,
    )


def test_a_right_answer_under_an_invalid_trace():
    verdict = verdict_of(GOOD.replace("Let's solve", "Let us solve", 1))
    assert (verdict.reward, verdict.right, verdict.trace_valid) == (1.0, True, False)
    assert "no line of a known form" in verdict.trace_fault
    assert verdict.subgoals > 0  # the rest of the trace is still counted


def test_a_truncated_output_is_wrong_whatever_it_says():
    verdict = verdict_of(GOOD, truncated=True, format_reward=0.05)
    assert (verdict.reward, verdict.right, verdict.format_right, verdict.truncated) == (
        0.0,
        False,
        False,
        True,
    )
    assert verdict.trace_valid


def test_the_format_reward_is_added_where_the_format_is_right():
    wrong = GOOD.replace(f"answer is {PROBLEM.answer} <", "answer is 99999 <")
    assert verdict_of(GOOD, format_reward=0.05).reward == 1.05
    assert verdict_of(wrong, format_reward=0.05).reward == 0.05
    assert verdict_of(GOOD + " so", format_reward=0.05).reward == 1.0
    assert verdict_of("", format_reward=0.05).reward == 0.0


def test_a_trace_is_graded_up_to_its_first_bad_line():
    lines = GOOD.split("\n")  # <think>, the lines, </think>, the answer
    steps = TASK.parse_trace(GOOD)
    place = next(i for i, step in enumerate(steps) if i > 2 and step.kind is StepKind.SOLVE)
    verdict = verdict_of("\n".join([*lines[: place + 1], "hmm", *lines[place + 1 :]]))
    solved = sum(step.kind is StepKind.SOLVE for step in steps[:place])
    assert (verdict.right, verdict.trace_valid, verdict.first_bad_step) == (True, False, place)
    assert verdict.progress == solved / len(PROBLEM.graph.needed)
    assert verdict.right_reflections == sum(step.kind is StepKind.ATTEMPT for step in steps[:place])
    assert verdict.reflections == sum(step.kind is StepKind.ATTEMPT for step in steps)


def test_the_trace_is_rewarded_where_the_configuration_says_so():
    broken = GOOD.replace("\n</think>", "\nhmm\n</think>")  # every quantity is solved before it
    early = "<think>\nhmm" + GOOD.removeprefix("<think>")
    assert verdict_of(GOOD, trace_reward=0.2).reward == pytest.approx(1.2)
    assert verdict_of(broken, trace_reward=0.2).reward == pytest.approx(1.2)
    assert verdict_of(broken, trace_reward=0.2, trace_reward_of="valid").reward == 1.0
    assert verdict_of(early, trace_reward=0.2).reward == 1.0
    assert verdict_of(GOOD, truncated=True, trace_reward=0.2).reward == 0.0
    config = VerifierConfig(trace_reward=0.25, trace_reward_of="valid")
    assert [v.reward for v in Verifier(TASK, config).score([item_of(GOOD), item_of(broken)])] == [
        1.25,
        1.0,
    ]


@pytest.mark.parametrize(
    "text", ["", "\n", "9" * 20_000, "<think>" * 5000, "Let's solve aaa, " * 3000, "\x00 é ٣"]
)
def test_no_text_breaks_the_verifier(text):
    verdict = verdict_of(
        f"<think>\n{text}\n</think>\n<answer> The final answer is {text} </answer>"
    )
    assert not verdict.right
    assert not verdict.trace_valid


# --- reward functions of the user

MODULE = """
import time, sys
def half(question, answer, response): return 0.5
def length(*, question, answer, response):
    return len(response) + 10 * len(answer) + 100 * question.startswith("The value")
def raises(question, answer, response): raise KeyError("no such thing")
def exits(question, answer, response): sys.exit(3)
def positional(a, b): return 1.0
def slow_once(question, answer, response):
    if "slow" in response: time.sleep(5)
    return 1.0
constant = 3
"""


@pytest.fixture
def verifier_of(tmp_path, monkeypatch):
    (tmp_path / "user_rewards.py").write_text(MODULE)
    (tmp_path / "broken_rewards.py").write_text("import no_such_module")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    made: list[Verifier] = []

    def make(
        function: str | None, format_reward: float = 0.0, timeout: float = 0.3, task=TASK
    ) -> Verifier:
        path = function and f"user_rewards:{function}"
        config = VerifierConfig(reward_function=path, sample_timeout_s=timeout)
        made.append(Verifier(task, config, format_reward))
        return made[-1]

    yield make
    for verifier in made:
        verifier.close()


def test_without_a_function_the_exact_match_rewards(verifier_of):
    (right, wrong) = verifier_of(None).score([item_of(GOOD), item_of("")])
    assert (right.reward, wrong.reward) == (1.0, 0.0)


def test_a_function_gets_question_answer_and_response_and_gives_the_reward(verifier_of):
    (verdict,) = verifier_of("length", format_reward=0.5).score([item_of(GOOD)])
    assert verdict.reward == len(GOOD) + 10 * len(PROBLEM.answer) + 100 + 0.5
    assert verdict.right


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        ("raises", "the reward function raised KeyError: 'no such thing'"),
        ("exits", "the reward function raised SystemExit: 3"),
        ("positional", "the reward function raised TypeError"),
    ],
)
def test_a_failing_function_is_a_data_failure_and_never_a_reward(verifier_of, function, reason):
    (outcome,) = verifier_of(function).score([item_of(GOOD)])
    assert isinstance(outcome, DataFailure)
    assert reason in outcome.reason


def test_only_the_slow_sample_fails(verifier_of):
    began = time.monotonic()
    outcome = verifier_of("slow_once").score([item_of(GOOD), item_of("slow"), item_of(GOOD)])
    assert [type(one) for one in outcome] == [Verdict, DataFailure, Verdict]
    assert outcome[1].reason == "the reward function took longer than 0.3 s"
    assert time.monotonic() - began < 5


def test_the_function_is_not_asked_about_a_truncated_response(verifier_of):
    (outcome,) = verifier_of("raises").score([item_of(GOOD, truncated=True)])
    assert outcome.reward == 0.0
    assert outcome.truncated


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("user_rewards", "is not an import path; write package.module:function"),
        ("user_rewards:", "is not an import path"),
        (":half", "is not an import path"),
        ("no_such_rewards:half", "no_such_rewards does not import: ModuleNotFoundError"),
        (
            "broken_rewards:half",
            "broken_rewards does not import: ModuleNotFoundError: No module named 'no_such_module'",
        ),
        ("user_rewards:half_", "user_rewards has no function 'half_'"),
        ("user_rewards:constant", "user_rewards has no function 'constant'"),
    ],
)
def test_a_wrong_import_path_is_one_clear_line(verifier_of, path, words):
    with pytest.raises(ConfigError) as caught:
        load_reward_function(path)
    assert words in str(caught.value)
    assert path in str(caught.value)
    assert "\n" not in str(caught.value)


def test_verdicts_are_plain_numbers():
    """They travel between processes and into JSON."""
    verdict = verdict_of(GOOD)
    assert all(not isinstance(getattr(verdict, name), np.generic) for name in Verdict.__slots__)
    assert math.isfinite(verdict.reward)


def text_task(**answer):
    return UserDataTask(
        UserDataConfig(kind="jsonl", answer=answer, path="unread.jsonl", sets={"rl": {}}), seed=0
    )


def text_item(response, answer="1/2", truncated=False):
    return VerificationItem("?", "", answer, response, truncated)


def test_without_a_graph_the_answer_is_checked_and_the_trace_is_not():
    verifier = Verifier(text_task(checker="numeric"), VerifierConfig(), format_reward=0.25)
    whole = "<think>half</think><answer>0.5</answer>"
    right, wrong, cut = verifier.score(
        [text_item(whole), text_item("<answer>0.6</answer>"), text_item(whole, truncated=True)]
    )
    assert (right.reward, right.right, right.format_right) == (1.25, True, True)
    assert (right.trace_valid, right.trace_fault) == (None, None)
    assert (wrong.reward, wrong.right, wrong.format_right, wrong.trace_valid) == (
        0.0,
        False,
        False,
        None,
    )
    assert (cut.reward, cut.right) == (0.0, False)


def test_a_reward_function_and_the_check_of_the_answer_are_two_things(verifier_of):
    verifier = verifier_of("half", task=text_task(checker="numeric"))
    right, wrong = verifier.score(
        [text_item("<answer>0.5</answer>"), text_item("<answer>0.6</answer>")]
    )
    assert (right.reward, right.right) == (0.5, True)
    assert (wrong.reward, wrong.right) == (0.5, False)


def test_a_verdict_keeps_what_the_answer_alone_is_worth(verifier_of):
    whole = "<think>half</think><answer>0.5</answer>"
    verifier = Verifier(text_task(checker="numeric"), VerifierConfig(), format_reward=0.25)
    items = [text_item(whole), text_item("<answer>0.6</answer>"), text_item(whole, truncated=True)]
    assert [verdict.answer_reward for verdict in verifier.score(items)] == [1.0, 0.0, 0.0]
    verifier = verifier_of("half", format_reward=0.25, task=text_task(checker="numeric"))
    assert [verdict.answer_reward for verdict in verifier.score(items)] == [0.5, 0.5, 0.0]


def test_mathematics_that_never_ends_is_a_data_failure_and_spoils_no_other():
    verifier = Verifier(
        text_task(checker="math", extract="boxed"), VerifierConfig(sample_timeout_s=3)
    )
    endless, right, wrong = verifier.score(
        [
            text_item(rf"\boxed{{{text}}}")
            for text in (r"9^{9^{9^{9}}}", r"\frac{2}{4}", r"\frac{2}{5}")
        ]
    )
    assert endless == DataFailure("the check of the answer took longer than 3 s")
    assert (right.right, wrong.right) == (True, False)


def test_a_check_that_fails_is_a_data_failure_and_never_a_wrong_answer(tmp_path, monkeypatch):
    (tmp_path / "failing_checks.py").write_text(
        "def check(question, answer, response):\n    return {'yes': True, 'no': False, "
        "'half': 0.5}[response]\n"
    )
    monkeypatch.chdir(tmp_path)
    verifier = Verifier(
        text_task(checker="function", function="failing_checks:check"), VerifierConfig()
    )
    yes, no, half, odd = verifier.score(
        [text_item(response) for response in ("yes", "no", "half", "odd")]
    )
    assert (yes.right, no.right) == (True, False)
    assert half == DataFailure(
        "the check of the answer raised AnswerError: failing_checks:check returned 0.5; "
        "return True or False "
        "(graded rewards: verifier.reward_function)"
    )
    assert odd == DataFailure("the check of the answer raised KeyError: 'odd'")


def test_an_item_takes_what_a_row_has():
    row = ProblemRow("rl-1", "?", "5", "", (1, 2), reference="seed 3")
    assert VerificationItem.of(row, "<answer>5</answer>", False) == VerificationItem(
        "?", "", "5", "<answer>5</answer>", False, "seed 3"
    )
