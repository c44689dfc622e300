"""Verified rollouts as the readiness measurement takes them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from bi_ray.batches.advantages import RIGHT_REWARD
from bi_ray.batches.scored_group import Rollout, ScoredGroup
from bi_ray.policy.packing import Row
from bi_ray.policy.spans import token_spans
from bi_ray.reasoning.trace import Span
from bi_ray.verification.verdicts import Verdict

PLAIN = "plain"  # what no behavior wrote
_VERDICT_FIELDS = tuple(Verdict.__dataclass_fields__)


def verdict_of(sample: Mapping[str, Any]) -> Verdict:
    """The verdict in a row of a sample; fields that the row lacks have their default."""
    return Verdict(**{name: sample[name] for name in _VERDICT_FIELDS if name in sample})


def scored_group(
    row: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase | None = None,
    behavior_spans: Callable[[str], Sequence[Span]] | None = None,
    by_outcome: bool = True,
) -> ScoredGroup:
    """A group from its row in ``rollouts.jsonl``.

    Args:
        row: ``id``, ``prompt_tokens`` and ``samples``, each sample with its ``tokens``, its
            ``response`` and the fields of a verdict.
        tokenizer: the policy's; only needed with ``behavior_spans``.
        behavior_spans: finds the behaviors in a response; None: the rollouts have no behaviors.
        by_outcome: see ``ScoredGroup``.
    """
    rollouts = []
    for sample in row["samples"]:
        tokens = tuple(sample["tokens"])
        behaviors: tuple[str, ...] = ()
        if behavior_spans is not None and tokenizer is not None:
            text = sample["response"]
            behaviors = token_behaviors(tokenizer, tokens, text, behavior_spans(text))
        verdict = verdict_of(sample)
        outcome = verdict.answer_reward
        rollout = Rollout(
            tokens=tokens,
            reward=float(verdict.reward),
            right=outcome >= RIGHT_REWARD,
            behaviors=behaviors,
            outcome=outcome,
        )
        rollouts.append(rollout)
    return ScoredGroup(row["id"], tuple(row["prompt_tokens"]), tuple(rollouts), by_outcome)


def token_behaviors(
    tokenizer: PreTrainedTokenizerBase, tokens: Sequence[int], text: str, spans: Sequence[Span]
) -> tuple[str, ...]:
    """Which behavior wrote each token (``policy.spans.token_spans``), ``plain`` for most."""
    behaviors = [PLAIN] * len(tokens)
    for span in token_spans(tokenizer, tokens, text, spans):
        behaviors[span.start : span.end] = [span.behavior] * (span.end - span.start)
    return tuple(behaviors)


def packing_rows(group: ScoredGroup, weights: Sequence[float]) -> list[Row]:
    """One row per rollout of the group; all tokens of a rollout have the rollout's weight."""
    prompt_length = len(group.prompt_tokens)
    rows = []
    for rollout, weight in zip(group.rollouts, weights, strict=True):
        rows.append(Row((*group.prompt_tokens, *rollout.tokens), prompt_length, weight))
    return rows


def unweighted_rows(groups: Sequence[ScoredGroup]) -> list[Row]:
    """One row of weight 1 per rollout of all groups, in order."""
    rows: list[Row] = []
    for group in groups:
        rows += packing_rows(group, [1.0] * len(group.rollouts))
    return rows
