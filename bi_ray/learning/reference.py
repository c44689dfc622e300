"""The reference policy of a KL term, frozen or moving; every rank must make every call."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from bi_ray.config.algorithms import KLConfig
from bi_ray.config.run import ModelConfig
from bi_ray.config.training import LearnerConfig
from bi_ray.learning.learner import load_sharded
from bi_ray.learning.sharding import gather_weights
from bi_ray.policy.logprobs import TokenLogprobs

REFERENCE = "reference.safetensors"  # of a moving reference, in step_N


class Reference:
    """A policy without gradient, sharded as the one that learns.

    Args:
        base: directory of the policy that RL starts from.
        checkpoint: ``step_N`` that the run resumes from, or None at its start.
        config: whether it moves, when and how far.
        model: data type and attention kernel.
        options: of the policy; the reference has no adapters.
        device: where this rank computes.

    Attributes:
        policy: as a function to log-probabilities.
    """

    def __init__(
        self,
        base: Path,
        checkpoint: Path | None,
        config: KLConfig,
        model: ModelConfig,
        options: LearnerConfig,
        device: torch.device,
    ) -> None:
        self._config = config
        weights = None
        if self.moving and checkpoint:
            weights = checkpoint / REFERENCE
        plain = options.model_copy(update={"lora": None})
        self.policy = load_sharded(base, model, plain, device, weights).requires_grad_(False)

    @property
    def moving(self) -> bool:
        """Whether it has a state of its own."""
        return self._config.reference == "moving"

    @torch.no_grad()
    def follow(self, policy: TokenLogprobs, step: int) -> None:
        """Move towards ``policy``, which has the same architecture and shards, if it is time.

        It is every ``kl.moving_every_steps`` steps.
        """
        if not self.moving or step % self._config.moving_every_steps:
            return
        _reshard(self.policy)
        _reshard(policy)
        for own, others in zip(self.policy.parameters(), policy.parameters(), strict=True):
            own.lerp_(others, self._config.moving_rate)

    def gather(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint must hold: full weights on rank 0 by file name; empty if frozen."""
        return {REFERENCE: gather_weights(self.policy.model)} if self.moving else {}


def _reshard(policy: TokenLogprobs) -> None:
    """Undo what a forward pass without a backward pass leaves: the root's weights are whole."""
    if isinstance(policy, FSDPModule):  # the only rank of a group may have no shards
        policy.reshard()
