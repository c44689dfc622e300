"""Makes the batch of a step: samples its groups, verifies each as soon as it is there, weighs them
all at the end.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from actors.driver.sampling import judge, refuse_lost, require_some
from actors.driver.verifier import VerifierClient
from actors.rollout.pool import FailedGroup, RolloutPool
from bi_ray.batches.batch import LearnerBatch
from bi_ray.batches.groups import build_batch, refill
from bi_ray.batches.queries import refill_prompts, step_prompts
from bi_ray.batches.rollout import Group, GroupRequest, rl_sampling, seed_for, version_metrics
from bi_ray.config import RunConfig
from bi_ray.data.problems import ProblemRow
from bi_ray.verification.verdicts import DataFailure, Verdict

log = logging.getLogger(__name__)
Judged = tuple[Group, list[Verdict | DataFailure]]


@dataclass(frozen=True, slots=True)
class Made:
    """A batch, and what it was made of.

    Attributes:
        batch: what the learners train on.
        metrics: what was measured on the way.
        judged: the groups, in the order of the step's queries.
        watched: what became of the requests that were sampled along.
    """

    batch: LearnerBatch
    metrics: dict[str, Any]
    judged: list[Judged]
    watched: list[Group]


class BatchMaker:
    """Makes the batches of one arm: so many groups, or with ``rl.dynamic_sampling`` so many that
    teach something.

    Args:
        config: the run.
        arm: its name, which the seeds of its samples depend on.
        queries: those that RL trains on.
        pool: samples.
        verifier: judges.
    """

    def __init__(
        self,
        config: RunConfig,
        arm: str,
        queries: Sequence[ProblemRow],
        pool: RolloutPool,
        verifier: VerifierClient,
    ) -> None:
        self.config = config
        self.arm = arm
        self.queries = queries
        self.pool = pool
        self.verifier = verifier

    async def make(self, step: int, watched: Sequence[GroupRequest] = ()) -> Made:
        """The batch of a step (from 1), sampled from whatever policy the engines hold; ``watched``
        is sampled along.

        Which queries, and with which random numbers, depends on the seeds and the step alone.

        Raises:
            VerdictError: engines lost a group, or no response of the first round could be judged.
        """
        began = time.monotonic()
        along = asyncio.ensure_future(self.pool.generate(watched))
        try:
            judged, asked, rounds, generated = await self._rounds(step)
            along_answers = await along
            refuse_lost(along_answers)
            others = [group for group in along_answers if isinstance(group, Group)]
        finally:
            along.cancel()
        batch, metrics = build_batch(judged, self.config)
        _log_failures(step, judged)
        samples = [sample for group, _ in judged for sample in group.samples]
        tokens = sum(len(sample.tokens) for sample in samples)
        metrics |= {
            "failed_groups": asked - len(judged),
            "rounds": rounds,
            "generate_s": generated - began,
            "verify_s": time.monotonic() - generated,  # what is left when the last group is there
            "generated_tokens": tokens,
            "tokens_per_s": tokens / max(1e-9, generated - began),
            **version_metrics(samples, step),
        }
        return Made(batch, metrics, judged, others)

    async def _rounds(self, step: int) -> tuple[list[Judged], int, int, float]:
        """The groups of a step, of as many rounds as dynamic sampling asks for.

        Returns:
            them, the number of groups that were asked for, that of rounds, and when the last group
            was generated.
        """
        rl, seed, problems = self.config.rl, self.config.seeds.training, len(self.queries)
        asked = step_prompts(problems, rl.prompts_per_step, step, seed)
        judged, failed, generated = await self._judged(step, [self.queries[i] for i in asked])
        require_some(failed, [verdict for _, verdicts in judged for verdict in verdicts])
        rounds = 1
        while more := refill_prompts(problems, asked, refill(judged, rounds, rl), step, seed):
            found, _, generated = await self._judged(step, [self.queries[i] for i in more])
            judged, rounds, asked = judged + found, rounds + 1, asked + more
        return judged, len(asked), rounds, generated

    async def _judged(
        self, step: int, queries: Sequence[ProblemRow]
    ) -> tuple[list[Judged], list[FailedGroup], float]:
        """The groups of these queries with their verdicts, those that failed, and when the last one
        was generated.
        """
        verdicts: dict[str, asyncio.Task[list[Judged]]] = {}

        def begin(group: Group) -> None:
            # with few queries one may be asked for twice, and is answered the same
            if group.key not in verdicts:
                verdicts[group.key] = asyncio.ensure_future(judge(self.verifier, queries, [group]))

        try:
            answers = await self.pool.generate(
                [self._request(step, query) for query in queries], begin
            )
            generated = time.monotonic()
            refuse_lost(answers)
            failed = [answer for answer in answers if isinstance(answer, FailedGroup)]
            for group in failed:
                log.warning("step %d continues without query %s: %s", step, group.key, group.reason)
            groups = [answer for answer in answers if isinstance(answer, Group)]
            return [(await verdicts[group.key])[0] for group in groups], failed, generated
        finally:
            for task in verdicts.values():
                task.cancel()

    def _request(self, step: int, query: ProblemRow) -> GroupRequest:
        seed = seed_for(self.config.seeds.sampling, self.arm, step, query.id)
        return GroupRequest(query.id, query.prompt_tokens, rl_sampling(self.config), seed)


def _log_failures(step: int, judged: Sequence[Judged]) -> None:
    outcomes = [outcome for _, verdicts in judged for outcome in verdicts]
    reasons = Counter(str(outcome) for outcome in outcomes if isinstance(outcome, DataFailure))
    if not reasons:
        return
    reason, count = reasons.most_common(1)[0]
    log.warning(
        "step %d: %d of %d responses have no verdict; %d of them: %s",
        step, reasons.total(), len(outcomes), count, reason,
    )  # fmt: skip
