"""Muon in float32: momentum, then the nearest semi-orthogonal matrix by Newton-Schulz iterations.

After Jordan et al. (2024). ``torch.optim.Muon`` computes in bfloat16, which CPUs without such
instructions have to emulate: a step becomes three times slower.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

_A, _B, _C = 3.4445, -4.7750, 2.0315  # coefficients of the quintic iteration
_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """For matrices only; embeddings, norms and heads belong to AdamW.

    Args:
        params: two-dimensional parameters.
        lr: step size; updates have a root mean square of about ``0.2 * lr`` whatever the shape.
        momentum: momentum of the Nesterov average of gradients.
        weight_decay: decoupled weight decay.
    """

    def __init__(
        self, params: Iterable[Tensor], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update; matrices of one shape are orthogonalized together."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[Tensor]] = {}
            for parameter in group["params"]:
                if parameter.grad is not None:
                    by_shape.setdefault(parameter.shape, []).append(parameter)
            for parameters in by_shape.values():
                self._update(
                    parameters,
                    group["lr"],
                    group["momentum"],
                    group["weight_decay"],
                )

    def _update(
        self, parameters: list[Tensor], lr: float, momentum: float, weight_decay: float
    ) -> None:
        """Update parameters that all have the same shape and a gradient."""
        averages = [self._momentum(parameter, momentum) for parameter in parameters]
        directions = orthogonalize(torch.stack(averages))
        scale = 0.2 * max(parameters[0].shape) ** 0.5
        for parameter, direction in zip(parameters, directions, strict=True):
            parameter.mul_(1 - lr * weight_decay)
            parameter.add_(direction, alpha=-lr * scale)

    def _momentum(self, parameter: Tensor, momentum: float) -> Tensor:
        """The Nesterov average of the parameter's gradients."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["average"] = torch.zeros_like(parameter)
        state["average"].lerp_(parameter.grad, 1 - momentum)
        return torch.lerp(parameter.grad, state["average"], momentum)


def orthogonalize(matrices: Tensor) -> Tensor:
    """Bring the singular values of each matrix to about 1.

    Args:
        matrices: shape [count, rows, columns].

    Returns:
        The same shape.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalize(matrices.mT).mT
    x = matrices
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = _A * x + (_B * gram + _C * gram @ gram) @ x
    return x
