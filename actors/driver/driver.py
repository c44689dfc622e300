"""The driver actor: owns the engines, the verifier and the state of the run; everybody calls it.

Its parts, from the top; each is given those that it calls::

    Driver ─┬─ RLSession         of one arm: steps, leases, rows of metrics; the learners call it
            │    └─ ArmBackend        the work that the session orders
            │         ├─ BatchMaker        samples and judges the groups of a step
            │         ├─ Validator         validates the policy after a step
            │         └─ InfluenceMonitor  lets the analyzer watch some steps; nobody waits for it
            ├─ ReadinessMeter    samples, then asks the analyzer; owns the InfluenceAnalyzer actor
            ├─ Evaluator         greedy and sampled responses with verdicts; Validator calls it too
            ├─ EnginePolicy      brings weights to the engines, knows which file they have
            ├─ Progress          what the command shows; the parts write it
            ├─ NoteKeeper        warnings for the command
            ├─ VerifierClient    owns the Verifier actor
            └─ RolloutPool       owns the RolloutWorker actors and the version of their weights

A part never refers to the driver: it alone wires them.

The driver keeps nothing that the run directory does not have: when it is killed, the same command
starts a new one, which resumes from the last published step.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from actors.driver.arm import ArmBackend, schedule_of
from actors.driver.batch_maker import BatchMaker
from actors.driver.engine_policy import EnginePolicy
from actors.driver.influence_monitor import InfluenceMonitor
from actors.driver.notes import NoteKeeper
from actors.driver.progress import Progress
from actors.driver.readiness import ReadinessMeter
from actors.driver.sampling import Evaluator, describe_failures
from actors.driver.session import RLSession, SessionError
from actors.driver.validation import Validator
from actors.driver.verifier import VerifierClient
from actors.logs import start_logging
from actors.rollout.pool import RolloutPool, make_ray_pool
from bi_ray.batches.batch import LearnerBatch
from bi_ray.batches.selection import QueryRow, SelectionSummary, describe_selection, reject
from bi_ray.config.run import RunConfig
from bi_ray.config.training import QueryFilterConfig
from bi_ray.data.problems import ProblemRow, read_problems
from bi_ray.files.atomic import write_text
from bi_ray.learning.driver_calls import ServedCalls
from bi_ray.policy.checkpoint import WEIGHTS
from bi_ray.readiness.measure import Demonstrations
from bi_ray.readiness.rollouts import scored_group
from bi_ray.runs.layout import INFLUENCE_FILE, METRICS_FILE, RL, SELECTED_QUERIES_FILE
from bi_ray.runs.records import read_jsonl

_CONTROL_CALLS = 64
PlainValues = dict[str, Any]  # for another process


def driver_concurrency(learners: int) -> int:
    """How many calls the actor of a ``Driver`` has to serve at a time.

    Every learner may wait for a batch, those that died and their successors, and still the call on
    which they all wait must get through.
    """
    return _CONTROL_CALLS + 2 * learners


class Driver(ServedCalls):
    """Serves evaluations, readiness and RL sessions, one at a time.

    Args:
        config: the run.
        run_id: names the folder of published weights in shared memory.
        base: checkpoint that the engines start with; policies that come later have its
            architecture.
    """

    def __init__(self, config: RunConfig, run_id: str, base: Path) -> None:
        start_logging("driver")
        self._notes = NoteKeeper()
        self._notes.install()
        self.config = config
        self.run_id = run_id
        self.base = base
        self.pool: RolloutPool = make_ray_pool(config, run_id, base)
        self.verifier = VerifierClient(config)
        self.policy = EnginePolicy(self.pool, base / WEIGHTS)
        self._progress = Progress()
        self.evaluator = Evaluator(config, self.pool, self.verifier, self._progress)
        self.readiness = ReadinessMeter(
            config, self.pool, self.policy, self.verifier, self._progress
        )
        self.session: RLSession | None = None
        self.backend: ArmBackend | None = None

    # Engines

    async def start(self) -> PlainValues:
        """Start the engines.

        Waits until every engine is up, or has missed ``rollout.start_timeout_s``.

        Returns:
            the state of each.

        Raises:
            PoolError: an engine did not start.
        """
        await self.pool.start(self.config.rollout.workers)
        return self.pool.status()

    async def close(self) -> None:
        """Stop the engines and the verifier, and remove the published weights.

        Waits for each engine to end; one that does not is killed after a while.
        """
        self.readiness.close()
        await self.pool.close()
        self.verifier.close()

    async def scale(self, workers: int) -> PlainValues:
        """Add or drain rollout workers while the run continues.

        Waits only for a sync of weights in progress: workers come up and drain in the background.

        Returns:
            the state of the pool.

        Raises:
            PoolError: fewer than one.
        """
        await self.pool.scale(workers)
        return self.pool.status()

    def progress(self) -> PlainValues:
        """Phase, finished and all units of it, the row of the last RL step, the pool's state."""
        metrics = self.session.last_metrics if self.session else {}
        return asdict(self._progress) | {"metrics": metrics, "pool": self.pool.status()}

    async def notes(self, seen: int) -> tuple[int, list[str]]:
        """See ``NoteKeeper.after``; waits for nobody."""
        return self._notes.after(seen)

    # Measurements of a policy

    async def evaluate(self, policy: Path, problems: Path, out: Path) -> str | None:
        """Evaluate a policy on a set.

        Waits for the engines to load the policy and to sample, and for the verifier.

        Args:
            policy: its directory.
            problems: directory of the set.
            out: file that gets a JSON row per sample.

        Returns:
            a line about responses without a verdict, None where all have one.

        Raises:
            VerdictError: see ``actors.driver.sampling.evaluate``.
            PoolError: no engine took the policy, or none is left.
        """
        await self.policy.load(policy / WEIGHTS)
        rows = await self.evaluator.evaluate(read_problems(problems), self.config.evaluation)
        write_text(out, "".join(json.dumps(row) + "\n" for row in rows))
        return describe_failures(rows)

    async def measure(
        self,
        policy: Path,
        queries: Path,
        target: Path,
        demonstrations: dict[str, Demonstrations],
        out: Path,
    ) -> None:
        """``ReadinessMeter.measure`` of the first queries of one set, on the target in another.

        Waits as that does, for the engines, the verifier and the analyzer.
        """
        chosen = read_problems(queries)[: self.config.readiness.queries]
        await self.readiness.measure(policy, chosen, read_problems(target), demonstrations, out)

    async def realize(self, policy: Path, readiness: Path, target: Path, out: Path) -> None:
        """See ``ReadinessMeter.realize``, which waits for the engines and the analyzer."""
        await self.readiness.realize(policy, readiness, read_problems(target), out)

    async def select_queries(self, policy: Path, problems: Path, out: Path) -> SelectionSummary:
        """Reject RL queries by the samples of a policy.

        Waits for the engines and the verifier.

        Args:
            policy: its directory.
            problems: directory of the queries.
            out: folder that gets ``queries.jsonl``, a ``selection.QueryRow`` per query.

        Returns:
            the counts of ``selection.describe_selection``.

        Raises:
            SelectionError: none is kept.
            VerdictError: see ``ReadinessMeter.sample``.
        """
        config = self.config.rl.query_filter
        assert config is not None
        queries = read_problems(problems)[: config.queries]
        await self.policy.load(policy / WEIGHTS)
        rows = await self._selection(queries, config)
        summary = describe_selection(rows, len(queries), config)
        (out / SELECTED_QUERIES_FILE).write_text(
            "".join(json.dumps(asdict(row)) + "\n" for row in rows)
        )
        return summary

    async def _selection(
        self, queries: Sequence[ProblemRow], config: QueryFilterConfig
    ) -> list[QueryRow]:
        sampled = await self.readiness.sample(queries, "query filter", config.samples_per_prompt)
        outcomes: list[tuple[str, list[bool]]] = []
        for row in sampled:
            group = scored_group(row)
            outcomes.append((group.id, [rollout.right for rollout in group.rollouts]))
        return reject(outcomes, config)

    # RL

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

        Waits for the analyzer to start, where influence is watched, and for nothing else.

        Args:
            arm: its name.
            sft_policy: what RL starts from.
            out: the work folder of the stage.
            data: folder of the sets of problems.
            target: problems whose influence is watched, if it is.
            selection: folder that ``select_queries`` filled; None: every query is trained on.

        Raises:
            ReadinessError: the analyzer does not answer.
        """
        rl = self.config.rl
        queries = _chosen_queries(data, selection)
        monitor = await self._make_monitor(sft_policy, target, out) if target else None
        self.backend = ArmBackend(
            config=rl,
            sft_policy=sft_policy,
            out=out,
            pool=self.pool,
            policy=self.policy,
            verifier=self.verifier,
            maker=BatchMaker(self.config, arm, queries, self.pool, self.verifier),
            validator=Validator(rl, data, out, self.evaluator),
            monitor=monitor,
        )
        incarnation = self.policy.version.incarnation
        metrics_file = out / METRICS_FILE
        self.session = RLSession(incarnation, self.backend, metrics_file, schedule_of(rl))

    async def end_rl(self) -> None:
        """Close the RL session.

        Waits for the batches in the making to be cancelled, and for the last analysis of influence,
        which ends within ``readiness.timeout_s``.
        """
        if self.session:
            await self.session.close()
        if self.backend:
            await self.backend.finish()
        self.session = self.backend = None

    async def _make_monitor(self, policy: Path, target: Path, out: Path) -> InfluenceMonitor:
        await self.readiness.begin_watch()
        problems = read_problems(target)
        analyzer = self.readiness.analyzer
        return InfluenceMonitor(self.config, analyzer, problems, policy, out / INFLUENCE_FILE)

    async def join(self, step: int) -> int:
        """See ``RLSession.join``, which says what it waits for."""
        return await self._open_session().join(step)

    async def lease(self, step: int, incarnation: int) -> LearnerBatch | None:
        """See ``RLSession.lease``, which says what it waits for."""
        return await self._open_session().lease(step, incarnation)

    async def publish(
        self, incarnation: int, step: int, path: Path, metrics: dict[str, float]
    ) -> None:
        """See ``RLSession.publish``, which says what it waits for."""
        await self._open_session().publish(incarnation, step, path, metrics)

    async def checkpointed(self, step: int) -> None:
        """See ``RLSession.checkpointed``; waits for nobody."""
        await self._open_session().checkpointed(step)

    def _open_session(self) -> RLSession:
        if self.session is None:
            raise SessionError("no RL session is open")
        return self.session


def _chosen_queries(data: Path, selection: Path | None) -> list[ProblemRow]:
    """The queries of RL, without those that ``select_queries`` rejected."""
    queries = read_problems(data / RL)
    if selection is None:
        return queries
    kept = {row.id for row in read_jsonl(selection / SELECTED_QUERIES_FILE, QueryRow) if row.kept}
    return [query for query in queries if query.id in kept]
