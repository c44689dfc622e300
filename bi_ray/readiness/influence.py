"""Data co-influence: how a step of RL on one query changes the objective on others (Eq. 4 and 5,
arXiv:2505.18917).

    dJ(Q) = mean over target rollouts (q', o') and rollouts o of q of
            A(q', o') A(q, o) <grad log pi(o'|q'), grad log pi(o|q)>

It is linear in the target: with the direction v = mean of A(q', o') grad log pi(o'|q'), each
rollout needs <v, grad log pi(o|q)> alone, a directional derivative of its log-probability along v.
One pass of forward-mode differentiation gives it for all tokens of many rollouts at once, exactly,
without a stored gradient. K+ and K- of a query are its means over the right and the wrong rollouts.
Everything is per unit of learning rate, and in float32: in bfloat16 it is noise.

``token_scale`` says what log pi(o|q) is: the ``sum`` over tokens of Eq. 5, or the ``mean`` (as
LESS, 2402.04333).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bi_ray.policy.logprobs import ALL_AT_ONCE, TokenLogprobs
from bi_ray.policy.packing import MicroBatch, Row, in_batches
from bi_ray.readiness.rollouts import ScoredGroup

TokenScale = Literal["sum", "mean"]
Method = Literal["forward", "shifted"]
Weights = dict[str, Tensor]


@dataclass(frozen=True, slots=True)
class QueryInfluence:
    """What training on one query does to the target, per unit of learning rate.

    Attributes:
        id: of the query.
        right: how many of its rollouts are right.
        of: how many there are.
        k_plus: mean over its right rollouts of <v, grad log pi(o|q)>; None where none is right.
        k_minus: the same over the wrong ones.
        dj: the influence: mean over its rollouts of A(q, o) <v, grad log pi(o|q)>.
        behaviors: by behavior, how many tokens it wrote and their part of ``dj``.
    """

    id: str
    right: int
    of: int
    k_plus: float | None
    k_minus: float | None
    dj: float
    behaviors: dict[str, tuple[int, float]]


class Differentiator:
    """Derivatives of log-probabilities under one policy.

    Args:
        model: in evaluation mode, float32; ``forward`` needs eager attention on a CPU.
        temperature: at which the rollouts were sampled.
        top_p: of the probability that they were sampled from.
        microbatch_tokens: most padded tokens of one pass.
        method: ``forward``, exact; or ``shifted``, two plain passes at weights moved along v by
            +-``shift_norm``, which works with every attention kernel and is off by about 1 %
            (``benchmarks/influence_cost.py`` measures it).
        shift_norm: Euclidean length of that move.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        temperature: float = 1.0,
        microbatch_tokens: int = 4096,
        method: Method = "forward",
        shift_norm: float = 3e-3,
        top_p: float = 1.0,
    ) -> None:
        self.model = model
        self._policy = TokenLogprobs(model, ALL_AT_ONCE)
        self.temperature = temperature
        self.top_p = top_p
        self.microbatch_tokens = microbatch_tokens
        self.method = method
        self.shift_norm = shift_norm
        self.parameters: Weights = {name: p.detach() for name, p in model.named_parameters()}
        self.device = next(iter(self.parameters.values())).device

    def gradient(self, rows: Sequence[Row]) -> Weights:
        """Gradient of the sum over rows and tokens of weight times log-probability, by parameter
        name.
        """
        leaves = {name: p.clone().requires_grad_(True) for name, p in self.parameters.items()}
        for _, batch in in_batches(rows, self.microbatch_tokens):
            batch = batch.to(self.device)
            (self._logprobs(leaves, batch) * batch.weights).sum().backward()
        return {
            name: torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.detach()
            for name, leaf in leaves.items()
        }

    def along(self, rows: Sequence[Row], direction: Weights) -> list[Tensor]:
        """Directional derivatives of the log-probability of every token.

        Returns:
            For each row a tensor [learned tokens], float32 on the CPU, of <direction, grad log
            pi(token)>.
        """
        found: dict[int, Tensor] = {}
        for numbers, batch in in_batches(rows, self.microbatch_tokens):
            values = self._derivatives(batch.to(self.device), direction).cpu()
            found |= dict(
                zip(numbers, values.split([rows[i].learned for i in numbers]), strict=True)
            )
        return [found[i] for i in range(len(rows))]

    def _derivatives(self, batch: MicroBatch, direction: Weights) -> Tensor:
        if self.method == "forward":
            return torch.func.jvp(
                lambda weights: self._logprobs(weights, batch), (self.parameters,), (direction,)
            )[1]
        length = norm(direction)
        if length == 0:
            return torch.zeros(len(batch.targets), device=self.device)
        size = self.shift_norm / length
        with torch.no_grad():
            ahead, behind = (
                self._logprobs(
                    {n: p + sign * size * direction[n] for n, p in self.parameters.items()}, batch
                )
                for sign in (1, -1)
            )
        return (ahead - behind) / (2 * size)

    def _logprobs(self, weights: Weights, batch: MicroBatch) -> Tensor:
        """Log-probabilities [learned tokens] under other weights than the model's own."""
        # tied parameters: the weights name the embedding once, and the head follows it
        named = {f"model.{name}": value for name, value in weights.items()}
        arguments = batch, self.temperature, False, self.top_p
        return torch.func.functional_call(self._policy, named, arguments, tie_weights=True)[0]


def norm(direction: Weights) -> float:
    """Euclidean length of the whole direction."""
    return float(
        torch.stack([part.double().square().sum() for part in direction.values()]).sum().sqrt()
    )


def dot(left: Weights, right: Weights) -> float:
    """Inner product of two directions, summed in float64."""
    return sum(float((part.double() * right[name].double()).sum()) for name, part in left.items())


def surrogate_rows(
    groups: Sequence[ScoredGroup],
    weigh: Callable[[ScoredGroup], Sequence[float]],
    token_scale: TokenScale,
) -> list[Row]:
    """Rows whose weighted log-probabilities sum to the mean over all rollouts of weight times log
    pi(o|q).

    Rollouts of weight 0 are left out, but count in the mean.
    """
    total = max(1, sum(len(group.rollouts) for group in groups))
    rows: list[Row] = []
    for group in groups:
        weights = [
            weight / total / (len(rollout.tokens) if token_scale == "mean" else 1)
            for weight, rollout in zip(weigh(group), group.rollouts, strict=True)
        ]
        rows += [row for row in group.rows(weights) if row.weight != 0 and row.learned]
    return rows


def objective_direction(
    differentiator: Differentiator, target: Sequence[ScoredGroup], token_scale: TokenScale
) -> Weights:
    """The v of Eq. 5: the gradient of GRPO's objective on the target (Eq. 12 averaged over its
    queries).
    """
    return differentiator.gradient(surrogate_rows(target, ScoredGroup.advantages, token_scale))


def direction_in_halves(
    differentiator: Differentiator, target: Sequence[ScoredGroup], token_scale: TokenScale
) -> tuple[Weights, float | None]:
    """``objective_direction``, and the cosine of the directions of two halves of the target's
    problems.

    The halves have nothing in common but the policy, so their cosine c says how much of a direction
    is signal: about 2c / (1 + c) of the squared length of the whole, the rest being the noise of so
    few rollouts (Spearman and Brown's formula). None where a half has no informative problem.
    """
    halves = [objective_direction(differentiator, target[part::2], token_scale) for part in (0, 1)]
    counts = [sum(len(group.rollouts) for group in target[part::2]) for part in (0, 1)]
    shares = [count / max(1, sum(counts)) for count in counts]
    whole = {name: shares[0] * halves[0][name] + shares[1] * halves[1][name] for name in halves[0]}
    lengths = norm(halves[0]) * norm(halves[1])
    return whole, dot(halves[0], halves[1]) / lengths if lengths else None


def reward_direction(differentiator: Differentiator, target: Sequence[ScoredGroup]) -> Weights:
    """Unbiased gradient of the expected reward on the target (advantages without a std; sums over
    tokens).
    """
    return differentiator.gradient(surrogate_rows(target, ScoredGroup.centered_rewards, "sum"))


def measure_influence(
    differentiator: Differentiator,
    queries: Sequence[ScoredGroup],
    direction: Weights,
    token_scale: TokenScale,
) -> list[QueryInfluence]:
    """Influence of every query on the target whose direction is given, in the order of the queries."""
    rows = [row for group in queries for row in group.rows([1.0] * len(group.rollouts))]
    derivatives = iter(differentiator.along(rows, direction))
    return [_of_query(group, derivatives, token_scale) for group in queries]


def _of_query(
    group: ScoredGroup, derivatives: Iterator[Tensor], token_scale: TokenScale
) -> QueryInfluence:
    by_truth: dict[bool, list[float]] = {True: [], False: []}
    behaviors: dict[str, tuple[int, float]] = {}
    dj = 0.0
    for rollout, advantage in zip(group.rollouts, group.advantages(), strict=True):
        tokens = next(derivatives).double()
        if token_scale == "mean":
            tokens = tokens / max(1, len(tokens))
        by_truth[rollout.right].append(float(tokens.sum()))
        parts = tokens * (advantage / len(group.rollouts))
        dj += float(parts.sum())
        for behavior, part in zip(
            rollout.behaviors, parts.tolist(), strict=bool(rollout.behaviors)
        ):
            count, influence = behaviors.get(behavior, (0, 0.0))
            behaviors[behavior] = (count + 1, influence + part)
    return QueryInfluence(
        group.id,
        group.right,
        len(group.rollouts),
        _mean(by_truth[True]),
        _mean(by_truth[False]),
        dj,
        behaviors,
    )


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def pairwise_influence(
    differentiator: Differentiator, queries: Sequence[ScoredGroup], token_scale: TokenScale
) -> Tensor:
    """All against all, as the paper measures it, but exact: <grad J(q'), grad J(q)> for every two
    queries.

    The mean of a column over all rows is the influence dJ of a query with the queries themselves as
    target. The diagonal, divided by the number of queries, is the self term in it: a square, which
    is never negative.

    Returns:
        [queries, queries], float64, symmetric. Rows of uninformative queries are 0. Holds one
        gradient for each informative query: 4 bytes times parameters times queries.
    """
    informative = [i for i, group in enumerate(queries) if group.informative]
    matrix = torch.zeros(len(queries), len(queries), dtype=torch.float64)
    if not informative:
        return matrix
    gradients = torch.stack(
        [
            flatten(objective_direction(differentiator, [queries[i]], token_scale))
            for i in informative
        ]
    )
    index = torch.tensor(informative)
    matrix[index[:, None], index[None, :]] = (gradients @ gradients.T).double().cpu()
    return matrix


def flatten(direction: Weights) -> Tensor:
    """All of a direction as one vector [parameters]."""
    return torch.cat([part.flatten() for part in direction.values()])
