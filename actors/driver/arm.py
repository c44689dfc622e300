"""The RL of one arm as its session sees it: makes batches, syncs the engines, validates."""

from __future__ import annotations

from pathlib import Path

from actors.driver.batch_maker import BatchMaker
from actors.driver.engine_policy import EnginePolicy
from actors.driver.influence_monitor import InfluenceMonitor
from actors.driver.sampling import group_rows, judge, problems_by_id
from actors.driver.session import KeptBatch, Schedule, SessionBackend
from actors.driver.step_metrics import EngineWork, Figures
from actors.driver.validation import Validator
from actors.driver.verifier import VerifierClient
from actors.rollout.pool import RolloutPool
from bi_ray.config.training import RLConfig
from bi_ray.policy.checkpoint import WEIGHTS
from bi_ray.policy.version import PolicyVersion
from bi_ray.runs.layout import POLICY, step_name


class ArmBackend(SessionBackend):
    """Does the work of one arm's session.

    Args:
        config: of RL.
        sft_policy: directory of the policy that RL starts from.
        out: the work folder of the stage; the learners leave their checkpoints there.
        pool: for what the engines have done.
        policy: brings weights to the engines.
        verifier: judges the target's samples.
        maker: makes batches.
        validator: validates.
        monitor: watches the influence, if it is watched.
    """

    def __init__(
        self,
        config: RLConfig,
        sft_policy: Path,
        out: Path,
        pool: RolloutPool,
        policy: EnginePolicy,
        verifier: VerifierClient,
        maker: BatchMaker,
        validator: Validator,
        monitor: InfluenceMonitor | None,
    ) -> None:
        self._config = config
        self._sft_policy = sft_policy
        self._out = out
        self._pool = pool
        self._policy = policy
        self._verifier = verifier
        self._maker = maker
        self._validator = validator
        self._monitor = monitor

    def policy_of(self, step: int) -> Path:
        """See ``SessionBackend``."""
        if step == 0:
            return self._sft_policy / WEIGHTS
        return self._out / step_name(step) / POLICY / WEIGHTS

    async def make_batch(self, step: int) -> KeptBatch:
        """The batch of a step; where influence is watched, its target is sampled along.

        Waits for the engines and the verifier. The analysis of the target runs beside it.
        """
        monitor = self._monitor
        if monitor is None:
            made = await self._maker.make(step)
            return KeptBatch(made.batch, made.metrics)
        made = await self._maker.make(step, monitor.requests(self._policy.version.step))
        if made.watched:
            problems = problems_by_id(monitor.target)
            target = group_rows(await judge(self._verifier, problems, made.watched))
            queries = group_rows(made.judged)
            monitor.begin(self._policy.version, self._policy.weights, queries, target)
        return KeptBatch(made.batch, made.metrics)

    async def sync(self, version: PolicyVersion, path: Path) -> None:
        """Bring published weights to the engines; waits for them as ``EnginePolicy.take`` does."""
        if self._monitor and version.incarnation != self._policy.version.incarnation:
            self._monitor.go_back(version.step)
        await self._policy.take(version, path, in_flight=self._config.max_staleness > 0)

    async def validate(self, step: int) -> Figures:
        """See ``Validator.validate``."""
        return await self._validator.validate(step)

    def last_step(self) -> int | None:
        """See ``Validator.last_step``."""
        return self._validator.last_step()

    def engine_work(self) -> EngineWork:
        """See ``SessionBackend``."""
        return EngineWork(self._pool.busy_s(), self._pool.redispatched)

    async def finish(self) -> None:
        """Wait for the analysis in progress, if there is one."""
        if self._monitor:
            await self._monitor.finish()


def schedule_of(config: RLConfig) -> Schedule:
    """When the batches of an RL may be made."""

    def must_settle(step: int) -> bool:
        validation = config.validation
        is_validated = validation is not None and validation.is_due(step, config.steps)
        return is_validated or config.is_checkpointed(step)

    return Schedule(config.steps, config.max_staleness, must_settle)
