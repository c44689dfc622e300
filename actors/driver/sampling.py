"""Evaluation of one policy on one set: greedy and sampled responses, each with its verdict, kept as
a row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from actors.driver.verifier import VerifierClient
from actors.rollout.pool import FailedGroup, RolloutPool
from bi_ray.batches.rollout import Group, GroupRequest, SamplingConfig, seed_for
from bi_ray.config import EvaluationConfig, ModelConfig
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


def evaluation_requests(
    problems: Sequence[ProblemRow], evaluation: EvaluationConfig, model: ModelConfig, seed: int
) -> list[GroupRequest]:
    """One greedy request per problem, and a sampled group for each of the first
    ``sampled_problems``.

    The seeds depend on the sampling seed and the problem alone: every policy is evaluated with the
    same random numbers.
    """
    greedy = SamplingConfig(
        samples=1, temperature=0.0, max_tokens=model.max_response_tokens, stop=model.stop
    )
    requests = [
        GroupRequest(
            f"{GREEDY}/{row.id}", row.prompt_tokens, greedy, seed_for(seed, "evaluation", row.id)
        )
        for row in problems
    ]
    if evaluation.samples_per_prompt:
        sampled = SamplingConfig(
            samples=evaluation.samples_per_prompt,
            temperature=evaluation.temperature,
            max_tokens=model.max_response_tokens,
            stop=model.stop,
        )
        requests += [
            GroupRequest(
                f"{SAMPLED}/{row.id}",
                row.prompt_tokens,
                sampled,
                seed_for(seed, "evaluation", row.id),
            )
            for row in problems[: evaluation.sampled_problems]
        ]
    return requests


def refuse_lost(answers: Sequence[Group | FailedGroup]) -> None:
    """Refuse groups of which engines lost one: the result would depend on what died.

    Raises:
        VerdictError: one was lost. A request that failed by its own fault is no such group.
    """
    lost = [
        answer
        for answer in answers
        if isinstance(answer, FailedGroup) and answer.kind == "infrastructure"
    ]
    if lost:
        raise VerdictError(
            f"{len(lost)} of {len(answers)} groups of responses were lost, {lost[0].key} first: {lost[0].reason}; "
            "run the same command again"
        )


def require_some(
    answers: Sequence[Group | FailedGroup], verdicts: Sequence[Verdict | DataFailure]
) -> None:
    """See ``require_verdicts``; a request that failed counts as a response that could not be
    judged.
    """
    failed = [DataFailure(answer.reason) for answer in answers if isinstance(answer, FailedGroup)]
    require_verdicts([*verdicts, *failed])


async def evaluate(
    pool: RolloutPool,
    verifier: VerifierClient,
    problems: Sequence[ProblemRow],
    requests: Sequence[GroupRequest],
    on_group: Callable[[Group], None] | None = None,
) -> list[dict[str, Any]]:
    """Generate and verify; returns one row per sample, in the order of the requests.

    A request or a sample that failed by its own fault has ``failure`` set and no verdict: it counts
    as no answer at all, never as a wrong one.

    Raises:
        VerdictError: engines lost a request, or nothing could be judged.
    """
    by_id = {row.id: row for row in problems}
    groups = await pool.generate(requests, on_group)
    refuse_lost(groups)
    rows: list[dict[str, Any]] = []
    items: list[VerificationItem] = []
    judged: list[dict[str, Any]] = []
    for group in groups:
        mode, problem_id = group.key.split("/", 1)
        problem = by_id[problem_id]
        base = {"mode": mode, "id": problem_id, "answer": problem.answer}
        if not isinstance(group, Group):
            rows.append(base | {"sample": 0, "failure": f"{group.kind}: {group.reason}"})
            continue
        for number, sample in enumerate(group.samples):
            row = base | {
                "sample": number,
                "response": sample.text,
                "tokens": len(sample.tokens),
                "logprob": sum(sample.logprobs),
                "version": str(sample.version),
                "failure": None,
            }
            rows.append(row)
            judged.append(row)
            items.append(VerificationItem.of(problem, sample.text, sample.truncated))
    verdicts = await verifier.score(items)
    require_some(groups, verdicts)
    for row, verdict in zip(judged, verdicts, strict=True):
        if isinstance(verdict, DataFailure):
            row["failure"] = f"data: {verdict}"
        else:
            row |= asdict(verdict)
    return rows


def describe_failures(rows: Sequence[dict[str, Any]]) -> str | None:
    """How many rows have no verdict and mostly why; None where all have one."""
    reasons = Counter(row["failure"] for row in rows if row["failure"] is not None)
    if not reasons:
        return None
    reason, count = reasons.most_common(1)[0]
    return f"{reasons.total()} of {len(rows)} responses have no verdict and are left out; {count} of them: {reason}"


def group_rows(
    judged: Sequence[tuple[Group, Sequence[Verdict | DataFailure]]],
) -> list[dict[str, Any]]:
    """Verified groups as readiness takes them: ``id``, ``prompt_tokens`` and ``samples``, those
    that have a verdict.

    A group with fewer than two of those says nothing about influence and is left out.
    """
    rows = []
    for group, verdicts in judged:
        samples = [
            {"tokens": list(sample.tokens), "response": sample.text} | asdict(verdict)
            for sample, verdict in zip(group.samples, verdicts, strict=True)
            if isinstance(verdict, Verdict)
        ]
        if len(samples) >= 2:
            rows.append(
                {"id": group.key, "prompt_tokens": list(group.prompt_tokens), "samples": samples}
            )
    return rows


async def judge(
    verifier: VerifierClient, problems: Sequence[ProblemRow], groups: Sequence[Group]
) -> list[tuple[Group, list[Verdict | DataFailure]]]:
    """Each group with the verdicts over its samples. The key of a group is its problem's id."""
    by_id = {row.id: row for row in problems}
    items = [
        VerificationItem.of(by_id[group.key], sample.text, sample.truncated)
        for group in groups
        for sample in group.samples
    ]
    verdicts = iter(await verifier.score(items))
    return [(group, [next(verdicts) for _ in group.samples]) for group in groups]
