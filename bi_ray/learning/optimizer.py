"""The optimizer of a run, and its learning rate: a function of the step, so without a state."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from bi_ray.config.training import OptimizerConfig


def make_optimizer(
    parameters: Iterable[nn.Parameter], config: OptimizerConfig
) -> torch.optim.Optimizer:
    """AdamW, or SGD without momentum, over one group of parameters."""
    if config.kind == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.learning_rate, weight_decay=config.weight_decay
        )
    # fused: one pass over the weights instead of ten; on one core 3 times faster with 1 M weights,
    # 6 times with 30 M
    return torch.optim.AdamW(
        parameters,
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """The rate of update ``step`` (from 1) of ``steps``.

    A linear warm-up that reaches the full rate at step ``warmup_steps``, then the full rate, then a
    fall over the last ``decay_share`` of the steps, a line or half a cosine, that would reach 0 one
    step after the end.
    """
    factor = 1.0
    if config.warmup_steps:
        factor = min(factor, step / config.warmup_steps)
    if config.decay_share:
        left = min(1.0, (steps - step + 1) / (config.decay_share * steps + 1))
        if config.decay == "cosine":
            left = (1 - math.cos(math.pi * left)) / 2
        factor = min(factor, left)
    return config.learning_rate * factor


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of every group."""
    for group in optimizer.param_groups:
        group["lr"] = rate
