import math

import pytest
import torch
from ranks import TOKENS
from transformers import Gemma2Config, Gemma2ForCausalLM

from bi_ray.policy.checkpoint import CheckpointError, load_model
from bi_ray.policy.logprobs import TokenLogprobs
from bi_ray.policy.packing import Row, pack


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model(tied=True)).double()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [10**9, 7 * TOKENS])
def test_against_one_row_at_a_time_without_padding(model, temperature, chunk):
    """The learned tokens start at column 3 in one row and 1 in the other; the shorter row is padded."""
    torch.manual_seed(0)
    rows = [Row(tuple(torch.randint(0, TOKENS, (n,)).tolist()), first, 1.0) for n, first in ((6, 1), (11, 3))]
    wanted, entropies = [], []
    for row in rows:
        logits = model(input_ids=torch.tensor([row.tokens])).logits[0].detach()
        probabilities = (logits / temperature).softmax(-1)
        for t in range(row.first_learned, len(row.tokens)):
            wanted.append(math.log(probabilities[t - 1, row.tokens[t]]))
            entropies.append(-float((probabilities[t - 1] * probabilities[t - 1].log()).sum()))
    [batch] = pack(rows, 10**9, packing="padded")
    got, entropy = TokenLogprobs(model, chunk)(batch, temperature, with_entropy=True)
    assert got.tolist() == pytest.approx(wanted, abs=1e-9)
    assert entropy.tolist() == pytest.approx(entropies, abs=1e-9)
    assert got.requires_grad
    assert not entropy.requires_grad


@pytest.mark.parametrize("tied", [True, False])
def test_chunks_change_no_gradient_and_hold_few_logits(tiny_model, tied):
    model = load_model(tiny_model(tied=tied)).double()
    [batch] = pack([Row(tuple(i % TOKENS for i in range(s, s + 40)), 5, 0.1 * s) for s in range(1, 6)], 10**9)
    vocabulary = model.config.vocab_size
    rows, gradients = [], []
    model.get_output_embeddings().register_forward_hook(lambda _, __, out: rows.append(len(out)))
    for chunk in (10**9, 16 * vocabulary):
        model.zero_grad()
        policy = TokenLogprobs(model, chunk)
        seen = len(rows)
        (policy(batch, 0.7)[0] * batch.weights).sum().backward()
        del rows[:seen]
        assert max(rows) == min(5 * 35, chunk // vocabulary)
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))
    assert float((gradients[0] - gradients[1]).norm() / gradients[0].norm()) <= 1e-12


def test_nothing_learned_gives_nothing_but_keeps_the_graph(model):
    for packing in ("padded", "shared"):
        shares = [pack([Row((1, 2), 1, 1.0)], 10, rank, 2, packing) for rank in range(2)]
        [batch] = [batch for share in shares for batch in share if not len(batch.targets)]
        model.zero_grad()
        logprobs, entropy = TokenLogprobs(model)(batch)
        assert len(logprobs) == 0
        assert entropy is None
        logprobs.sum().backward()
        assert all(float(p.grad.abs().sum()) == 0 for p in model.parameters())


def test_a_model_that_caps_its_logits_is_refused():
    config = Gemma2Config(
        vocab_size=50, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=2, head_dim=16, final_logit_softcapping=1.0,
    )  # fmt: skip
    with pytest.raises(CheckpointError, match="Gemma2ForCausalLM scales or caps its logits"):
        TokenLogprobs(Gemma2ForCausalLM(config))
    config.final_logit_softcapping = None
    TokenLogprobs(Gemma2ForCausalLM(config))
