"""The accuracy side of readiness: entropy, perplexity and the form of a policy's responses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from bi_ray.batches.scored_group import ScoredGroup
from bi_ray.policy.logprobs import TokenLogprobs
from bi_ray.policy.packing import Row, in_batches
from bi_ray.readiness.rollouts import unweighted_rows, verdict_of
from bi_ray.verification.verdicts import BEHAVIOR_FIELDS, Verdict


@dataclass(frozen=True, slots=True)
class ResponseSummary:
    """What the verified samples of one query look like.

    Attributes:
        response_tokens: mean length in tokens.
        truncated: share of the samples that ended at the length limit.
        format_right: share of the samples in the right format.
        trace_valid: share of the traces that are valid; None without a graph to check them by.
        behaviors: mean number per response, by behavior; empty without a graph.
    """

    response_tokens: float
    truncated: float
    format_right: float
    trace_valid: float | None
    behaviors: dict[str, float]


def describe_samples(samples: Sequence[Mapping[str, Any]]) -> ResponseSummary:
    """Summarize the samples of one query.

    Args:
        samples: rows, each with the fields of a verdict and its ``tokens``.
    """
    count = len(samples)
    verdicts = [verdict_of(sample) for sample in samples]
    traced = [verdict for verdict in verdicts if verdict.trace_valid is not None]
    trace_valid = None
    behaviors: dict[str, float] = {}
    if traced:
        trace_valid = _share(traced, "trace_valid")
        behaviors = {name: _share(verdicts, field) for name, field in BEHAVIOR_FIELDS.items()}
    return ResponseSummary(
        response_tokens=sum(len(sample["tokens"]) for sample in samples) / count,
        truncated=_share(verdicts, "truncated"),
        format_right=_share(verdicts, "format_right"),
        trace_valid=trace_valid,
        behaviors=behaviors,
    )


def _share(verdicts: Sequence[Verdict], field: str) -> float:
    total: int = sum(getattr(verdict, field) for verdict in verdicts)
    return total / len(verdicts)


def entropies(
    model: PreTrainedModel,
    groups: Sequence[ScoredGroup],
    temperature: float,
    microbatch_tokens: int,
) -> list[float]:
    """Mean entropy of the policy's next-token distribution over the tokens of each group, in nats.

    Args:
        model: the policy.
        groups: rollouts of the policy.
        temperature: at which the rollouts were sampled.
        microbatch_tokens: most padded tokens of one pass.
    """
    rows = unweighted_rows(groups)
    per_row = _token_values(model, rows, temperature, microbatch_tokens, entropy=True)
    means = []
    start = 0
    for group in groups:
        end = start + len(group.rollouts)
        values = torch.cat(per_row[start:end])
        means.append(float(values.mean()) if len(values) else 0.0)
        start = end
    return means


def perplexities(
    model: PreTrainedModel,
    demonstrations: Sequence[tuple[Sequence[int], Sequence[int]]],
    microbatch_tokens: int,
) -> list[float]:
    """Perplexity of each demonstration per token, at temperature 1.

    Args:
        model: the policy.
        demonstrations: tokens of the prompt and of the response, held out from its SFT data.
        microbatch_tokens: most padded tokens of one pass.
    """
    rows = [Row((*prompt, *response), len(prompt), 1.0) for prompt, response in demonstrations]
    logprobs = _token_values(model, rows, 1.0, microbatch_tokens)
    return [float((-values.double().mean()).exp()) for values in logprobs]


def _token_values(
    model: PreTrainedModel,
    rows: Sequence[Row],
    temperature: float,
    microbatch_tokens: int,
    entropy: bool = False,
) -> list[torch.Tensor]:
    """Log-probability, or entropy at its position, of every learned token.

    Returns:
        For each row a tensor of shape [learned tokens].
    """
    device = next(model.parameters()).device
    policy = TokenLogprobs(model)
    by_row: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for numbers, batch in in_batches(rows, microbatch_tokens):
            logprobs, entropy_values = policy(batch.to(device), temperature, with_entropy=entropy)
            values = logprobs if entropy_values is None else entropy_values
            parts = values.cpu().split([rows[number].learned for number in numbers])
            by_row.update(zip(numbers, parts, strict=True))
    return [by_row[number] for number in range(len(rows))]
