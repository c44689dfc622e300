import math

import pytest
import torch
from ranks import TOKENS
from transformers import Gemma2Config, Gemma2ForCausalLM

from bi_ray.policy.checkpoint import load_model
from bi_ray.policy.files import CheckpointError
from bi_ray.policy.logprobs import TokenLogprobs, _nucleus_logprobs
from bi_ray.policy.packing import Row, pack


@pytest.fixture(scope="module")
def model(tiny_model):
    return load_model(tiny_model(tied=True)).double()


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("chunk", [10**9, 7 * TOKENS])
def test_against_one_row_at_a_time_without_padding(model, temperature, chunk):
    """The learned tokens start at column 3 in one row and 1 in the other; the shorter row is
    padded.
    """
    torch.manual_seed(0)
    rows = [
        Row(tuple(torch.randint(0, TOKENS, (n,)).tolist()), first, 1.0)
        for n, first in ((6, 1), (11, 3))
    ]
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
    [batch] = pack(
        [Row(tuple(i % TOKENS for i in range(s, s + 40)), 5, 0.1 * s) for s in range(1, 6)], 10**9
    )
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
        vocab_size=50,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=16,
        final_logit_softcapping=1.0,
    )
    with pytest.raises(CheckpointError, match="Gemma2ForCausalLM scales or caps its logits"):
        TokenLogprobs(Gemma2ForCausalLM(config))
    config.final_logit_softcapping = None
    TokenLogprobs(Gemma2ForCausalLM(config))


def plain_nucleus(logits, top_p):
    """Numbers of the kept tokens and their probabilities, in plain Python: from the largest on,
    until the sum is top_p.

    A token stays while those above it have less than ``top_p`` together.
    """
    weights = [math.exp(value) for value in logits]
    probabilities = [weight / math.fsum(weights) for weight in weights]
    kept, above = {}, 0.0
    for number in sorted(range(len(logits)), key=lambda i: -logits[i]):
        if above < top_p or not kept:
            kept[number] = probabilities[number]
        above += probabilities[number]
    mass = math.fsum(kept.values())
    return {number: probability / mass for number, probability in kept.items()}


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.6, 0.95, 0.999])
@pytest.mark.parametrize("chunk", [10**9, 30 * TOKENS])
def test_top_p_renormalizes_over_what_the_sampler_drew_from(model, top_p, chunk):
    torch.manual_seed(2)
    row = Row(tuple(torch.randint(0, TOKENS, (40,)).tolist()), 5, 1.0)
    logits = model(input_ids=torch.tensor([row.tokens])).logits[0].detach() / 0.6
    wanted, entropies, outside = [], [], 0
    for t in range(row.first_learned, len(row.tokens)):
        kept = plain_nucleus(logits[t - 1].tolist(), top_p)
        entropies.append(-math.fsum(p * math.log(p) for p in kept.values()))
        if row.tokens[t] in kept:
            wanted.append(math.log(kept[row.tokens[t]]))
            continue
        outside += 1  # it joins the set
        probabilities = logits[t - 1].softmax(-1)
        target = float(probabilities[row.tokens[t]])
        wanted.append(math.log(target / (target + float(probabilities[list(kept)].sum()))))
    [batch] = pack([row], 10**9, packing="padded")
    got, entropy = TokenLogprobs(model, chunk)(batch, 0.6, with_entropy=True, top_p=top_p)
    assert got.tolist() == pytest.approx(wanted, abs=1e-9)
    assert entropy.tolist() == pytest.approx(entropies, abs=1e-9)
    assert outside > (0 if top_p < 0.9 else -1)
    model.zero_grad()
    got.sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters())


@pytest.mark.parametrize("target", [0, 1, 2])
def test_a_target_among_equal_logits_at_the_edge_stays(target):
    logits = torch.tensor([[1.0, 1.0, 1.0, -3.0]], dtype=torch.float64)
    logprobs, _ = _nucleus_logprobs(logits, torch.tensor([target]), 0.5, False)
    # two of the three have the probability 0.5
    assert float(logprobs) == pytest.approx(-math.log(2))


def test_top_p_of_one_changes_nothing_to_the_last_bit(model):
    [batch] = pack([Row(tuple(range(1, 30)), 3, 1.0)], 10**9)
    plain, limited = TokenLogprobs(model)(batch, 0.7), TokenLogprobs(model)(batch, 0.7, top_p=1.0)
    assert torch.equal(plain[0], limited[0])


def test_the_gradient_under_top_p_is_that_of_finite_differences():
    torch.manual_seed(0)
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3, 4, 5])

    def logprobs(values):
        return _nucleus_logprobs(values, targets, 0.7, False)[0]

    assert torch.autograd.gradcheck(logprobs, logits, check_forward_ad=True)
