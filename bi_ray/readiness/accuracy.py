"""The accuracy side of readiness: how often a policy is right on each query, how sure it is, what
it writes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from bi_ray.policy.logprobs import TokenLogprobs
from bi_ray.policy.packing import Row, in_batches
from bi_ray.readiness.rollouts import ScoredGroup
from bi_ray.verification.verdicts import BEHAVIOR_FIELDS

_SHARES = ("truncated", "format_right")


def describe_samples(samples: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What the verified samples of one query look like.

    Args:
        samples: each with the fields of ``bi_ray.verification.verdicts.Verdict`` and its
            ``tokens``.

    Returns:
        ``response_tokens`` (mean length), the shares ``truncated``, ``format_right`` and
        ``trace_valid`` (None without a graph), and ``behaviors`` (each per response; none without a
        graph).
    """
    count = len(samples)
    traces = [sample["trace_valid"] for sample in samples if sample["trace_valid"] is not None]
    return {
        "response_tokens": sum(len(sample["tokens"]) for sample in samples) / count,
        **{name: sum(bool(sample[name]) for sample in samples) / count for name in _SHARES},
        "trace_valid": sum(traces) / len(traces) if traces else None,
        "behaviors": {
            name: sum(sample.get(field, 0) for sample in samples) / count
            for name, field in BEHAVIOR_FIELDS.items()
            if traces
        },
    }


def entropies(
    model: PreTrainedModel,
    groups: Sequence[ScoredGroup],
    temperature: float,
    microbatch_tokens: int,
) -> list[float]:
    """Entropy of the policy's next-token distribution in nats, averaged over the tokens of each
    group's rollouts.
    """
    rows = [row for group in groups for row in group.rows([1.0] * len(group.rollouts))]
    per_row = iter(_token_values(model, rows, temperature, microbatch_tokens, entropy=True))
    found = []
    for group in groups:
        values = torch.cat([next(per_row) for _ in group.rollouts])
        found.append(float(values.mean()) if len(values) else 0.0)
    return found


def perplexities(
    model: PreTrainedModel,
    demonstrations: Sequence[tuple[Sequence[int], Sequence[int]]],
    microbatch_tokens: int,
) -> list[float]:
    """The exponential of the mean negative log-probability of the tokens of each demonstration, at
    temperature 1.

    Args:
        model: the policy.
        demonstrations: tokens of the prompt and of the response, held out from its SFT data.
        microbatch_tokens: most padded tokens of one pass.
    """
    rows = [Row((*prompt, *response), len(prompt), 1.0) for prompt, response in demonstrations]
    return [
        float((-values.double().mean()).exp())
        for values in _token_values(model, rows, 1.0, microbatch_tokens)
    ]


def _token_values(
    model: PreTrainedModel,
    rows: Sequence[Row],
    temperature: float,
    microbatch_tokens: int,
    entropy: bool = False,
) -> list[torch.Tensor]:
    """Log-probability, or entropy at its place, of every learned token: a tensor [learned tokens]
    per row.
    """
    device, policy = next(model.parameters()).device, TokenLogprobs(model)
    found: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        for numbers, batch in in_batches(rows, microbatch_tokens):
            logprobs, entropy_values = policy(batch.to(device), temperature, with_entropy=entropy)
            values = (logprobs if entropy_values is None else entropy_values).cpu()
            found |= dict(
                zip(numbers, values.split([rows[i].learned for i in numbers]), strict=True)
            )
    return [found[i] for i in range(len(rows))]
