import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bi_ray.policy.packing import Row, pack


@st.composite
def row_lists(draw):
    rng = random.Random(draw(st.integers(0, 10**6)))
    rows = []
    for _ in range(draw(st.integers(0, 30))):
        if not rows or rng.random() < 0.4:  # else another response to the same prompt
            prompt = tuple(rng.randrange(1, 9) for _ in range(rng.randint(1, 30)))
        response = tuple(rng.randrange(1, 9) for _ in range(rng.randint(0, 50)))
        logprobs = tuple(-rng.random() for _ in response)
        rows.append(Row(prompt + response, len(prompt), rng.random(), rng.gauss(0, 1), logprobs))
    return rows


def unpack(batch):
    """(tokens, weights, advantages, log-probabilities) of every sequence."""
    assert len(batch.targets) == len(batch.sources) == len(batch.weights) == len(batch.sequences)
    tokens = batch.tokens.flatten()
    positions = torch.arange(batch.tokens.shape[1]).repeat(len(batch.tokens))
    positions = positions if batch.positions is None else batch.positions.flatten()
    rows = []
    for number in batch.sequences.unique().tolist():
        own = batch.sequences == number
        sources = batch.sources[own]
        # what predicts a token is the token before it, and it stands one place further
        assert torch.equal(tokens[sources[1:]], batch.targets[own][:-1])
        assert torch.equal(positions[sources], positions[sources[0]] + torch.arange(len(sources)))
        values = (
            getattr(batch, name)[own].tolist()
            for name in ("weights", "advantages", "sampler_logprobs")
        )
        rows.append((tuple(batch.targets[own].tolist()), *map(tuple, values)))
    return rows


@settings(deadline=None)
@given(
    row_lists(),
    st.integers(1, 300),
    st.integers(1, 4),
    st.sampled_from(["shared", "flat", "padded"]),
    st.randoms(),
)
def test_everything_arrives_once_whatever_the_size_and_order(rows, limit, ranks, packing, rng):
    shares = [pack(rows, limit, rank, ranks, packing) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1
    for batch in sum(shares, []):
        assert batch.tokens.numel() <= limit or len(batch.sequences.unique()) <= 1
        assert (packing == "padded") == (batch.layout is None)
        if batch.layout:
            assert sum(length for _, length in batch.layout.segments) == batch.tokens.numel()
    got = sorted(row for share in shares for batch in share for row in unpack(batch))

    def single(values):
        return tuple(torch.tensor(values, dtype=torch.float32).tolist())

    wanted = sorted(
        (
            row.tokens[row.first_learned :],
            single([row.weight] * row.learned),
            single([row.advantage] * row.learned),
            single(row.sampler_logprobs),
        )
        for row in rows
        if row.learned
    )
    assert got == wanted
    shuffled = list(rows)
    rng.shuffle(shuffled)
    again = [pack(shuffled, limit, rank, ranks, packing) for rank in range(ranks)]
    for left, right in zip(sum(shares, []), sum(again, []), strict=True):
        assert torch.equal(left.tokens, right.tokens)
        assert torch.equal(left.sampler_logprobs, right.sampler_logprobs)


def test_ranks_get_about_the_same_tokens_and_little_padding():
    rng = random.Random(0)
    rows = [Row((1,) * rng.randint(60, 260), 50, 1.0) for _ in range(288)]
    shares = [pack(rows, 2048, rank, 2, "padded") for rank in range(2)]
    learned = [sum(len(batch.targets) for batch in share) for share in shares]
    assert abs(learned[0] - learned[1]) / sum(learned) < 0.01
    padded = sum(batch.tokens.numel() for share in shares for batch in share)
    assert padded / sum(len(row.tokens) for row in rows) < 1.08


@pytest.mark.parametrize("packing", ["shared", "flat"])
def test_ranks_get_about_the_same_cost(packing):
    """Tokens and pairs of query and key; 24 prompts over 3 ranks."""
    rng = random.Random(0)
    prompts = [tuple(rng.randrange(9) for _ in range(rng.randint(50, 200))) for _ in range(24)]
    rows = [
        Row((*prompt, *[1] * rng.randint(10, 200)), len(prompt), 1.0)
        for prompt in prompts
        for _ in range(8)
    ]
    pair = 1 / 300

    def cost(batch):
        pairs = sum(length * length / 2 for _, length in batch.layout.segments)
        pairs += sum(length * prompt for _, length, _, prompt in batch.layout.blocks)
        return batch.tokens.numel() + pair * pairs

    costs = [sum(map(cost, pack(rows, 4096, rank, 3, packing, pair))) for rank in range(3)]
    assert max(costs) / min(costs) < 1.05


def test_rows_that_cannot_be_learned_are_refused():
    with pytest.raises(ValueError, match="first_learned"):
        Row((1, 2), 0, 1.0)
    with pytest.raises(ValueError, match="2 learned tokens but 1"):
        Row((1, 2, 3), 1, 1.0, 0.0, (-1.0,))
