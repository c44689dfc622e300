"""What an evaluation is worth when requests or judgments fail."""

import asyncio

import pytest

from actors.driver.sampling import describe_failures, evaluate, evaluation_requests
from actors.rollout.generation import FailedGroup
from bi_ray.batches.rollout import Group, Sample
from bi_ray.config.evaluation import EvaluationConfig
from bi_ray.config.run import ModelConfig
from bi_ray.data.problems import ProblemRow
from bi_ray.policy.version import PolicyVersion
from bi_ray.verification.verdicts import DataFailure, Verdict, VerdictError

PROBLEMS = [ProblemRow(str(number), "question", "1", "", (1, 2)) for number in range(4)]
REQUESTS = evaluation_requests(
    PROBLEMS, EvaluationConfig(samples_per_prompt=0), ModelConfig(path="unread"), seed=0
)
RAISED = DataFailure("the reward function raised ValueError: no", "mine.py:7")


class World:
    """Engines and a verifier; ``failed`` and ``verdicts`` say what becomes of each problem."""

    def __init__(self, failed=None, verdicts=None, truncated=()):
        self.failed = failed or {}
        self.verdicts = verdicts or {}
        self.truncated = truncated

    async def generate(self, requests, on_group=None):
        return [self._answer(request) for request in requests]

    def _answer(self, request):
        name = request.key.split("/")[1]
        if name in self.failed:
            return FailedGroup(request.key, self.failed[name], "it kills engines")
        sample = Sample([1], [0.0], name, name in self.truncated, PolicyVersion(1, 0))
        return Group(request.key, request.prompt_tokens, [sample])

    async def score(self, items):
        right = [Verdict(1.0, not item.truncated, True, item.truncated, None) for item in items]
        return [
            self.verdicts.get(item.response, verdict)
            for item, verdict in zip(items, right, strict=True)
        ]

    def rows(self):
        return asyncio.run(evaluate(self, self, PROBLEMS, REQUESTS))


def test_failures_of_requests_and_of_judgments_are_rows_and_are_named():
    rows = World(failed={"0": "data"}, verdicts={"1": RAISED}).rows()
    assert [row["failure"] for row in rows] == [
        "data: it kills engines",
        "data: the reward function raised ValueError: no (mine.py:7)",
        None,
        None,
    ]
    assert (
        describe_failures(rows)
        == "2 of 4 responses have no verdict and are left out; 1 of them: data: it kills engines"
    )
    assert describe_failures(rows[2:]) is None


def test_one_request_that_engines_lost_makes_the_evaluation_fail():
    with pytest.raises(
        VerdictError, match="1 of 4 groups of responses were lost, greedy/2 first: it kills engines"
    ):
        World(failed={"2": "infrastructure"}).rows()


def test_an_evaluation_in_which_nothing_could_be_judged_fails_and_says_why_once():
    with pytest.raises(VerdictError) as caught:
        World(verdicts=dict.fromkeys("0123", RAISED)).rows()
    assert str(caught.value) == (
        "none of 4 responses could be judged: the reward function raised ValueError: no "
        "(mine.py:7); fix it and run the same command again"
    )


def test_truncated_responses_do_not_show_that_the_check_works():
    with pytest.raises(VerdictError, match="none of 2 responses"):
        World(verdicts=dict.fromkeys("01", RAISED), truncated="23").rows()
    assert len(World(truncated="0123").rows()) == 4  # all wrong, which needs no check


def test_requests_that_all_fail_make_the_evaluation_fail():
    with pytest.raises(VerdictError, match="none of 4 responses could be judged: it kills engines"):
        World(failed=dict.fromkeys("0123", "data")).rows()
