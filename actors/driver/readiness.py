"""Readiness of a policy: the pool samples, the verifier judges, the analyzer measures."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayActorError

from actors.driver.engine_policy import EnginePolicy
from actors.driver.influence_analyzer import GroupRow, make_ray_analyzer
from actors.driver.progress import Progress
from actors.driver.sampling import (
    JsonRow,
    group_rows,
    judge,
    outcomes_of,
    problems_by_id,
    refuse_lost,
    require_some,
)
from actors.driver.verifier import VerifierClient
from actors.rollout.pool import RolloutPool
from bi_ray.batches.rollout import Group, GroupRequest, rl_sampling, seed_for
from bi_ray.config.run import RunConfig
from bi_ray.data.problems import ProblemRow
from bi_ray.intervals import Z95
from bi_ray.policy.checkpoint import WEIGHTS
from bi_ray.readiness.measure import Demonstrations
from bi_ray.readiness.realized import mean_and_error, realized_change
from bi_ray.readiness.rollouts import scored_group
from bi_ray.runs.layout import REALIZED_FILE, ROLLOUTS_FILE
from bi_ray.runs.records import read_jsonl

_POLL_S = 1.0
_STEP_SAMPLES = "realised"  # part of these samples' seeds: another word would draw others
_ATTEMPTS = 3  # of an analysis over which the analyzer dies
_DIED = (
    "the influence analyzer died (killed, or out of memory? then lower "
    "readiness.microbatch_tokens or readiness.pairwise_mib); run the same command again to resume"
)
log = logging.getLogger(__name__)


class ReadinessError(RuntimeError):
    """Readiness that cannot be measured; the message says why."""


@dataclass(frozen=True, slots=True)
class _StepFiles:
    """Weights after a single SGD step, for as long as the engines need them.

    Attributes:
        ahead: after the step.
        behind: after the opposite step.
    """

    ahead: Path
    behind: Path


class ReadinessMeter:
    """Measures policies one after the other; lives inside the driver.

    Args:
        config: the run.
        pool: samples.
        policy: brings weights to the engines.
        verifier: judges.
        progress: gets the phase, and how much of it is done.
    """

    def __init__(
        self,
        config: RunConfig,
        pool: RolloutPool,
        policy: EnginePolicy,
        verifier: VerifierClient,
        progress: Progress,
    ) -> None:
        self.config = config
        self.pool = pool
        self.policy = policy
        self.verifier = verifier
        self.progress = progress
        self._analyzer: Any = None

    @property
    def analyzer(self) -> Any:
        """The analyzer's actor, started at the first use."""
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

        Waits for the analyzer to start and to answer, within ``readiness.timeout_s``.

        Raises:
            ReadinessError: it does not answer.
        """
        await self._ask(lambda: self.analyzer.begin_watch.remote(), attempts=_ATTEMPTS)

    async def measure(
        self,
        policy: Path,
        queries: Sequence[ProblemRow],
        target: Sequence[ProblemRow],
        demonstrations: Mapping[str, Demonstrations],
        out: Path,
    ) -> None:
        """Sample both sets and measure the influence of the one on the other.

        Waits for the engines and the verifier, which have deadlines, then for the analyzer, within
        ``readiness.timeout_s``.

        Args:
            policy: directory of the policy.
            queries: problems whose influence is measured.
            target: problems on which they have it.
            demonstrations: held-out ones, by the name of their recipe.
            out: folder that gets the rollouts, a row per query, and the policy's own row.

        Raises:
            ReadinessError: no group has two samples with a verdict, or the analyzer was late or
                died again and again.
            VerdictError: see ``sample``.
        """
        _ = self.analyzer  # it loads its libraries while the engines sample
        await self.policy.load(policy / WEIGHTS)
        samples = self.config.rl.samples_per_prompt
        rows = await self.sample([*queries, *target], "readiness", samples)
        query_ids = {problem.id for problem in queries}
        query_rows: list[GroupRow] = []
        target_rows: list[GroupRow] = []
        lines = []
        for row in rows:
            is_query = row["id"] in query_ids
            (query_rows if is_query else target_rows).append(row)
            lines.append(json.dumps({"kind": "query" if is_query else "target"} | row) + "\n")
        (out / ROLLOUTS_FILE).write_text("".join(lines))
        if not query_rows or not target_rows:
            raise ReadinessError(
                "no group of the queries, or of the target, has two responses with a verdict"
            )
        arguments = (policy, query_rows, target_rows, demonstrations, out)
        await self._ask(lambda: self.analyzer.measure.remote(*arguments), attempts=_ATTEMPTS)

    async def realize(
        self, policy: Path, readiness: Path, target: Sequence[ProblemRow], out: Path
    ) -> None:
        """Take single SGD steps and count what they change on the target.

        Waits for the engines and the verifier, which have deadlines, and for the analyzer, each
        time within ``readiness.timeout_s``.

        Args:
            policy: directory of the policy.
            readiness: folder that ``measure`` filled for it.
            target: the problems of the target.
            out: an existing folder, which gets ``realized.json``.

        Raises:
            ReadinessError: the analyzer was late or died.
            VerdictError: see ``sample``.
        """
        lines = read_jsonl(readiness / ROLLOUTS_FILE, JsonRow)
        queries = self._informative(lines)[: self.config.readiness.realized_queries]
        target_rows = [row for row in lines if row["kind"] == "target"]
        await self._ask(lambda: self.analyzer.aim.remote(policy, target_rows), attempts=_ATTEMPTS)
        before = await self._rewards(policy / WEIGHTS, target, _STEP_SAMPLES)
        again = await self._rewards(policy / WEIGHTS, target, "noise")
        files = _StepFiles(out / "ahead.safetensors", out / "behind.safetensors")
        control = await self._realize_step(policy, None, files, target, before)
        points: list[dict[str, object]] = []
        for number, row in enumerate(queries):
            self.progress.report("steps on single queries", number, len(queries))
            right, samples = scored_group(row).right, len(row["samples"])
            change = await self._realize_step(policy, row, files, target, before)
            points.append({"query": row["id"], "right": right, "of": samples} | change)
        files.ahead.unlink()
        files.behind.unlink()
        result = {
            "points": points,
            "control": control,  # along the target's own gradient
            "reward_before": mean_and_error(list(before.values()))[0],
            # by how much fresh samples of one and the same policy differ
            "unchanged_policy": _noise(before, again),
            "step_norm": self.config.readiness.realized_step_norm,
        }
        (out / REALIZED_FILE).write_text(json.dumps(result))

    def _informative(self, lines: Sequence[GroupRow]) -> list[GroupRow]:
        """The rows of the queries that teach something."""
        by_outcome = self.config.rl.wrong_groups == "outcome"
        queries = []
        for row in lines:
            if row["kind"] == "query" and scored_group(row, by_outcome=by_outcome).informative:
                queries.append(row)
        return queries

    async def _realize_step(
        self,
        policy: Path,
        query: GroupRow | None,
        files: _StepFiles,
        target: Sequence[ProblemRow],
        before: dict[str, float],
    ) -> dict[str, float]:
        """The change that a single step promises, and the one that samples show.

        ``query`` None: the step is along the target's own gradient.
        """
        ahead, behind = files.ahead, files.behind
        predicted = await self._ask(lambda: self.analyzer.step.remote(policy, query, ahead, behind))
        rewards_ahead = await self._rewards(ahead, target, _STEP_SAMPLES)
        rewards_behind = await self._rewards(behind, target, _STEP_SAMPLES)
        change = realized_change(before, rewards_ahead, rewards_behind)
        return {"predicted": predicted} | change

    async def _rewards(
        self, weights: Path, problems: Sequence[ProblemRow], seed: str
    ) -> dict[str, float]:
        """Mean reward of fresh samples of each problem, under the weights in a file."""
        await self.policy.load(weights)
        samples = self.config.readiness.realized_samples_per_prompt
        rewards = {}
        for row in await self.sample(problems, seed, samples):
            total = sum(sample["reward"] for sample in row["samples"])
            rewards[row["id"]] = total / len(row["samples"])
        return rewards

    async def sample(
        self, problems: Sequence[ProblemRow], seed: str, samples: int
    ) -> list[JsonRow]:
        """Sample each problem at RL's temperature, from the policy that the engines hold.

        Waits for the engines and the verifier, which have deadlines.

        Args:
            problems: to sample.
            seed: a word that the random numbers depend on.
            samples: of each problem.

        Returns:
            the rows of ``group_rows``.

        Raises:
            VerdictError: engines lost a group, or nothing could be judged.
        """
        sampling = rl_sampling(self.config, samples)
        requests = []
        for problem in problems:
            drawn = seed_for(self.config.seeds.sampling, seed, problem.id)
            requests.append(GroupRequest(problem.id, problem.prompt_tokens, sampling, drawn))
        done = 0

        def count(_: Group) -> None:
            nonlocal done
            done += 1
            self.progress.report("rollouts", done, len(requests))

        answers = await self.pool.generate(requests, count)
        refuse_lost(answers)
        groups = [group for group in answers if isinstance(group, Group)]
        judged = await judge(self.verifier, problems_by_id(problems), groups)
        require_some(answers, outcomes_of(judged))
        return group_rows(judged)

    async def _ask(self, call: Callable[[], Any], attempts: int = 1) -> Any:
        """The analyzer's answer to a call; meanwhile its phase is reported.

        Args:
            call: makes it.
            attempts: how often it is made while the analyzer dies over it. More than one only for a
                call that needs nothing from earlier ones: an analyzer that starts again has
                forgotten them.
        """
        limit_s = self.config.readiness.timeout_s
        try:
            async with asyncio.timeout(limit_s):
                for _ in range(attempts - 1):
                    try:
                        return await self._answer(call())
                    except RayActorError:
                        log.warning("the influence analyzer died; it starts again", exc_info=True)
                        await self._until_it_is_back()
                return await self._answer(call())
        except RayActorError as error:
            raise ReadinessError(_DIED) from error
        except TimeoutError as error:
            raise ReadinessError(
                f"the analysis took over {limit_s:g} s; raise readiness.timeout_s"
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
                self.progress.report(await self.analyzer.phase.remote())
            return answer.result()
        finally:
            answer.cancel()


def _noise(before: Mapping[str, float], again: Mapping[str, float]) -> dict[str, float]:
    """How much the rewards of two samplings of one policy differ, and the floor of that noise."""
    changes = [again[name] - before[name] for name in before if name in again]
    difference, error = mean_and_error(changes)
    return {"difference": difference, "noise_floor": Z95 * error}
