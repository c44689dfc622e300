"""Samples with verdicts: judged groups, and the evaluation of a policy on a set of problems."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from actors.driver.progress import Progress
from actors.driver.verifier import VerifierClient
from actors.rollout.generation import FailedGroup
from actors.rollout.pool import RolloutPool
from bi_ray.batches.rollout import Group, GroupRequest, Sample, SamplingConfig, seed_for
from bi_ray.config.evaluation import EvaluationConfig
from bi_ray.config.run import ModelConfig, RunConfig
from bi_ray.data.problems import ProblemRow
from bi_ray.verification.verdicts import (
    DataFailure,
    Verdict,
    VerdictError,
    VerificationItem,
    require_verdicts,
)

GREEDY = "greedy"
SAMPLED = "sampled"
Outcome = Verdict | DataFailure
JudgedGroup = tuple[Group, list[Outcome]]
JsonRow = dict[str, Any]  # of an evaluation's file: see ``bi_ray.verification.samples.SampleRow``


def refuse_lost(answers: Sequence[Group | FailedGroup]) -> None:
    """Refuse answers of which engines lost one: the result would depend on what died.

    Raises:
        VerdictError: one was lost. A request that failed by its own fault does not count.
    """
    failed = [answer for answer in answers if isinstance(answer, FailedGroup)]
    lost = [answer for answer in failed if answer.kind == "infrastructure"]
    if lost:
        first = lost[0]
        raise VerdictError(
            f"{len(lost)} of {len(answers)} groups of responses were lost, {first.key} first: "
            f"{first.reason}; run the same command again"
        )


def require_some(answers: Sequence[Group | FailedGroup], verdicts: Sequence[Outcome]) -> None:
    """See ``require_verdicts``; a failed request counts as a response that could not be judged."""
    failed = [DataFailure(answer.reason) for answer in answers if isinstance(answer, FailedGroup)]
    require_verdicts([*verdicts, *failed])


def problems_by_id(problems: Sequence[ProblemRow]) -> dict[str, ProblemRow]:
    """An index of problems."""
    return {problem.id: problem for problem in problems}


async def judge(
    verifier: VerifierClient, problems: Mapping[str, ProblemRow], groups: Sequence[Group]
) -> list[JudgedGroup]:
    """Each group with the verdicts over its samples.

    Args:
        verifier: judges.
        problems: by their ids; the key of a group is its problem's id.
        groups: of samples.
    """
    items: list[VerificationItem] = []
    for group in groups:
        problem = problems[group.key]
        for sample in group.samples:
            items.append(VerificationItem.of(problem, sample.text, sample.truncated))
    verdicts = await verifier.score(items)
    judged: list[JudgedGroup] = []
    first = 0
    for group in groups:
        end = first + len(group.samples)
        judged.append((group, list(verdicts[first:end])))
        first = end
    return judged


def outcomes_of(judged: Sequence[JudgedGroup]) -> list[Outcome]:
    """The outcome of every sample, in order."""
    outcomes: list[Outcome] = []
    for _, verdicts in judged:
        outcomes += verdicts
    return outcomes


def group_rows(judged: Sequence[JudgedGroup]) -> list[JsonRow]:
    """Groups as readiness takes them: ``id``, ``prompt_tokens``, ``samples`` with a verdict each.

    A group with fewer than two of those has no influence and is left out.
    """
    rows: list[JsonRow] = []
    for group, verdicts in judged:
        samples: list[JsonRow] = []
        for sample, verdict in zip(group.samples, verdicts, strict=True):
            if isinstance(verdict, Verdict):
                response = {"tokens": list(sample.tokens), "response": sample.text}
                samples.append(response | asdict(verdict))
        if len(samples) >= 2:
            prompt = list(group.prompt_tokens)
            rows.append({"id": group.key, "prompt_tokens": prompt, "samples": samples})
    return rows


class Evaluator:
    """Evaluates the policy that the engines hold.

    Args:
        config: the run.
        pool: samples.
        verifier: judges.
        progress: gets the number of groups.
    """

    def __init__(
        self, config: RunConfig, pool: RolloutPool, verifier: VerifierClient, progress: Progress
    ) -> None:
        self._config = config
        self._pool = pool
        self._verifier = verifier
        self._progress = progress

    async def evaluate(
        self, problems: Sequence[ProblemRow], evaluation: EvaluationConfig
    ) -> list[JsonRow]:
        """Sample and verify; see the function ``evaluate``, which says what it waits for."""
        model, seed = self._config.model, self._config.seeds.sampling
        requests = evaluation_requests(problems, evaluation, model, seed)
        self._progress.report("evaluation", 0, len(requests))
        return await evaluate(self._pool, self._verifier, problems, requests, self._count)

    def _count(self, group: Group) -> None:
        self._progress.done += 1


def evaluation_requests(
    problems: Sequence[ProblemRow], evaluation: EvaluationConfig, model: ModelConfig, seed: int
) -> list[GroupRequest]:
    """One greedy request per problem, a sampled group for the first ``sampled_problems`` of them.

    The seeds depend on the sampling seed and the problem alone: every policy is evaluated with the
    same random numbers.
    """

    def request(mode: str, problem: ProblemRow, sampling: SamplingConfig) -> GroupRequest:
        key = f"{mode}/{problem.id}"
        drawn = seed_for(seed, "evaluation", problem.id)
        return GroupRequest(key, problem.prompt_tokens, sampling, drawn)

    greedy = SamplingConfig(
        samples=1, temperature=0.0, max_tokens=model.max_response_tokens, stop=model.stop
    )
    requests = [request(GREEDY, problem, greedy) for problem in problems]
    if evaluation.samples_per_prompt:
        sampled = SamplingConfig(
            samples=evaluation.samples_per_prompt,
            temperature=evaluation.temperature,
            max_tokens=model.max_response_tokens,
            stop=model.stop,
        )
        for problem in problems[: evaluation.sampled_problems]:
            requests.append(request(SAMPLED, problem, sampled))
    return requests


async def evaluate(
    pool: RolloutPool,
    verifier: VerifierClient,
    problems: Sequence[ProblemRow],
    requests: Sequence[GroupRequest],
    on_group: Callable[[Group], None] | None = None,
) -> list[JsonRow]:
    """Sample and verify.

    A request or a sample that failed by its own fault has ``failure`` set and no verdict: it counts
    as no answer at all, never as a wrong one.

    Waits for the engines, then for the verifier; both have deadlines.

    Returns:
        a row per sample, in the order of the requests.

    Raises:
        VerdictError: engines lost a request, or nothing could be judged.
        VerifierUnavailable: see ``VerifierClient.score``.
    """
    by_id = problems_by_id(problems)
    answers = await pool.generate(requests, on_group)
    refuse_lost(answers)
    rows: list[JsonRow] = []
    judged_rows: list[JsonRow] = []
    items: list[VerificationItem] = []
    for answer in answers:
        mode, problem_id = answer.key.split("/", 1)
        problem = by_id[problem_id]
        base = {"mode": mode, "id": problem_id, "answer": problem.answer}
        if not isinstance(answer, Group):
            rows.append(base | {"sample": 0, "failure": f"{answer.kind}: {answer.reason}"})
            continue
        for number, sample in enumerate(answer.samples):
            row = base | _sample_row(number, sample)
            rows.append(row)
            judged_rows.append(row)
            items.append(VerificationItem.of(problem, sample.text, sample.truncated))
    verdicts = await verifier.score(items)
    require_some(answers, verdicts)
    for row, verdict in zip(judged_rows, verdicts, strict=True):
        if isinstance(verdict, DataFailure):
            row["failure"] = f"data: {verdict}"
        else:
            row |= asdict(verdict)
    return rows


def _sample_row(number: int, sample: Sample) -> JsonRow:
    return {
        "sample": number,
        "response": sample.text,
        "tokens": len(sample.tokens),
        "logprob": sum(sample.logprobs),
        "version": str(sample.version),
        "failure": None,
    }


def describe_failures(rows: Sequence[JsonRow]) -> str | None:
    """How many rows have no verdict, with the most frequent reason; None where all have one."""
    reasons = Counter(row["failure"] for row in rows if row["failure"] is not None)
    if not reasons:
        return None
    reason, count = reasons.most_common(1)[0]
    return (
        f"{reasons.total()} of {len(rows)} responses have no verdict and are left out; "
        f"{count} of them: {reason}"
    )
