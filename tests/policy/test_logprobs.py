import math

import pytest
import torch
from ranks import TOKENS

from bi_ray.policy.checkpoint import load_model
from bi_ray.policy.logprobs import token_logprobs


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model(tied=True)).double()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_against_one_row_at_a_time_without_padding(model, temperature):
    """The marked tokens start at column 3 in one row and 1 in the other; the second row is padded."""
    torch.manual_seed(0)
    rows = [torch.randint(0, TOKENS, (length,)) for length in (11, 6)]
    firsts = [3, 1]
    tokens, learned = torch.zeros(2, 11, dtype=torch.int64), torch.zeros(2, 11, dtype=torch.bool)
    wanted, entropies = [], []
    for i, (row, first) in enumerate(zip(rows, firsts, strict=True)):
        tokens[i, : len(row)], learned[i, first : len(row)] = row, True
        probabilities = (model(input_ids=row[None]).logits[0].detach() / temperature).softmax(-1)
        for t in range(first, len(row)):
            wanted.append(math.log(probabilities[t - 1, row[t]]))
            entropies.append(-float((probabilities[t - 1] * probabilities[t - 1].log()).sum()))
    got, entropy = token_logprobs(model, tokens, learned, temperature, with_entropy=True)
    assert got.tolist() == pytest.approx(wanted, abs=1e-9)
    assert entropy.tolist() == pytest.approx(entropies, abs=1e-9)
    assert got.requires_grad
    assert not entropy.requires_grad


def test_nothing_marked_gives_nothing_but_keeps_the_graph(model):
    tokens = torch.zeros(1, 2, dtype=torch.int64)
    logprobs, entropy = token_logprobs(model, tokens, torch.zeros_like(tokens, dtype=torch.bool))
    assert len(logprobs) == 0
    assert entropy is None
    logprobs.sum().backward()
    assert all(float(p.grad.abs().sum()) == 0 for p in model.parameters())
