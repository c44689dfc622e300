"""The reference policy of a KL term: frozen, or moving after the policy. Everything here is
collective.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule

from bi_ray.config import KLConfig, LearnerConfig, ModelConfig
from bi_ray.learning.learner import load_sharded
from bi_ray.learning.sharding import gather_weights
from bi_ray.policy.logprobs import TokenLogprobs

REFERENCE = "reference.safetensors"  # of a moving reference, in step_N


class Reference:
    """A policy without gradient, sharded as the one that learns.

    Args:
        base: directory of the policy that RL starts from.
        checkpoint: ``step_N`` from which the run goes on, or None at its start.
        config: whether it moves, when and how far.
        model: data type and attention kernel.
        options: of the policy; adapters are none of the reference's.
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
        weights = checkpoint / REFERENCE if self.moving and checkpoint else None
        plain = options.model_copy(update={"lora": None})
        self.policy = load_sharded(base, model, plain, device, weights).requires_grad_(False)

    @property
    def moving(self) -> bool:
        """Whether it has a state of its own."""
        return self._config.reference == "moving"

    @torch.no_grad()
    def follow(self, policy: TokenLogprobs, step: int) -> None:
        """Go towards ``policy`` (of the same architecture and shards), if it is time after
        ``step``.
        """
        if not self.moving or step % self._config.moving_every_steps:
            return
        for model in (self.policy, policy):
            if isinstance(model, FSDPModule):  # one rank may have no shards
                # without a backward pass after it, a forward pass leaves the root's weights whole
                model.reshard()
        for own, others in zip(self.policy.parameters(), policy.parameters(), strict=True):
            own.lerp_(others, self._config.moving_rate)

    def gather(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint must hold, as file name -> full weights on rank 0; nothing for a frozen
        one.
        """
        return {REFERENCE: gather_weights(self.policy.model)} if self.moving else {}
