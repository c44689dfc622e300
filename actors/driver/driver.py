"""The driver actor: owns the rollout pool, the verifier and the state of the run; all ask it, it
waits for none.

It keeps nothing that the run directory does not have: killed, the same command starts a new one,
which goes on from the last published step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.driver.batch_maker import BatchMaker
from actors.driver.influence_monitor import InfluenceMonitor
from actors.driver.notes import NoteKeeper
from actors.driver.readiness import ReadinessMeter
from actors.driver.sampling import (
    describe_failures,
    evaluate,
    evaluation_requests,
    group_rows,
    judge,
)
from actors.driver.session import RLSession, Schedule, SessionError
from actors.driver.validation import Validator
from actors.driver.verifier import VerifierClient
from actors.rollout.pool import RolloutPool, make_ray_pool
from actors.weights.shared_memory import announce
from bi_ray.batches.batch import LearnerBatch
from bi_ray.batches.rollout import Group
from bi_ray.batches.selection import QueryRow, SelectionSummary, describe_selection, reject
from bi_ray.config import EvaluationConfig, RunConfig
from bi_ray.data.problems import ProblemRow, read_problems
from bi_ray.files.atomic import write_text
from bi_ray.policy.checkpoint import WEIGHTS
from bi_ray.policy.version import PolicyVersion
from bi_ray.readiness.measure import Demonstrations
from bi_ray.readiness.rollouts import scored_group
from bi_ray.runs.layout import (
    INFLUENCE_FILE,
    METRICS_FILE,
    POLICY,
    RL,
    SELECTED_QUERIES_FILE,
    step_name,
)
from bi_ray.runs.records import read_jsonl

_CONTROL_CALLS = 64


def driver_concurrency(learners: int) -> int:
    """How many calls the actor of a ``Driver`` has to serve at a time.

    Every learner may wait for a batch, those that died and their successors, and still the call on
    which they all wait must get through.
    """
    return _CONTROL_CALLS + 2 * learners


class Driver:
    """Serves evaluations and RL sessions, one at a time.

    Args:
        config: the run.
        run_id: names the folder of published weights in shared memory.
        base: checkpoint that the engines start with; policies that come later have its
            architecture.
    """

    def __init__(self, config: RunConfig, run_id: str, base: Path) -> None:
        self._notes = NoteKeeper()
        self._notes.install()
        self.config = config
        self.run_id = run_id
        self.base = base
        self.pool: RolloutPool = make_ray_pool(config, run_id, base)
        self.verifier = VerifierClient(config)
        self.version = PolicyVersion(0, 0)
        self.session: RLSession | None = None
        self.readiness = ReadinessMeter(config, self.pool, self.verifier, self._load, self._report)
        self._monitor: InfluenceMonitor | None = None
        self._weights = base / WEIGHTS  # the file from which the engines have their policy
        self._progress: dict[str, Any] = {}
        self._busy_s: dict[int, float] = {}  # of each engine, and
        self._redispatched = 0  # groups, when they were last looked at

    async def start(self) -> dict[str, Any]:
        """Start the engines; returns the state of each."""
        await self.pool.start(self.config.rollout.workers)
        return self.pool.status()

    async def close(self) -> None:
        """Stop the engines and the verifier, and remove the published weights."""
        self.readiness.close()
        await self.pool.close()
        self.verifier.close()

    async def scale(self, workers: int) -> dict[str, Any]:
        """Add or drain rollout workers while the run goes on."""
        await self.pool.scale(workers)
        return self.pool.status()

    def progress(self) -> dict[str, Any]:
        """What is going on: phase, finished and all units of it, the metrics of the last RL step."""
        metrics = self.session.last_metrics if self.session else {}
        return self._progress | {"metrics": metrics, "pool": self.pool.status()}

    async def notes(self, seen: int) -> tuple[int, list[str]]:
        """See ``NoteKeeper.after``."""
        return self._notes.after(seen)

    async def evaluate(self, policy: Path, problems: Path, out: Path) -> str | None:
        """Evaluate the policy directory ``policy`` on a set; writes one JSON row per sample to
        ``out``.

        Returns:
            what is to be said of responses without a verdict, None where all have one.

        Raises:
            VerdictError: see ``actors.driver.sampling.evaluate``.
        """
        await self._load(policy / WEIGHTS)
        rows = await self._evaluate(read_problems(problems), self.config.evaluation)
        write_text(out, "".join(json.dumps(row) + "\n" for row in rows))
        return describe_failures(rows)

    async def _evaluate(
        self, problems: Sequence[ProblemRow], evaluation: EvaluationConfig
    ) -> list[dict[str, Any]]:
        requests = evaluation_requests(
            problems, evaluation, self.config.model, self.config.seeds.sampling
        )
        self._progress = {"phase": "evaluation", "done": 0, "total": len(requests)}
        return await evaluate(self.pool, self.verifier, problems, requests, self._count)

    async def measure(
        self,
        policy: Path,
        queries: Path,
        target: Path,
        demonstrations: dict[str, Demonstrations],
        out: Path,
    ) -> None:
        """See ``ReadinessMeter.measure``: of the first queries of one data directory, on the target
        in another.
        """
        chosen = read_problems(queries)[: self.config.readiness.queries]
        await self.readiness.measure(policy, chosen, read_problems(target), demonstrations, out)

    async def realize(self, policy: Path, readiness: Path, target: Path, out: Path) -> None:
        """See ``ReadinessMeter.realize``."""
        await self.readiness.realize(policy, readiness, read_problems(target), out)

    async def select_queries(self, policy: Path, problems: Path, out: Path) -> SelectionSummary:
        """Reject RL queries by the samples of ``policy``; writes ``queries.jsonl``
        (``selection.QueryRow``) to ``out``.

        Returns:
            What ``selection.describe_selection`` says.

        Raises:
            SelectionError: none is kept.
        """
        config = self.config.rl.query_filter
        assert config is not None
        queries = read_problems(problems)[: config.queries]
        await self._load(policy / WEIGHTS)
        groups = await self.readiness.sample(queries, "query filter", config.samples_per_prompt)
        scored = [scored_group(group) for group in groups]
        right = [[rollout.right for rollout in group.rollouts] for group in scored]
        rows = reject(zip([group.id for group in scored], right, strict=True), config)
        summary = describe_selection(rows, len(queries), config)
        (out / SELECTED_QUERIES_FILE).write_text(
            "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        )
        return summary

    def _report(self, phase: str, done: int, total: int | None) -> None:
        self._progress = {"phase": phase, "done": done, "total": total}

    def _count(self, group: Group) -> None:
        self._progress["done"] = self._progress.get("done", 0) + 1

    async def begin_rl(
        self,
        arm: str,
        sft_policy: Path,
        out: Path,
        data: Path,
        target: Path | None,
        selection: Path | None,
    ) -> None:
        """Open the RL session of an arm; the learners may join from now on.

        Args:
            arm: its name.
            sft_policy: what RL starts from.
            out: the work folder of the stage.
            data: folder of the sets of problems.
            target: problems whose influence is watched, if it is.
            selection: folder that ``select_queries`` filled; None: every query is trained on.
        """
        queries = read_problems(data / RL)
        if selection:
            kept = {
                row.id
                for row in read_jsonl(selection / SELECTED_QUERIES_FILE, QueryRow)
                if row.kept
            }
            queries = [query for query in queries if query.id in kept]
        self._monitor = await self._make_monitor(sft_policy, target, out) if target else None
        validator = Validator(self.config.rl, data, out, self._evaluate)

        maker = BatchMaker(self.config, arm, queries, self.pool, self.verifier)
        rl = self.config.rl

        async def make_batch(step: int) -> tuple[LearnerBatch, dict[str, Any]]:
            return await self._make_batch(maker, step)

        async def sync(version: PolicyVersion, path: Path) -> None:
            if self._monitor and version.incarnation != self.version.incarnation:
                self._monitor.go_back(version.step)
            self.version = version
            await self._sync(version, path, in_flight=rl.max_staleness > 0)

        def policy_of(step: int) -> Path:
            return (out / step_name(step) / POLICY if step else sft_policy) / WEIGHTS

        def settled_first(step: int) -> bool:
            validated = rl.validation is not None and rl.validation.is_due(step, rl.steps)
            return validated or rl.is_checkpointed(step)

        self.session = RLSession(
            incarnation=self.version.incarnation,
            policy_of=policy_of,
            make_batch=make_batch,
            sync=sync,
            validate=validator.validate,
            usage=self._usage,
            metrics_file=out / METRICS_FILE,
            schedule=Schedule(rl.steps, rl.max_staleness, settled_first, validator.is_over),
        )

    async def end_rl(self) -> None:
        """Close the RL session."""
        if self.session:
            await self.session.close()
        if self._monitor:
            await self._monitor.finish()
        self._monitor = self.session = None

    async def _make_monitor(self, policy: Path, target: Path, out: Path) -> InfluenceMonitor:
        await self.readiness.begin_watch()
        problems = read_problems(target)
        return InfluenceMonitor(
            self.config, self.readiness.analyzer, problems, policy, out / INFLUENCE_FILE
        )

    async def join(self, step: int) -> int:
        """See ``RLSession.join``."""
        return await self._open_session().join(step)

    async def lease(self, step: int, incarnation: int) -> LearnerBatch | None:
        """See ``RLSession.lease``."""
        return await self._open_session().lease(step, incarnation)

    async def publish(
        self, incarnation: int, step: int, path: str, metrics: dict[str, Any]
    ) -> None:
        """See ``RLSession.publish``."""
        await self._open_session().publish(incarnation, step, Path(path), metrics)

    async def checkpointed(self, step: int) -> None:
        """See ``RLSession.checkpointed``."""
        self._open_session().checkpointed(step)

    def _open_session(self) -> RLSession:
        if self.session is None:
            raise SessionError("no RL session is open")
        return self.session

    async def _load(self, path: Path) -> None:
        """Bring a policy from outside RL to the engines, under a version of its own."""
        self.version = PolicyVersion(self.version.incarnation + 1, 0)
        await self._sync(self.version, path)

    async def _sync(self, version: PolicyVersion, path: Path, in_flight: bool = False) -> None:
        await self.pool.sync(announce(version, path), in_flight)
        self._weights = path

    async def _make_batch(
        self, maker: BatchMaker, step: int
    ) -> tuple[LearnerBatch, dict[str, Any]]:
        """The batch of a step; where influence is watched, its target is sampled along and
        analyzed.
        """
        monitor = self._monitor
        made = await maker.make(step, monitor.requests(self.version.step) if monitor else [])
        if monitor and made.watched:
            target = group_rows(await judge(self.verifier, monitor.target, made.watched))
            monitor.begin(self.version, self._weights, group_rows(made.judged), target)
        return made.batch, made.metrics

    def _usage(self, step_s: float) -> dict[str, Any]:
        """What the pool did since this was last asked: for which share of a step each engine had
        nothing to do.
        """
        busy_s, redispatched = self.pool.busy_s(), self.pool.redispatched
        shares = {
            f"idle_share_engine_{number}": max(
                0.0, 1 - (busy - self._busy_s.get(number, 0.0)) / max(1e-9, step_s)
            )
            for number, busy in busy_s.items()
        }
        row = shares | {"redispatched_groups": redispatched - self._redispatched}
        self._busy_s, self._redispatched = busy_s, redispatched
        return row
