"""Watches the influence while RL trains, from inside the driver; RL never waits for an analysis.

The target's problems are sampled together with the batch of a watched step, by the same policy.
What follows happens in the analyzer's own process. A watched step that comes while an analysis is
still running is left out, and the log says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.driver.influence_analyzer import GroupRow
from actors.logs import log_fields
from actors.rollout.background import start_watched
from bi_ray.batches.rollout import GroupRequest, rl_sampling, seed_for
from bi_ray.config.run import RunConfig
from bi_ray.data.problems import ProblemRow
from bi_ray.policy.published import hold_weights
from bi_ray.policy.version import PolicyVersion
from bi_ray.runs.metrics import append_metrics, cut_metrics

log = logging.getLogger(__name__)


class InfluenceMonitor:
    """Follows one arm's RL.

    Args:
        config: the run.
        analyzer: handle of an ``InfluenceAnalyzer``.
        target: problems whose expected reward is forecast.
        policy: a directory with the architecture.
        out: file that gets a row per analysis.
    """

    def __init__(
        self,
        config: RunConfig,
        analyzer: Any,
        target: Sequence[ProblemRow],
        policy: Path,
        out: Path,
    ) -> None:
        self.config = config
        self.analyzer = analyzer
        self.target = target
        self.policy = policy
        self.out = out
        self._analysis: asyncio.Task[None] | None = None

    def requests(self, step: int) -> list[GroupRequest]:
        """Requests for the target's problems; empty if the policy after ``step`` is unwatched."""
        if step % self.config.readiness.every_rl_steps:
            return []
        if self._analysis is not None and not self._analysis.done():
            log.warning("influence: step %d is left out, the analysis before it still runs", step)
            return []
        sampling = rl_sampling(self.config)
        requests = []
        for problem in self.target:
            # The same random numbers at every step: a change of the reward is less noisy than the
            # reward itself.
            seed = seed_for(self.config.seeds.sampling, "target", problem.id)
            requests.append(GroupRequest(problem.id, problem.prompt_tokens, sampling, seed))
        return requests

    def begin(
        self,
        version: PolicyVersion,
        weights: Path,
        queries: Sequence[GroupRow],
        target: Sequence[GroupRow],
    ) -> None:
        """Analyze a watched step; returns at once.

        Args:
            version: of the policy that made the rollouts.
            weights: the file that the engines have it from; it may be removed once this returns.
            queries: rows of the batch's groups.
            target: rows of the target's groups.
        """
        try:
            held = hold_weights(weights, f"influence_{version.step}.held")
        except OSError:  # no space, or the file is gone: never a reason for RL to stop
            log.warning(
                "influence: the weights of step %d cannot be kept for it",
                version.step,
                exc_info=True,
            )
            return
        with log_fields(step=version.step, version=version):
            work = self._analyze(version.step, held, queries, target)
            self._analysis = start_watched(work, f"influence analysis of step {version.step}")

    def go_back(self, step: int) -> None:
        """RL resumes from ``step``: later rows will be measured again."""
        cut_metrics(self.out, step)

    async def finish(self) -> None:
        """Wait for the analysis in progress, which ends within ``readiness.timeout_s``.

        Its failure is in the log and goes no further.
        """
        if self._analysis is not None:
            await asyncio.wait({self._analysis})

    async def _analyze(
        self, step: int, weights: Path, queries: Sequence[GroupRow], target: Sequence[GroupRow]
    ) -> None:
        try:
            call = self.analyzer.watch.remote(
                self.policy, step, weights, list(queries), list(target)
            )
            row = await asyncio.wait_for(
                asyncio.wrap_future(call.future()), self.config.readiness.timeout_s
            )
            cut_metrics(self.out, step - 1)  # after a restart the same step may come twice
            append_metrics(self.out, row)
        except Exception as error:  # whatever it is, never a reason for RL to stop
            log.warning("influence: the analysis of step %d failed: %s", step, error, exc_info=True)
        finally:
            weights.unlink(missing_ok=True)
