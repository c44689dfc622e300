"""From rows of tokens to micro-batches of bounded size, the same number of them on every rank.

The loss is a sum over tokens whose weights were fixed for the whole step before anything is cut. So
the gradient is the same, up to rounding, for every size of micro-batch, every number of ranks,
every way of packing and order of arrival.

A packed micro-batch is one row without padding: a prompt, then all responses to it one after the
other, then the next prompt. The last token of a response predicts nothing and is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

Packing = Literal["shared", "flat", "padded"]
_LEAST_SHARED_TOKENS = 8  # a shorter prompt costs less than the bookkeeping of sharing it


@dataclass(frozen=True, slots=True)
class Row:
    """One sequence to learn from.

    Attributes:
        tokens: prompt and response.
        first_learned: position of the first token that is learned, at least 1; all later ones are
            learned too.
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
            raise ValueError(
                "first_learned must be at least 1: nothing predicts the first token of a row"
            )
        if self.sampler_logprobs and len(self.sampler_logprobs) != self.learned:
            raise ValueError(
                f"{self.learned} learned tokens but {len(self.sampler_logprobs)} log-probabilities"
            )

    @property
    def learned(self) -> int:
        """How many tokens are learned."""
        return max(0, len(self.tokens) - self.first_learned)

    @property
    def prompt(self) -> tuple[int, ...]:
        """The tokens before the first learned one."""
        return self.tokens[: self.first_learned]


@dataclass(frozen=True, slots=True)
class Layout:
    """Who attends to whom in a packed row.

    Attributes:
        segments: (start, length) of each part that is causal in itself and sees nothing else but
            its block's keys.
        blocks: (start, length, prompt start, prompt length): those queries also see the whole of
            that prompt.
    """

    segments: tuple[tuple[int, int], ...]
    blocks: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward and backward pass takes.

    Attributes:
        tokens: [rows, length], int64, padded with 0 on the right: under causal attention no learned
            token sees it.
        positions: [rows, length], int64, of each token in its sequence; None where they count from
            0 in every row.
        layout: of a packed row; else None.
        sources: [learned tokens], int64: the place in ``tokens.flatten()`` whose output predicts
            the token.
        targets: [learned tokens], int64: the tokens that are learned.
        sequences: [learned tokens], int64: number of the token's sequence in this micro-batch; none
            is ever cut.
        weights: [learned tokens], float32, as the next two.
        advantages: [learned tokens].
        sampler_logprobs: [learned tokens].
    """

    tokens: Tensor
    positions: Tensor | None
    layout: Layout | None
    sources: Tensor
    targets: Tensor
    sequences: Tensor
    weights: Tensor
    advantages: Tensor
    sampler_logprobs: Tensor

    def to(self, device: torch.device) -> MicroBatch:
        """The same on another device."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)


def pack(
    rows: Sequence[Row],
    microbatch_tokens: int,
    rank: int = 0,
    ranks: int = 1,
    packing: Packing = "shared",
    pair_cost: float = 0.0,
) -> list[MicroBatch]:
    """Cut the rows of one step into the micro-batches of one rank.

    Args:
        rows: all rows of the step, in any order. Those without a learned token are left out.
        microbatch_tokens: most tokens of one micro-batch, padding counted. A longer row gets one of
            its own.
        rank: whose share is wanted.
        ranks: how many learners share the step.
        packing: ``shared`` computes a prompt once for all its responses in a micro-batch; ``flat``
            repeats it for each, ``padded`` makes a row of a matrix of each sequence.
        pair_cost: what a pair of a query and a key costs, measured in tokens; 0 counts tokens
            alone.

    Returns:
        All ranks have the same number of micro-batches (FSDP gathers its shards in every pass, so
        all must make as many), which empty ones fill up, and about the same cost.
    """
    learned = sorted((row for row in rows if row.learned), key=_canonical)
    if packing == "padded":
        shares = [
            list(_padded_cuts(share, microbatch_tokens)) for share in _interleaved(learned, ranks)
        ]
        collate = _pad
    else:
        shared = packing == "shared"
        parts = _contiguous(_grouped(learned, shared), ranks, pair_cost)
        shares = [list(_packed_cuts(part, microbatch_tokens)) for part in parts]
        collate = functools.partial(_concatenate, shared=shared)
    most = max(len(share) for share in shares)
    return [collate(part) for part in shares[rank] + [[]] * (most - len(shares[rank]))]


def _canonical(row: Row) -> tuple[object, ...]:
    return row.prompt, len(row.tokens), row.tokens, row.weight, row.advantage, row.sampler_logprobs


def in_batches(
    rows: Sequence[Row], microbatch_tokens: int
) -> Iterator[tuple[list[int], MicroBatch]]:
    """Padded micro-batches for one process that has to know which row is where.

    Yields:
        The numbers of the rows in a micro-batch, in the order in which they stand there, and the
        micro-batch.
    """
    order = sorted(range(len(rows)), key=lambda index: len(rows[index].tokens))
    for start, end in _cuts([len(rows[index].tokens) for index in order], microbatch_tokens):
        yield order[start:end], _pad([rows[index] for index in order[start:end]])


# Padded rows


def _interleaved(rows: Sequence[Row], ranks: int) -> list[list[Row]]:
    """Neighbors in length go to different ranks, in alternating direction: no rank always gets the
    longer one.
    """
    ordered = sorted(rows, key=lambda row: len(row.tokens))
    shares = [
        ordered[rank :: 2 * ranks] + ordered[2 * ranks - 1 - rank :: 2 * ranks]
        for rank in range(ranks)
    ]
    return [sorted(share, key=lambda row: len(row.tokens)) for share in shares]


def _padded_cuts(rows: Sequence[Row], limit: int) -> Iterator[Sequence[Row]]:
    """Greedy cuts of rows that ascend in length."""
    for start, end in _cuts([len(row.tokens) for row in rows], limit):
        yield rows[start:end]


def _cuts(lengths: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Slices of ascending lengths that, padded to their longest, hold at most ``limit`` tokens, or
    one row.
    """
    start = 0
    for end, length in enumerate(lengths):
        if end > start and (end - start + 1) * length > limit:
            yield start, end
            start = end
    if start < len(lengths):
        yield start, len(lengths)


def _pad(rows: Sequence[Row]) -> MicroBatch:
    """Pad to the longest; of no rows, one row of two tokens that learns nothing."""
    length = max((len(row.tokens) for row in rows), default=2)
    tokens = [
        token for row in rows for token in (*row.tokens, *[0] * (length - len(row.tokens)))
    ] or [0, 0]
    sources: list[int] = []
    for number, row in enumerate(rows):
        sources.extend(
            range(number * length + row.first_learned - 1, number * length + len(row.tokens) - 1)
        )
    return _micro_batch(torch.tensor(tokens).view(-1, length), None, None, sources, rows)


# Packed rows


@dataclass(frozen=True, slots=True)
class _Packed:
    """A row that is going to be packed.

    Attributes:
        row: the row.
        group: number of its group: the rows that may share one prompt.
        size: of the group.
    """

    row: Row
    group: int
    size: int


def _grouped(rows: Sequence[Row], shared: bool) -> list[_Packed]:
    """Number the groups of equal prompts in sorted rows; without sharing, every row is its own
    group.
    """
    result: list[_Packed] = []
    number = 0
    for prompt, equal in groupby(rows, key=lambda row: row.prompt):
        group = list(equal)
        together = shared and len(prompt) >= _LEAST_SHARED_TOKENS
        for row in group:
            result.append(_Packed(row, number, len(group) if together else 1))
            number += not together
        number += together
    return result


def _contiguous(rows: Sequence[_Packed], ranks: int, pair_cost: float) -> list[list[_Packed]]:
    """Cut the line of rows where the cost so far passes a rank's share; a group may lie on both
    sides of a cut.
    """
    costs = [_cost(packed, pair_cost) for packed in rows]
    shares: list[list[_Packed]] = [[] for _ in range(ranks)]
    total, before = sum(costs), 0.0
    for packed, cost in zip(rows, costs, strict=True):
        shares[min(ranks - 1, int(ranks * (before + cost / 2) / total))].append(packed)
        before += cost
    return shares


def _cost(packed: _Packed, pair_cost: float) -> float:
    prompt, response = packed.row.first_learned, packed.row.learned - 1
    own = response + pair_cost * response * (prompt + response / 2)
    return own + (prompt + pair_cost * prompt * prompt / 2) / packed.size


def _packed_cuts(rows: Sequence[_Packed], limit: int) -> Iterator[Sequence[Row]]:
    """Greedy cuts into parts of at most ``limit`` tokens, or one row; a cut group has its prompt in
    every part.
    """
    part: list[Row] = []
    tokens, group = 0, -1
    for packed in rows:
        response, prompt = packed.row.learned - 1, packed.row.first_learned
        more = response if packed.group == group else prompt + response
        if part and tokens + more > limit:
            yield part
            part, tokens, more = [], 0, prompt + response
        part.append(packed.row)
        tokens, group = tokens + more, packed.group
    if part:
        yield part


def _concatenate(rows: Sequence[Row], shared: bool) -> MicroBatch:
    """One row of all; of no rows, two tokens that learn nothing."""
    tokens: list[int] = []
    positions: list[int] = []
    sources: list[int] = []
    order: list[Row] = []
    segments: list[tuple[int, int]] = []
    blocks: list[tuple[int, int, int, int]] = []
    for prompt, group in _prompts(rows, shared):
        first, length = len(tokens), len(prompt)
        tokens += prompt
        positions += range(length)
        if len(group) > 1:
            segments.append((first, length))
        for row in group:
            start, end = len(tokens), len(row.tokens) - 1
            tokens += row.tokens[length:end]
            positions += range(length, end)
            sources.append(first + length - 1)
            sources += range(start, len(tokens))
            segments.append((start, end - length) if len(group) > 1 else (first, end))
            order.append(row)
        if len(group) > 1:
            blocks.append((first + length, len(tokens) - first - length, first, length))
    if not tokens:
        tokens, positions, segments = [0, 0], [0, 1], [(0, 2)]
    layout = Layout(tuple(s for s in segments if s[1]), tuple(b for b in blocks if b[1]))
    return _micro_batch(torch.tensor([tokens]), torch.tensor([positions]), layout, sources, order)


def _prompts(rows: Sequence[Row], shared: bool) -> Iterator[tuple[tuple[int, ...], Sequence[Row]]]:
    """The prompts of sorted rows with the rows that share them."""
    for _, group in groupby(_grouped(rows, shared), key=lambda packed: packed.group):
        members = [packed.row for packed in group]
        yield members[0].prompt, members


def _micro_batch(
    tokens: Tensor,
    positions: Tensor | None,
    layout: Layout | None,
    sources: Sequence[int],
    rows: Sequence[Row],
) -> MicroBatch:
    """Add what the learned tokens of ``rows`` need, in the order of ``rows``."""
    learned = torch.tensor([row.learned for row in rows], dtype=torch.int64)
    targets = [token for row in rows for token in row.tokens[row.first_learned :]]
    sampled = [value for row in rows for value in (row.sampler_logprobs or (0.0,) * row.learned)]

    def spread(values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).repeat_interleave(learned)

    return MicroBatch(
        tokens,
        positions,
        layout,
        torch.tensor(sources, dtype=torch.int64),
        torch.tensor(targets, dtype=torch.int64),
        torch.arange(len(rows)).repeat_interleave(learned),
        spread([row.weight for row in rows]),
        spread([row.advantage for row in rows]),
        torch.tensor(sampled, dtype=torch.float32),
    )
