"""From rows of tokens to micro-batches of bounded size, the same number of them on every rank.

The loss is a sum over tokens whose weights were fixed for the whole step before anything is cut. So the gradient is the
same, up to rounding, for every size of micro-batch, every number of ranks and every order of arrival.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to learn from.

    Attributes:
        tokens: prompt and response.
        first_learned: position of the first token that is learned, at least 1; all later ones are learned too.
        weight: what each learned token weighs in the loss of the step.
        advantage: of the sequence (RL).
        sampler_logprobs: one per learned token (RL), or empty.
    """

    tokens: tuple[int, ...]
    first_learned: int
    weight: float
    advantage: float = 0.0
    sampler_logprobs: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.first_learned < 1:
            raise ValueError("first_learned must be at least 1: nothing predicts the first token of a row")
        if self.sampler_logprobs and len(self.sampler_logprobs) != self.learned:
            raise ValueError(f"{self.learned} learned tokens but {len(self.sampler_logprobs)} log-probabilities")

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return max(0, len(self.tokens) - self.first_learned)


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward and backward pass takes.

    Attributes:
        tokens: [rows, length], int64, padded with 0 on the right: under causal attention no learned token sees it.
        learned: [rows, length], bool.
        weights: [learned tokens], in row-major order of ``learned``, as the next two.
        advantages: [learned tokens].
        sampler_logprobs: [learned tokens].
        sequences: [learned tokens], int64: number of the token's row in this micro-batch; a row is never cut.
    """

    tokens: Tensor
    learned: Tensor
    weights: Tensor
    advantages: Tensor
    sampler_logprobs: Tensor
    sequences: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        return MicroBatch(*(getattr(self, field.name).to(device) for field in fields(self)))


def pack(rows: Sequence[Row], microbatch_tokens: int, ranks: int = 1) -> list[list[MicroBatch]]:
    """Cut the rows of one step into micro-batches.

    Args:
        rows: all rows of the step, in any order.
        microbatch_tokens: most padded tokens of one micro-batch. A longer row gets one of its own.
        ranks: how many learners share the step.

    Returns:
        For each rank its micro-batches. All ranks have the same number of them (FSDP gathers its shards in every
        pass, so all must make as many), which empty ones fill up, and about the same number of tokens.
    """
    ordered = sorted(rows, key=_canonical)
    # Neighbours in length go to different ranks, in alternating direction, so that no rank always gets the longer one.
    shares = [ordered[rank :: 2 * ranks] + ordered[2 * ranks - 1 - rank :: 2 * ranks] for rank in range(ranks)]
    packed = [list(_cut(sorted(share, key=_canonical), microbatch_tokens)) for share in shares]
    most = max(len(share) for share in packed)
    return [share + [_collate([])] * (most - len(share)) for share in packed]


def _canonical(row: Row) -> tuple[object, ...]:
    return len(row.tokens), row.tokens, row.first_learned, row.weight, row.advantage, row.sampler_logprobs


def _cut(rows: Sequence[Row], limit: int) -> Iterator[MicroBatch]:
    """Greedy cuts of rows that ascend in length."""
    for start, end in _cuts([len(row.tokens) for row in rows], limit):
        yield _collate(rows[start:end])


def _cuts(lengths: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Slices of ascending lengths that, padded to their longest, hold at most ``limit`` tokens, or one row."""
    start = 0
    for end, length in enumerate(lengths):
        if end > start and (end - start + 1) * length > limit:
            yield start, end
            start = end
    if start < len(lengths):
        yield start, len(lengths)


def in_batches(rows: Sequence[Row], microbatch_tokens: int) -> Iterator[tuple[list[int], MicroBatch]]:
    """Micro-batches for one process that has to know which row is where.

    Yields:
        The numbers of the rows in a micro-batch, in the order in which they stand there, and the micro-batch.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].tokens))
    for start, end in _cuts([len(rows[index].tokens) for index in order], microbatch_tokens):
        yield order[start:end], _collate([rows[index] for index in order[start:end]])


def _collate(rows: Sequence[Row]) -> MicroBatch:
    """Pad to the longest; of no rows, one row of two tokens that learns nothing."""
    length = max((len(row.tokens) for row in rows), default=2)
    tokens = torch.zeros(max(1, len(rows)), length, dtype=torch.int64)
    learned = torch.zeros_like(tokens, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, : len(row.tokens)] = torch.tensor(row.tokens)
        learned[i, row.first_learned : len(row.tokens)] = True
    return MicroBatch(
        tokens,
        learned,
        torch.tensor([row.weight for row in rows for _ in range(row.learned)], dtype=torch.float32),
        torch.tensor([row.advantage for row in rows for _ in range(row.learned)], dtype=torch.float32),
        torch.tensor(
            [value for row in rows for value in (row.sampler_logprobs or [0.0] * row.learned)], dtype=torch.float32
        ),
        torch.tensor([i for i, row in enumerate(rows) for _ in range(row.learned)], dtype=torch.int64),
    )
