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
        prompt, response = rng.randint(1, 30), rng.randint(0, 50)
        tokens = tuple(rng.randrange(1, 9) for _ in range(prompt + response))
        logprobs = tuple(-rng.random() for _ in range(response))
        rows.append(Row(tokens, prompt, rng.random(), rng.gauss(0, 1), logprobs))
    return rows


def unpack(batch):
    """(tokens, weights, advantages, log-probabilities) of every learned token, row by row."""
    position, rows = 0, []
    for tokens, learned in zip(batch.tokens.tolist(), batch.learned.tolist(), strict=True):
        count = sum(learned)
        values = [
            tuple(getattr(batch, name)[position : position + count].tolist())
            for name in ("weights", "advantages", "sampler_logprobs")
        ]
        position += count
        rows.append((tuple(t for t, take in zip(tokens, learned, strict=True) if take), *values))
    assert position == len(batch.weights) == len(batch.advantages) == len(batch.sampler_logprobs)
    return [row for row in rows if row[0]]


@settings(deadline=None)
@given(row_lists(), st.integers(1, 300), st.integers(1, 4), st.randoms())
def test_everything_arrives_once_whatever_the_size_and_order(rows, limit, ranks, rng):
    shares = pack(rows, limit, ranks)
    assert len(shares) == ranks
    assert len({len(share) for share in shares}) == 1
    for batch in (batch for share in shares for batch in share):
        assert len(batch.tokens) == 1 or batch.tokens.numel() <= limit
        assert not batch.learned[:, 0].any()
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
    again = pack(shuffled, limit, ranks)
    for left, right in zip(sum(shares, []), sum(again, []), strict=True):
        assert torch.equal(left.tokens, right.tokens)
        assert torch.equal(left.sampler_logprobs, right.sampler_logprobs)


def test_ranks_get_about_the_same_tokens_and_little_padding():
    rng = random.Random(0)
    rows = [Row((1,) * rng.randint(60, 260), 50, 1.0) for _ in range(288)]
    shares = pack(rows, 2048, 2)
    real = [sum(int(batch.learned.sum()) + 50 * len(batch.tokens) for batch in share) for share in shares]
    assert abs(real[0] - real[1]) / sum(real) < 0.01
    padded = sum(batch.tokens.numel() for share in shares for batch in share)
    assert padded / sum(len(row.tokens) for row in rows) < 1.08


def test_rows_that_cannot_be_learned_are_refused():
    with pytest.raises(ValueError, match="first_learned"):
        Row((1, 2), 0, 1.0)
    with pytest.raises(ValueError, match="2 learned tokens but 1"):
        Row((1, 2, 3), 1, 1.0, 0.0, (-1.0,))
