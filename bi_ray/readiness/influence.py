"""Data co-influence: how a step of RL on one query changes the objective on others (Eq. 4 and 5,
arXiv:2505.18917).

    dJ(Q) = mean over target rollouts (q', o') and rollouts o of q of
            A(q', o') A(q, o) <grad log pi(o'|q'), grad log pi(o|q)>

It is linear in the target: with the direction v = mean of A(q', o') grad log pi(o'|q'), each
rollout only needs <v, grad log pi(o|q)>, the directional derivative of its log-probability along v.
One pass of forward-mode differentiation gives it for all tokens of many rollouts at once, exactly,
without a stored gradient. K+ and K- of a query are its means over the right and the wrong rollouts.
Everything is per unit of learning rate, and in float32: in bfloat16 it would be noise.

``token_scale`` says what log pi(o|q) is: the ``sum`` over tokens of Eq. 5, or the ``mean`` (as in
LESS, arXiv:2402.04333).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bi_ray.batches.scored_group import ScoredGroup
from bi_ray.policy.logprobs import ALL_AT_ONCE, TokenLogprobs
from bi_ray.policy.packing import MicroBatch, Row, in_batches
from bi_ray.readiness.records import BehaviorPart, Influence
from bi_ray.readiness.rollouts import packing_rows, unweighted_rows

TokenScale = Literal["sum", "mean"]
Method = Literal["forward", "shifted"]
Weights = dict[str, Tensor]


class Differentiator:
    """Derivatives of log-probabilities under one policy.

    Args:
        model: in evaluation mode, float32; ``forward`` needs eager attention on a CPU.
        temperature: at which the rollouts were sampled.
        microbatch_tokens: most padded tokens of one pass.
        method: ``forward``, which is exact; or ``shifted``, two plain passes at weights moved along
            v by +-``shift_norm``, which works with every attention kernel and is off by about 1 %
            (``benchmarks/influence_cost.py`` measures it).
        shift_norm: Euclidean length of that move.
        top_p: nucleus from which the rollouts were sampled.
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
        """Gradient of the sum over rows and tokens of weight times log-probability.

        Returns:
            By parameter name, in the shape of the parameter.
        """
        leaves = {name: p.clone().requires_grad_(True) for name, p in self.parameters.items()}
        for _, batch in in_batches(rows, self.microbatch_tokens):
            batch = batch.to(self.device)
            (self._logprobs(leaves, batch) * batch.weights).sum().backward()
        gradient = {}
        for name, leaf in leaves.items():
            gradient[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.detach()
        return gradient

    def along(self, rows: Sequence[Row], direction: Weights) -> list[Tensor]:
        """Directional derivatives of the log-probability of every token.

        Returns:
            For each row a tensor [learned tokens], float32 on the CPU, of <direction, grad log
            pi(token)>.
        """
        by_row: dict[int, Tensor] = {}
        for numbers, batch in in_batches(rows, self.microbatch_tokens):
            values = self._derivatives(batch.to(self.device), direction).cpu()
            parts = values.split([rows[number].learned for number in numbers])
            by_row.update(zip(numbers, parts, strict=True))
        return [by_row[number] for number in range(len(rows))]

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
            ahead = self._logprobs(self.moved(size, direction), batch)
            behind = self._logprobs(self.moved(-size, direction), batch)
        return (ahead - behind) / (2 * size)

    def moved(self, scale: float, direction: Weights) -> Weights:
        """The weights after a move of ``scale`` times ``direction``."""
        return {name: p + scale * direction[name] for name, p in self.parameters.items()}

    def _logprobs(self, weights: Weights, batch: MicroBatch) -> Tensor:
        """Log-probabilities [learned tokens] under other weights than the model's own."""
        # tied parameters: the weights name the embedding once, and the head follows it
        named = {f"model.{name}": value for name, value in weights.items()}
        arguments = batch, self.temperature, False, self.top_p
        return torch.func.functional_call(self._policy, named, arguments, tie_weights=True)[0]


def norm(direction: Weights) -> float:
    """Euclidean length of a whole direction."""
    squares = [part.double().square().sum() for part in direction.values()]
    return float(torch.stack(squares).sum().sqrt())


def dot(left: Weights, right: Weights) -> float:
    """Inner product of two directions, summed in float64."""
    return sum(float((part.double() * right[name].double()).sum()) for name, part in left.items())


def flatten(direction: Weights) -> Tensor:
    """A whole direction as one vector [parameters]."""
    return torch.cat([part.flatten() for part in direction.values()])


def surrogate_rows(
    groups: Sequence[ScoredGroup],
    weigh: Callable[[ScoredGroup], Sequence[float]],
    token_scale: TokenScale,
) -> list[Row]:
    """Rows whose weighted log-probabilities sum to the mean over all rollouts of w log pi(o|q).

    Args:
        groups: the rollouts. Those of weight 0 are left out, but count in the mean.
        weigh: the weights w of a group's rollouts.
        token_scale: what log pi(o|q) is.
    """
    total = max(1, sum(len(group.rollouts) for group in groups))
    rows: list[Row] = []
    for group in groups:
        weights = []
        for weight, rollout in zip(weigh(group), group.rollouts, strict=True):
            length = len(rollout.tokens) if token_scale == "mean" else 1
            weights.append(weight / total / length)
        for row in packing_rows(group, weights):
            if row.weight != 0 and row.learned:
                rows.append(row)
    return rows


def objective_direction(
    differentiator: Differentiator, target: Sequence[ScoredGroup], token_scale: TokenScale
) -> Weights:
    """The v of Eq. 5: the gradient of GRPO's objective (Eq. 12), averaged over the target."""
    return differentiator.gradient(surrogate_rows(target, ScoredGroup.advantages, token_scale))


def direction_in_halves(
    differentiator: Differentiator, target: Sequence[ScoredGroup], token_scale: TokenScale
) -> tuple[Weights, float | None]:
    """``objective_direction``, and the cosine between the directions of two halves of the target.

    The halves have nothing in common but the policy, so their cosine c says how much of a direction
    is signal: about 2c / (1 + c) of the squared length of the whole, the rest being the noise of so
    few rollouts (Spearman and Brown's formula). None if a half has no informative problem.
    """
    even, odd = target[0::2], target[1::2]
    first = objective_direction(differentiator, even, token_scale)
    second = objective_direction(differentiator, odd, token_scale)
    first_count = sum(len(group.rollouts) for group in even)
    second_count = sum(len(group.rollouts) for group in odd)
    total = max(1, first_count + second_count)
    first_share, second_share = first_count / total, second_count / total
    whole = {name: first_share * first[name] + second_share * second[name] for name in first}
    lengths = norm(first) * norm(second)
    cosine = dot(first, second) / lengths if lengths else None
    return whole, cosine


def reward_direction(differentiator: Differentiator, target: Sequence[ScoredGroup]) -> Weights:
    """Unbiased gradient of the expected reward on the target.

    Advantages are not divided by a standard deviation, and log-probabilities are sums over tokens.
    """
    return differentiator.gradient(surrogate_rows(target, ScoredGroup.centered_rewards, "sum"))


def measure_influence(
    differentiator: Differentiator,
    queries: Sequence[ScoredGroup],
    direction: Weights,
    token_scale: TokenScale,
) -> list[Influence]:
    """Influence of every query on the target that ``direction`` belongs to, in order."""
    derivatives = differentiator.along(unweighted_rows(queries), direction)
    influences = []
    start = 0
    for group in queries:
        end = start + len(group.rollouts)
        influences.append(_influence_of(group, derivatives[start:end], token_scale))
        start = end
    return influences


def _influence_of(
    group: ScoredGroup, derivatives: Sequence[Tensor], token_scale: TokenScale
) -> Influence:
    """Influence of one query, from the derivatives [learned tokens] of each of its rollouts."""
    right: list[float] = []
    wrong: list[float] = []
    behaviors: dict[str, BehaviorPart] = {}
    dj = 0.0
    for rollout, advantage, tokens in zip(
        group.rollouts, group.advantages(), derivatives, strict=True
    ):
        tokens = tokens.double()
        if token_scale == "mean":
            tokens = tokens / max(1, len(tokens))
        of_truth = right if rollout.right else wrong
        of_truth.append(float(tokens.sum()))
        parts = tokens * (advantage / len(group.rollouts))
        dj += float(parts.sum())
        if rollout.behaviors:
            _add_by_behavior(behaviors, rollout.behaviors, parts.tolist())
    return Influence(_mean_or_none(right), _mean_or_none(wrong), dj, behaviors)


def _add_by_behavior(
    totals: dict[str, BehaviorPart], behaviors: Sequence[str], parts: Sequence[float]
) -> None:
    """Add what each token carries of ``dj`` to the total of the behavior that wrote it."""
    for behavior, part in zip(behaviors, parts, strict=True):
        total = totals.get(behavior, BehaviorPart(0, 0.0))
        totals[behavior] = BehaviorPart(total.tokens + 1, total.dj + part)


def _mean_or_none(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def pairwise_influence(
    differentiator: Differentiator, queries: Sequence[ScoredGroup], token_scale: TokenScale
) -> Tensor:
    """All against all, as in the paper but exact: <grad J(q'), grad J(q)> for every two queries.

    The mean of a column over all rows is the influence dJ of a query with the queries themselves as
    target. The diagonal, divided by the number of queries, is the self term in it: a square, which
    is never negative.

    Returns:
        [queries, queries], float64, symmetric. Rows of uninformative queries are 0. Holds one
        gradient for each informative query: 4 bytes times parameters times queries.
    """
    informative = [number for number, group in enumerate(queries) if group.informative]
    matrix = torch.zeros(len(queries), len(queries), dtype=torch.float64)
    if not informative:
        return matrix
    gradients = []
    for number in informative:
        direction = objective_direction(differentiator, [queries[number]], token_scale)
        gradients.append(flatten(direction))
    stacked = torch.stack(gradients)
    index = torch.tensor(informative)
    matrix[index[:, None], index[None, :]] = (stacked @ stacked.T).double().cpu()
    return matrix
