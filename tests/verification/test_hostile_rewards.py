"""Reward functions of all characters, through the verifier's own process: each spoils its own
response alone.
"""

import pytest
import torch

import bi_ray
from bi_ray.config.evaluation import VerifierConfig
from bi_ray.config.tasks import UserDataConfig
from bi_ray.rows.rejects import Rejects
from bi_ray.tasks.userdata import UserDataTask
from bi_ray.verification.verdicts import DataFailure, Verdict, VerificationItem, Verifier, reward_of
from tests.integration import reward_functions
from tests.integration.reward_functions import BAD_VALUES, HOSTILE, SELFISH, VALUES

LIMITS = {"sample_timeout_s": 0.5, "memory_mib": 320}
FEW = [
    reward_functions.raises,
    reward_functions.exits_at_once,
    reward_functions.swallows_everything,
]


def task_of(**answer):
    return UserDataTask(
        UserDataConfig(kind="jsonl", answer=answer, path="unread.jsonl", sets={"rl": {}}), seed=0
    )


def item_of(response):
    return VerificationItem("?", "", "1", response, truncated=False)


def score(function, responses, **limits):
    path = f"{reward_functions.__name__}:{function}"
    verifier = Verifier(task_of(), VerifierConfig(**LIMITS | limits, reward_function=path))
    try:
        return verifier.score([item_of(response) for response in responses])
    finally:
        verifier.close()


def assert_right(verdicts):
    assert all(isinstance(verdict, Verdict) and verdict.reward == 1.0 for verdict in verdicts), (
        verdicts
    )


@pytest.mark.parametrize(
    "functions", [FEW, pytest.param(list(HOSTILE), marks=pytest.mark.slow)], ids=["few", "all"]
)
def test_a_hostile_function_spoils_its_own_response_alone(functions):
    pairs = [text for function in functions for text in (f"guilty {function.__name__}", "fine")]
    first, *verdicts = score(
        "hostile", ["fine", *pairs], sample_timeout_s=4.0 if len(functions) > 5 else 0.5
    )
    assert_right([first, *verdicts[1::2]])
    for function, guilty in zip(functions, verdicts[::2], strict=True):
        assert isinstance(guilty, DataFailure), function
        assert guilty.reason.startswith(f"the reward function {HOSTILE[function]}")
        assert "\n" not in guilty.reason
        assert len(guilty.reason) < 400


def test_functions_that_leave_things_behind_spoil_nothing():
    responses = [f"guilty {function.__name__}" for function in SELFISH]
    assert_right(
        score("hostile", [text for response in responses for text in (response, "fine", "fine")])
    )


def test_the_place_that_raised_is_named():
    _, guilty = score("hostile", ["fine", "guilty raises"])
    line = reward_functions.raises.__code__.co_firstlineno + 1
    assert guilty.where == f"{reward_functions.__file__}:{line}"


def test_any_number_is_a_reward():
    verdicts = score("value", [f"value {name}" for name in VALUES])
    assert [verdict.reward for verdict in verdicts] == [reward for _, reward in VALUES.values()]
    assert all(type(verdict.reward) is float for verdict in verdicts)
    assert reward_of(torch.tensor(0.25, dtype=torch.bfloat16, requires_grad=True)) == 0.25
    assert reward_of(torch.tensor(True)) == 1.0


def test_anything_else_is_a_data_failure_with_its_reason():
    *failures, last = score("value", [*(f"value {name}" for name in BAD_VALUES), "fine"])
    for failure, (_, words) in zip(failures, BAD_VALUES.values(), strict=True):
        assert isinstance(failure, DataFailure)
        assert failure.reason.endswith(words), failure
    assert_right([last])


def test_a_first_call_may_load_for_longer_than_a_call_may_take():
    """In every new process: the one that takes the place of a killed one is warm before a limit
    counts.
    """
    *right, guilty, after, last = score(
        "loads_first", ["fine", "fine", "guilty sleeps", "fine", "fine"]
    )
    assert_right([*right, after, last])
    assert "took longer than 0.5 s" in guilty.reason


def test_a_call_that_imports_may_load_wherever_it_comes(tmp_path, monkeypatch):
    """An early return has warmed nothing."""
    (tmp_path / "slow_library.py").write_text("import time\ntime.sleep(1.5)\nvalue = 1.0\n")
    (tmp_path / "lazy_rewards.py").write_text(
        "def reward(question, answer, response):\n"
        "    if 'answer' not in response:\n        return 0.0\n"
        "    import slow_library\n    return slow_library.value\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    verifier = Verifier(task_of(), VerifierConfig(**LIMITS, reward_function="lazy_rewards:reward"))
    verdicts = verifier.score(
        [item_of(response) for response in ("none", "answer", "answer", "none")]
    )
    verifier.close()
    assert [verdict.reward for verdict in verdicts] == [0.0, 1.0, 1.0, 0.0]


@pytest.mark.slow
def test_a_function_that_always_hangs_costs_its_loading_time_twice_and_no_more():
    responses = ["guilty sleeps"] * 5
    failures = score("hostile", responses, start_timeout_s=3.0)
    words = ["took longer than 3 s, loading included (verifier.start_timeout_s)"] * 2 + [
        "took longer than 0.5 s"
    ] * 3
    assert all(text in failure.reason for text, failure in zip(words, failures, strict=True))


def test_a_checker_of_answers_is_guarded_in_the_same_way_by_check():
    task = task_of(checker="function", function=f"{reward_functions.__name__}:hostile")
    responses = [
        "fine",
        "guilty raises",
        "fine",
        "guilty has_its_own_alarm",
        "guilty leaves_an_alarm",
        "fine",
    ]
    rows = [{"question": "?", "answer": "1", "response": response} for response in responses]
    rejects = Rejects()
    graded = bi_ray.check(rows, task=task, rejects=rejects, verifier=VerifierConfig(**LIMITS))
    assert graded["right"] == [True] * 4
    assert [reject.line for reject in rejects.rows] == [2, 4]
    assert "the check of the answer raised ValueError: cannot score this" in rejects.rows[0].reason
    assert "the check of the answer took longer than 0.5 s" in rejects.rows[1].reason
