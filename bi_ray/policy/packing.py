"""From rows of tokens to micro-batches of bounded size, the same number of them on every rank.

The loss is a sum over tokens whose weights are fixed for the whole step before anything is cut. So
the gradient is the same, up to rounding, for every size of micro-batch, number of ranks, way of
packing and order of arrival.

A packed micro-batch is one row without padding: a prompt, then all responses to it one after the
other, then the next prompt. The last token of a response predicts nothing and is left out.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
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
        first_learned: position of the first learned token, at least 1; all later ones are learned,
            too.
        weight: of each learned token in the loss of the step.
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
        segments: (start, length) of each part that attends to itself causally, and to nothing else
            but the prompt of its block.
        blocks: (start, length, prompt start, prompt length): these queries also attend to the whole
            of that prompt.
    """

    segments: tuple[tuple[int, int], ...]
    blocks: tuple[tuple[int, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class MicroBatch:
    """What one forward and backward pass takes.

    Attributes:
        tokens: [rows, length], int64, padded with 0 on the right: under causal attention no learned
            token sees it.
        positions: [rows, length], int64, of each token in its sequence; None: they count from 0 in
            every row.
        layout: of a packed row; else None.
        sources: [learned tokens], int64: index into ``tokens.flatten()`` of the token whose output
            predicts the learned one.
        targets: [learned tokens], int64: the learned tokens.
        sequences: [learned tokens], int64: number of the token's sequence in this micro-batch;
            sequences are never cut.
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
        moved: dict[str, Any] = {}
        for attribute in fields(self):
            value = getattr(self, attribute.name)
            if isinstance(value, Tensor):
                moved[attribute.name] = value.to(device)
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
        microbatch_tokens: largest number of tokens in a micro-batch, with padding. A longer row
            gets a micro-batch of its own.
        rank: whose share is returned.
        ranks: how many learners share the step.
        packing: ``shared`` computes a prompt once for all its responses in a micro-batch, ``flat``
            repeats it for each of them, ``padded`` makes each sequence a row of a matrix.
        pair_cost: cost of a pair of a query and a key, in tokens; 0 counts tokens alone.

    Returns:
        Micro-batches of about the same cost on each rank. Their number is the same on all ranks, as
        FSDP gathers its shards in every pass; empty ones make up for what is missing.
    """
    learned = sorted((row for row in rows if row.learned), key=_canonical)
    if packing == "padded":
        rows_by_rank = _interleaved(learned, ranks)
        shares = [list(_padded_cuts(share, microbatch_tokens)) for share in rows_by_rank]
        collate = _pad
    else:
        shared = packing == "shared"
        packed_by_rank = _contiguous(_grouped(learned, shared), ranks, pair_cost)
        shares = [list(_packed_cuts(share, microbatch_tokens)) for share in packed_by_rank]
        collate = functools.partial(_concatenate, shared=shared)
    most = max(len(share) for share in shares)
    missing = most - len(shares[rank])
    return [collate(part) for part in shares[rank] + [[]] * missing]


def _canonical(row: Row) -> tuple[object, ...]:
    return row.prompt, len(row.tokens), row.tokens, row.weight, row.advantage, row.sampler_logprobs


def in_batches(
    rows: Sequence[Row], microbatch_tokens: int
) -> Iterator[tuple[list[int], MicroBatch]]:
    """Padded micro-batches for one process that has to know which row is where.

    Yields:
        The numbers of the rows in a micro-batch, in their order there, and the micro-batch.
    """
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].tokens))
    lengths = [len(rows[number].tokens) for number in order]
    for start, end in _cuts(lengths, microbatch_tokens):
        numbers = order[start:end]
        yield numbers, _pad([rows[number] for number in numbers])


# Padded rows


def _interleaved(rows: Sequence[Row], ranks: int) -> list[list[Row]]:
    """Deal out the rows by length, in alternating direction: no rank always gets the longer ones.

    Each share is in ascending order of length.
    """
    ordered = sorted(rows, key=_length)
    shares: list[list[Row]] = []
    for rank in range(ranks):
        there, back = ordered[rank :: 2 * ranks], ordered[2 * ranks - 1 - rank :: 2 * ranks]
        shares.append(sorted(there + back, key=_length))
    return shares


def _length(row: Row) -> int:
    return len(row.tokens)


def _padded_cuts(rows: Sequence[Row], limit: int) -> Iterator[Sequence[Row]]:
    """Cut rows in ascending order of length greedily."""
    for start, end in _cuts([len(row.tokens) for row in rows], limit):
        yield rows[start:end]


def _cuts(lengths: Sequence[int], limit: int) -> Iterator[tuple[int, int]]:
    """Slices of ascending lengths that, padded to the longest, have at most ``limit`` tokens.

    A longer row gets a slice of its own.
    """
    start = 0
    for end, length in enumerate(lengths):
        padded_tokens = (end - start + 1) * length
        if end > start and padded_tokens > limit:
            yield start, end
            start = end
    if start < len(lengths):
        yield start, len(lengths)


def _pad(rows: Sequence[Row]) -> MicroBatch:
    """Pad rows to the longest; without rows, make one of two tokens, of which none is learned."""
    length = max((len(row.tokens) for row in rows), default=2)
    tokens: list[int] = []
    sources: list[int] = []
    for row in rows:
        start = len(tokens)
        tokens += row.tokens
        sources += range(start + row.first_learned - 1, len(tokens) - 1)
        tokens += [0] * (length - len(row.tokens))
    if not tokens:
        tokens = [0, 0]
    return _micro_batch(torch.tensor(tokens).view(-1, length), None, None, sources, rows)


# Packed rows


@dataclass(frozen=True, slots=True)
class _Packed:
    """A row that is going to be packed.

    Attributes:
        row: the row.
        group: number of its group: the rows that may share a prompt.
        size: number of rows in the group.
    """

    row: Row
    group: int
    size: int


def _grouped(rows: Sequence[Row], shared: bool) -> list[_Packed]:
    """Number the groups of equal prompts in sorted rows.

    Without sharing, and where the prompt is short, every row is a group of its own.
    """
    packed: list[_Packed] = []
    number = 0
    for prompt, equal in groupby(rows, key=lambda row: row.prompt):
        group = list(equal)
        if shared and len(prompt) >= _LEAST_SHARED_TOKENS:
            packed += [_Packed(row, number, len(group)) for row in group]
            number += 1
            continue
        for row in group:
            packed.append(_Packed(row, number, 1))
            number += 1
    return packed


def _contiguous(rows: Sequence[_Packed], ranks: int, pair_cost: float) -> list[list[_Packed]]:
    """Cut the line of rows where the cost so far passes a rank's share; groups may be cut, too."""
    costs = [_cost(packed, pair_cost) for packed in rows]
    shares: list[list[_Packed]] = [[] for _ in range(ranks)]
    total, before = sum(costs), 0.0
    for packed, cost in zip(rows, costs, strict=True):
        rank = int(ranks * (before + cost / 2) / total)
        shares[min(ranks - 1, rank)].append(packed)
        before += cost
    return shares


def _cost(packed: _Packed, pair_cost: float) -> float:
    """Cost of a row, in tokens: its response, and its part of the prompt."""
    prompt, response = packed.row.first_learned, packed.row.learned - 1
    own = response + pair_cost * response * (prompt + response / 2)
    return own + (prompt + pair_cost * prompt * prompt / 2) / packed.size


def _packed_cuts(rows: Sequence[_Packed], limit: int) -> Iterator[Sequence[Row]]:
    """Cut rows greedily into parts of at most ``limit`` tokens, or one row.

    A group that is cut has its prompt in every part.
    """
    part: list[Row] = []
    tokens, group = 0, -1
    for packed in rows:
        response = packed.row.learned - 1
        with_prompt = packed.row.first_learned + response
        more = response if packed.group == group else with_prompt
        if part and tokens + more > limit:
            yield part
            part, tokens, more = [], 0, with_prompt
        part.append(packed.row)
        tokens += more
        group = packed.group
    if part:
        yield part


def _concatenate(rows: Sequence[Row], shared: bool) -> MicroBatch:
    """Make one row of all; without rows, one of two tokens, of which none is learned."""
    line = _Line()
    for prompt, group in _prompts(rows, shared):
        if len(group) > 1:
            line.add_group(prompt, group)
        else:
            line.add_row(group[0])
    return line.micro_batch()


@dataclass(slots=True)
class _Line:
    """A packed row in the making.

    Attributes:
        tokens: its tokens so far.
        positions: of each token in its sequence.
        sources: see ``MicroBatch``.
        rows: the rows in it, in order.
        segments: see ``Layout``.
        blocks: see ``Layout``.
    """

    tokens: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    sources: list[int] = field(default_factory=list)
    rows: list[Row] = field(default_factory=list)
    segments: list[tuple[int, int]] = field(default_factory=list)
    blocks: list[tuple[int, int, int, int]] = field(default_factory=list)

    def add_row(self, row: Row) -> None:
        """Add a row with a prompt of its own."""
        start, length = len(self.tokens), len(row.tokens) - 1
        self._add_tokens(row.tokens[:length], 0)
        self.sources += range(start + row.first_learned - 1, start + length)
        self.segments.append((start, length))
        self.rows.append(row)

    def add_group(self, prompt: tuple[int, ...], group: Sequence[Row]) -> None:
        """Add a prompt, and the responses that share it."""
        prompt_start, prompt_length = len(self.tokens), len(prompt)
        self._add_tokens(prompt, 0)
        self.segments.append((prompt_start, prompt_length))
        first_response = len(self.tokens)
        for row in group:
            start = len(self.tokens)
            self._add_tokens(row.tokens[prompt_length:-1], prompt_length)
            self.sources.append(first_response - 1)  # the prompt's last token predicts the first
            self.sources += range(start, len(self.tokens))
            self._add_segment(start)
            self.rows.append(row)
        responses = len(self.tokens) - first_response
        if responses:
            self.blocks.append((first_response, responses, prompt_start, prompt_length))

    def _add_segment(self, start: int) -> None:
        """Make a segment of the tokens from ``start`` on; a response of one token adds none."""
        length = len(self.tokens) - start
        if length:
            self.segments.append((start, length))

    def _add_tokens(self, tokens: Sequence[int], first_position: int) -> None:
        self.tokens += tokens
        self.positions += range(first_position, first_position + len(tokens))

    def micro_batch(self) -> MicroBatch:
        """The packed row."""
        if not self.tokens:
            self.tokens, self.positions, self.segments = [0, 0], [0, 1], [(0, 2)]
        layout = Layout(tuple(self.segments), tuple(self.blocks))
        tokens, positions = torch.tensor([self.tokens]), torch.tensor([self.positions])
        return _micro_batch(tokens, positions, layout, self.sources, self.rows)


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
    targets: list[int] = []
    sampler_logprobs: list[float] = []
    for row in rows:
        targets += row.tokens[row.first_learned :]
        sampler_logprobs += row.sampler_logprobs or (0.0,) * row.learned
    learned = torch.tensor([row.learned for row in rows], dtype=torch.int64)

    def repeat(values: Sequence[float]) -> Tensor:
        """One value of each row for each of its learned tokens."""
        return torch.tensor(values, dtype=torch.float32).repeat_interleave(learned)

    return MicroBatch(
        tokens=tokens,
        positions=positions,
        layout=layout,
        sources=torch.tensor(sources, dtype=torch.int64),
        targets=torch.tensor(targets, dtype=torch.int64),
        sequences=torch.arange(len(rows)).repeat_interleave(learned),
        weights=repeat([row.weight for row in rows]),
        advantages=repeat([row.advantage for row in rows]),
        sampler_logprobs=torch.tensor(sampler_logprobs, dtype=torch.float32),
    )
