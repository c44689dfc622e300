"""Makes the batch of a step: samples its groups, and verifies each as soon as it is finished."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from actors.driver.sampling import (
    JudgedGroup,
    judge,
    outcomes_of,
    problems_by_id,
    refuse_lost,
    require_some,
)
from actors.driver.step_metrics import Figures
from actors.driver.verifier import VerifierClient
from actors.rollout.background import start_watched
from actors.rollout.generation import FailedGroup
from actors.rollout.pool import RolloutPool
from bi_ray.batches.batch import LearnerBatch
from bi_ray.batches.groups import build_batch
from bi_ray.batches.queries import next_queries
from bi_ray.batches.rollout import (
    Group,
    GroupRequest,
    Sample,
    rl_sampling,
    seed_for,
    version_metrics,
)
from bi_ray.config.run import RunConfig
from bi_ray.data.problems import ProblemRow
from bi_ray.verification.verdicts import DataFailure

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MadeBatch:
    """A batch, and what it was made of.

    Attributes:
        batch: what the learners train on.
        metrics: what was measured on the way.
        judged: the groups, in the order of the step's queries.
        watched: the groups of the requests that were sampled along.
    """

    batch: LearnerBatch
    metrics: Figures
    judged: list[JudgedGroup]
    watched: list[Group]


@dataclass(frozen=True, slots=True)
class _Work:
    """What sampling and verifying a batch took; the fields are names in the row of metrics.

    Attributes:
        failed_groups: requests without an answer.
        rounds: of sampling.
        generate_s: seconds until the last group was sampled.
        verify_s: seconds of verifying after that.
        generated_tokens: tokens of all responses.
        tokens_per_s: of sampling.
    """

    failed_groups: int
    rounds: int
    generate_s: float
    verify_s: float
    generated_tokens: int
    tokens_per_s: float


@dataclass(slots=True)
class _Rounds:
    """The rounds of sampling of a step so far.

    Attributes:
        asked: indices of the queries, in order.
        judged: their groups, without those that failed.
        count: of rounds.
        generated_at: when the last group was sampled, by ``time.monotonic``.
    """

    asked: list[int] = field(default_factory=list)
    judged: list[JudgedGroup] = field(default_factory=list)
    count: int = 0
    generated_at: float = 0.0


class BatchMaker:
    """Makes the batches of one arm.

    A batch has ``rl.prompts_per_step`` groups; with ``rl.dynamic_sampling``, that many groups that
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
        self._by_id = problems_by_id(queries)

    async def make(self, step: int, watched: Sequence[GroupRequest] = ()) -> MadeBatch:
        """The batch of a step (from 1), sampled from whatever policy the engines hold.

        Which queries, and with which random numbers, depends on the seeds and the step alone.
        Waits for the engines and for the verifier; both have deadlines.

        Args:
            step: its number.
            watched: requests that are sampled along.

        Raises:
            VerdictError: engines lost a group, or no response of the first round could be judged.
            PoolError: no engine is left.
        """
        began = time.monotonic()
        along = asyncio.ensure_future(self.pool.generate(watched))
        try:
            rounds = await self._sample(step)
            answers = await along
            refuse_lost(answers)
        finally:
            along.cancel()
        watched_groups = [answer for answer in answers if isinstance(answer, Group)]
        batch, scores = build_batch(rounds.judged, self.config)
        _log_failures(step, rounds.judged)
        samples = _samples_of(rounds.judged)
        tokens = sum(len(sample.tokens) for sample in samples)
        generate_s = rounds.generated_at - began
        work = _Work(
            failed_groups=len(rounds.asked) - len(rounds.judged),
            rounds=rounds.count,
            generate_s=generate_s,
            verify_s=time.monotonic() - rounds.generated_at,
            generated_tokens=tokens,
            tokens_per_s=tokens / max(1e-9, generate_s),
        )
        metrics = scores | asdict(work) | version_metrics(samples, step)
        return MadeBatch(batch, metrics, rounds.judged, watched_groups)

    async def _sample(self, step: int) -> _Rounds:
        """The groups of a step, of as many rounds as dynamic sampling asks for."""
        rounds = _Rounds()
        while indices := self._next_queries(step, rounds):
            answers = await self._judged_groups(step, [self.queries[i] for i in indices], rounds)
            rounds.asked += indices
            rounds.count += 1
            if rounds.count == 1:
                require_some(answers, outcomes_of(rounds.judged))
        return rounds

    def _next_queries(self, step: int, rounds: _Rounds) -> list[int]:
        rl, seed = self.config.rl, self.config.seeds.training
        problems = len(self.queries)
        return next_queries(problems, rounds.asked, rounds.judged, rounds.count, step, rl, seed)

    async def _judged_groups(
        self, step: int, queries: Sequence[ProblemRow], rounds: _Rounds
    ) -> list[Group | FailedGroup]:
        """Sample and judge these queries, and add their groups to ``rounds``.

        Returns:
            the answers of the engines.
        """
        judging: dict[str, asyncio.Task[list[JudgedGroup]]] = {}

        def begin_judging(group: Group) -> None:
            # with few queries one may be asked for twice, and is answered the same
            if group.key not in judging:
                work = judge(self.verifier, self._by_id, [group])
                judging[group.key] = start_watched(work, f"judging of query {group.key}")

        requests = [self._request(step, query) for query in queries]
        try:
            answers = await self.pool.generate(requests, begin_judging)
            rounds.generated_at = time.monotonic()
            refuse_lost(answers)
            for answer in answers:
                if isinstance(answer, Group):
                    rounds.judged += await judging[answer.key]
                else:
                    reason = answer.reason
                    log.warning("step %d continues without query %s: %s", step, answer.key, reason)
            return answers
        finally:
            for task in judging.values():
                task.cancel()

    def _request(self, step: int, query: ProblemRow) -> GroupRequest:
        seed = seed_for(self.config.seeds.sampling, self.arm, step, query.id)
        return GroupRequest(query.id, query.prompt_tokens, rl_sampling(self.config), seed)


def _samples_of(judged: Sequence[JudgedGroup]) -> list[Sample]:
    samples: list[Sample] = []
    for group, _ in judged:
        samples += group.samples
    return samples


def _log_failures(step: int, judged: Sequence[JudgedGroup]) -> None:
    """Log how many responses have no verdict, with the most frequent reason."""
    outcomes = outcomes_of(judged)
    failures = [outcome for outcome in outcomes if isinstance(outcome, DataFailure)]
    if not failures:
        return
    reason, count = Counter(map(str, failures)).most_common(1)[0]
    counts = f"{len(failures)} of {len(outcomes)}"
    log.warning("step %d: %s responses have no verdict; %d: %s", step, counts, count, reason)
