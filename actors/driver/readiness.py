"""Readiness of a policy as the driver measures it: rollouts from the pool, verdicts, and the
analyzer's answer.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from actors.driver.influence_analyzer import GroupRow, make_ray_analyzer
from actors.driver.sampling import group_rows, judge, refuse_lost, require_some
from actors.driver.verifier import VerifierClient
from actors.rollout.pool import RolloutPool
from bi_ray.batches.rollout import Group, GroupRequest, rl_sampling, seed_for
from bi_ray.config import RunConfig
from bi_ray.data.problems import ProblemRow
from bi_ray.intervals import Z95
from bi_ray.policy.checkpoint import WEIGHTS
from bi_ray.readiness.measure import Demonstrations
from bi_ray.readiness.realized import mean_and_error, realized_change
from bi_ray.readiness.rollouts import scored_group
from bi_ray.runs.layout import REALIZED_FILE, ROLLOUTS_FILE
from bi_ray.runs.records import read_jsonl

_POLL_S = 1.0
_ANALYSES = 3  # times that an analysis is begun when the analyzer dies over it
_DIED = (
    "the influence analyzer died (killed, or out of memory? then lower readiness.microbatch_tokens or "
    "readiness.pairwise_mib); run the same command again to resume"
)
log = logging.getLogger(__name__)
Load = Callable[[Path], Awaitable[None]]
Report = Callable[[str, int, int | None], None]


class ReadinessError(RuntimeError):
    """Readiness that cannot be measured; the message says why."""


class ReadinessMeter:
    """Measures policies one after the other; lives inside the driver.

    Args:
        config: the run.
        pool: samples.
        verifier: judges.
        load: brings the weights in a file to the engines.
        report: told the phase, and how much of it is done.
    """

    def __init__(
        self,
        config: RunConfig,
        pool: RolloutPool,
        verifier: VerifierClient,
        load: Load,
        report: Report,
    ) -> None:
        self.config = config
        self.pool = pool
        self.verifier = verifier
        self.load = load
        self.report = report
        self._analyzer: Any = None

    @property
    def analyzer(self) -> Any:
        """The analyzer's actor, started when it is first asked for."""
        if self._analyzer is None:
            self._analyzer = make_ray_analyzer(self.config)
        return self._analyzer

    def close(self) -> None:
        """End the analyzer."""
        if self._analyzer is not None:
            ray.kill(self._analyzer)
            self._analyzer = None

    async def begin_watch(self) -> None:
        """Another arm's RL begins, and the analyzer is to watch it.

        Raises:
            ReadinessError: it does not answer.
        """
        await self._ask(lambda: self.analyzer.begin_watch.remote(), attempts=_ANALYSES)

    async def measure(
        self,
        policy: Path,
        queries: Sequence[ProblemRow],
        target: Sequence[ProblemRow],
        demonstrations: Mapping[str, Demonstrations],
        out: Path,
    ) -> None:
        """Sample both sets and fill the folder ``out`` with the rollouts, a row per query, and the
        policy's own row.

        Raises:
            ReadinessError: no group has two samples with a verdict, or the analyzer was late or
                died again and again.
            VerdictError: see ``sample``.
        """
        _ = self.analyzer  # it loads its libraries while the engines sample
        await self.load(policy / WEIGHTS)
        rows = await self.sample(
            [*queries, *target], "readiness", self.config.rl.samples_per_prompt
        )
        names = {problem.id for problem in queries}
        kinds = [("query" if row["id"] in names else "target", row) for row in rows]
        (out / ROLLOUTS_FILE).write_text(
            "".join(json.dumps({"kind": kind} | row) + "\n" for kind, row in kinds)
        )
        chosen = {kind: [row for k, row in kinds if k == kind] for kind in ("query", "target")}
        if not all(chosen.values()):
            raise ReadinessError(
                "no group of the queries, or of the target, has two responses with a verdict"
            )
        arguments = (policy, chosen["query"], chosen["target"], demonstrations, out)
        await self._ask(lambda: self.analyzer.measure.remote(*arguments), attempts=_ANALYSES)

    async def realize(
        self, policy: Path, readiness: Path, target: Sequence[ProblemRow], out: Path
    ) -> None:
        """Take single SGD steps and count what they change on the target; fills ``out`` with
        ``realized.json``.

        Args:
            policy: directory of the policy.
            readiness: folder that ``measure`` filled for it.
            target: the problems of the target.
            out: an existing folder.
        """
        lines = read_jsonl(readiness / ROLLOUTS_FILE, dict[str, Any])
        settings, seed = self.config.readiness, "realized"
        by_outcome = self.config.rl.wrong_groups == "outcome"
        queries = [row for row in lines if row["kind"] == "query"]
        queries = [row for row in queries if scored_group(row, by_outcome=by_outcome).informative]
        queries = queries[: settings.realized_queries]
        goal = [row for row in lines if row["kind"] == "target"]
        await self._ask(lambda: self.analyzer.aim.remote(policy, goal), attempts=_ANALYSES)
        before = await self._rewards(policy / WEIGHTS, target, seed)
        again = await self._rewards(policy / WEIGHTS, target, "noise")
        # Weights of one step, for a moment only; the engines read the files wherever they are.
        ahead, behind = out / "ahead.safetensors", out / "behind.safetensors"

        async def step(row: GroupRow | None) -> dict[str, float]:
            predicted = await self._ask(
                lambda: self.analyzer.step.remote(policy, row, ahead, behind)
            )
            rewards = [await self._rewards(weights, target, seed) for weights in (ahead, behind)]
            return {"predicted": predicted} | realized_change(before, *rewards)

        control = await step(None)
        points = []
        for number, row in enumerate(queries):
            self.report("steps on single queries", number, len(queries))
            right = scored_group(row).right
            points.append(
                {"query": row["id"], "right": right, "of": len(row["samples"])} | await step(row)
            )
        ahead.unlink()
        behind.unlink()
        difference, error = mean_and_error(
            [again[name] - before[name] for name in before if name in again]
        )
        result = {
            "points": points,
            "control": control,  # along the target's own gradient
            "reward_before": mean_and_error(list(before.values()))[0],
            # what fresh samples of one and the same policy differ by
            "unchanged_policy": {"difference": difference, "noise_floor": Z95 * error},
            "step_norm": settings.realized_step_norm,
        }
        (out / REALIZED_FILE).write_text(json.dumps(result))

    async def _rewards(
        self, weights: Path, problems: Sequence[ProblemRow], seed: str
    ) -> dict[str, float]:
        """Mean reward of fresh samples of each problem, under the weights in a file."""
        await self.load(weights)
        rows = await self.sample(problems, seed, self.config.readiness.realized_samples_per_prompt)
        return {
            row["id"]: sum(s["reward"] for s in row["samples"]) / len(row["samples"])
            for row in rows
        }

    async def sample(
        self, problems: Sequence[ProblemRow], seed: str, samples: int
    ) -> list[dict[str, Any]]:
        """Samples of each problem at RL's temperature, from the policy that the engines hold:
        ``group_rows``.

        Raises:
            VerdictError: engines lost a group, or nothing could be judged.
        """
        sampling = rl_sampling(self.config, samples)
        requests = [
            GroupRequest(
                row.id,
                row.prompt_tokens,
                sampling,
                seed_for(self.config.seeds.sampling, seed, row.id),
            )
            for row in problems
        ]
        done = 0

        def count(_: Group) -> None:
            nonlocal done
            done += 1
            self.report("rollouts", done, len(requests))

        answers = await self.pool.generate(requests, count)
        refuse_lost(answers)
        groups = [group for group in answers if isinstance(group, Group)]
        judged = await judge(self.verifier, problems, groups)
        require_some(answers, [verdict for _, verdicts in judged for verdict in verdicts])
        return group_rows(judged)

    async def _ask(self, call: Callable[[], Any], attempts: int = 1) -> Any:
        """The analyzer's answer to a call; meanwhile its phase is reported.

        Args:
            call: makes it.
            attempts: how often it is made while the analyzer dies over it. More than one for a call
                that needs nothing from those before it: an analyzer that starts again has forgotten
                them.
        """
        limit = self.config.readiness.timeout_s
        try:
            async with asyncio.timeout(limit):
                for left in reversed(range(attempts)):
                    try:
                        return await self._answer(call())
                    except RayActorError as error:
                        if not left:
                            raise ReadinessError(_DIED) from error
                        log.warning("the influence analyzer died; it starts again", exc_info=True)
                        await self._until_it_is_back()
        except TimeoutError as error:
            raise ReadinessError(
                f"the analysis took over {limit:g} s; raise readiness.timeout_s"
            ) from error

    async def _until_it_is_back(self) -> None:
        deadline = time.monotonic() + self.config.readiness.start_timeout_s
        while True:
            try:
                await self.analyzer.phase.remote()
                return
            except RayActorError as error:
                if time.monotonic() > deadline:
                    raise ReadinessError(_DIED) from error
            await asyncio.sleep(_POLL_S)

    async def _answer(self, call: Any) -> Any:
        answer = asyncio.wrap_future(call.future())
        try:
            while not answer.done():
                await asyncio.wait([answer], timeout=_POLL_S)
                self.report(await self.analyzer.phase.remote(), 0, None)
            return answer.result()
        finally:
            answer.cancel()
