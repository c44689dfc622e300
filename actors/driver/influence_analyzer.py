"""The influence analyzer: measures a policy's readiness from its rollouts, in its own process."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import ray
import torch
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from safetensors.torch import load_file
from transformers import PreTrainedTokenizerBase

from actors.logs import start_logging
from bi_ray.batches.scored_group import ScoredGroup
from bi_ray.config.run import RunConfig
from bi_ray.policy.checkpoint import load_model, load_tokenizer, save_weights, tied_weights
from bi_ray.readiness.influence import (
    Differentiator,
    Weights,
    measure_influence,
    objective_direction,
    reward_direction,
)
from bi_ray.readiness.measure import Demonstrations, held_out_perplexity, measure_queries
from bi_ray.readiness.realized import Forecast, step_along
from bi_ray.readiness.records import WatchedQuery
from bi_ray.readiness.rollouts import scored_group
from bi_ray.runs.layout import MEASURED_QUERIES_FILE, READINESS_FILE
from bi_ray.tasks.registry import build_task

_LOWEST_PRIORITY = 19  # Ray starts its workers at 15
GroupRow = Mapping[str, Any]  # see ``actors.driver.sampling.group_rows``


class InfluenceAnalyzer:
    """Holds a copy of the policy, in float32 whatever RL uses: in bfloat16 influence is noise.

    Args:
        config: the run.
    """

    def __init__(self, config: RunConfig) -> None:
        start_logging("analyzer")
        self.config = config
        self.settings = config.readiness
        torch.set_num_threads(self.settings.threads)
        self.task = build_task(config.task, config.seeds.data)
        self._phase = "starting"
        self._policy: Path | None = None
        self._differentiator: Differentiator | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._forecast: Forecast | None = None
        self._target_direction: Weights | None = None

    def phase(self) -> str:
        """What is being computed."""
        return self._phase

    def measure(
        self,
        policy: Path,
        queries: Sequence[GroupRow],
        target: Sequence[GroupRow],
        demonstrations: Mapping[str, Demonstrations],
        out: Path,
    ) -> None:
        """Write ``queries.jsonl`` and ``readiness.json`` of a policy into the folder ``out``.

        Args:
            policy: its directory.
            queries: rows of the groups whose influence is measured.
            target: rows of the groups on which they have it.
            demonstrations: tokens of held-out prompts and responses, by the name of their
                recipe.
            out: an existing folder.
        """
        differentiator = self._open(policy)
        rows, whole = measure_queries(
            differentiator,
            self._groups(queries, with_behaviors=True),
            [row["samples"] for row in queries],
            self._groups(target),
            self.settings.token_scales,
            self.settings.pairwise_mib,
            self._set_phase,
        )
        self._set_phase("perplexity")
        whole = replace(whole, perplexity=held_out_perplexity(differentiator, demonstrations))
        lines = [json.dumps(row.as_json()) + "\n" for row in rows]
        (out / MEASURED_QUERIES_FILE).write_text("".join(lines))
        (out / READINESS_FILE).write_text(json.dumps(whole.as_json()))

    def watch(
        self,
        policy: Path,
        step: int,
        weights: Path,
        queries: Sequence[GroupRow],
        target: Sequence[GroupRow],
    ) -> dict[str, Any]:
        """Influence in the middle of RL, and whether the forecast of the last time came true.

        Args:
            policy: a directory with the architecture.
            step: how many RL steps the policy has behind it.
            weights: safetensors file of the policy that made the rollouts; removed once it is read.
            queries: groups of the step that it is about to learn from.
            target: groups of the target problems, by the same policy.

        Returns:
            the row of ``influence.jsonl``.
        """
        differentiator = self._open(policy)
        _set_weights(differentiator, load_file(weights))
        weights.unlink()
        groups = [group for group in self._groups(queries) if group.informative]
        target_groups = self._groups(target)
        self._set_phase(f"influence at step {step}")
        scale = self.settings.token_scales[0]
        direction = objective_direction(differentiator, target_groups, scale)
        watched = []
        influences = measure_influence(differentiator, groups, direction, scale)
        for group, influence in zip(groups, influences, strict=True):
            query = WatchedQuery(
                right=group.right,
                of=len(group.rollouts),
                k_plus=influence.k_plus,
                k_minus=influence.k_minus,
                dj=influence.dj,
            )
            watched.append(asdict(query))
        forecast, before = Forecast.make(step, differentiator, target_groups), self._forecast
        self._forecast = forecast
        return {"step": step, "queries": watched} | asdict(forecast.against(before))

    def begin_watch(self) -> None:
        """Another arm's RL begins: forget what was forecast, and leave the processor to RL."""
        self._forecast = None
        _lower_priority()

    def aim(self, policy: Path, target: Sequence[GroupRow]) -> None:
        """Take the target whose expected reward ``step`` is to change."""
        self._target_direction = reward_direction(self._open(policy), self._groups(target))

    def step(self, policy: Path, query: GroupRow | None, ahead: Path, behind: Path) -> float:
        """Write the weights after one SGD step along grad J(q), and after one against it.

        Its length is ``readiness.realized_step_norm``.

        Args:
            policy: directory of the policy.
            query: its group; None: along the target's own gradient, the most that such a step can
                achieve.
            ahead: file for the weights after the step.
            behind: file for those after the opposite step.

        Returns:
            The change of expected reward on the target that is predicted for the step ahead.
        """
        assert self._target_direction is not None
        differentiator, target = self._open(policy), self._target_direction
        direction = target
        if query is not None:
            direction = reward_direction(differentiator, self._groups([query]))
        length = self.settings.realized_step_norm
        tied = tied_weights(policy)
        opposite, _ = step_along(differentiator, direction, -length, target)
        save_weights(opposite, behind, tied)
        weights, predicted = step_along(differentiator, direction, length, target)
        save_weights(weights, ahead, tied)
        return predicted

    def _open(self, policy: Path) -> Differentiator:
        if self._policy != policy or self._differentiator is None:
            settings = self.settings
            # forward mode has no rule for the fused attention kernels of a CPU
            attention = "eager" if settings.method == "forward" else self.config.model.attention
            model = load_model(policy, "float32", attention).eval()
            if settings.gpus:
                model = model.to("cuda")
            self._differentiator = Differentiator(
                model,
                self.config.rl.temperature,
                settings.microbatch_tokens,
                settings.method,
                settings.shift_norm,
                self.config.rl.top_p,
            )
            self._tokenizer = load_tokenizer(policy)
            self._policy = policy
        return self._differentiator

    def _groups(self, rows: Sequence[GroupRow], with_behaviors: bool = False) -> list[ScoredGroup]:
        spans = self.task.behavior_spans if with_behaviors else None
        by_outcome = self.config.rl.wrong_groups == "outcome"
        return [scored_group(row, self._tokenizer, spans, by_outcome) for row in rows]

    def _set_phase(self, phase: str) -> None:
        self._phase = phase


def _set_weights(differentiator: Differentiator, weights: Weights) -> None:
    """Copy published weights into the policy; a tied head is not among its parameters."""
    with torch.no_grad():
        for name, parameter in differentiator.parameters.items():
            parameter.copy_(weights[name])


def _lower_priority() -> None:
    """Give this process the lowest priority, for good: only root may raise it again."""
    os.nice(_LOWEST_PRIORITY)


def make_ray_analyzer(config: RunConfig) -> Any:
    """The analyzer as an actor on this node, which has the published weights in its memory."""
    here = ray.get_runtime_context().get_node_id()
    return (
        ray.remote(InfluenceAnalyzer)
        .options(
            num_cpus=config.readiness.cpus,
            num_gpus=config.readiness.gpus,
            max_restarts=-1,  # it only loses its current estimate
            max_concurrency=2,  # one to compute, one to ask for the phase
            scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True),
            # Threads that wait for each other would spin otherwise, on cores that engines and
            # learners need.
            runtime_env={"env_vars": {"OMP_WAIT_POLICY": "PASSIVE"}},
        )
        .remote(config)
    )
