"""Policies without dropout: engines draw tokens without any, so the learner has none either."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

# dropout of every kind, layers that are left out, and noise on a router's input
_NAMES = ("drop", "jitter")


def switch_off_noise(model: PreTrainedModel) -> None:
    """Set every rate of dropout and of noise in a model and its config to 0.

    The model stays in training mode, which gradient checkpointing needs.
    """
    for module in model.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.p = 0.0
        _clear_rates(module)
    _clear_rates(model.config)


def _clear_rates(owner: object) -> None:
    """Set to 0 every positive float attribute whose name is that of dropout or noise."""
    for name, value in list(vars(owner).items()):
        is_rate = isinstance(value, float) and value > 0
        if is_rate and any(part in name for part in _NAMES):
            setattr(owner, name, 0.0)
