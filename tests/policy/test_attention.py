"""Shared prompts against the plain forward pass of transformers, one sequence at a time."""

import random

import pytest
import torch
from ranks import logprobs_of
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from bi_ray.policy.attention import PACKED_ATTENTION, can_share_prompts
from bi_ray.policy.logprobs import TokenLogprobs
from bi_ray.policy.packing import Row, pack

CPU = torch.device("cpu")
TOKENS = 97
SIZES = {
    "vocab_size": TOKENS,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,  # wide, so that a wrong key shows
    "attn_implementation": "sdpa",
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True)),
    "tied llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=True)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=16)),
}


def make_rows(seed=0):
    """Groups of one to five responses, prompts of one to twenty tokens; responses of one token are
    among them.
    """
    rng = random.Random(seed)
    rows = []
    for _ in range(6):
        prompt = tuple(rng.randrange(TOKENS) for _ in range(rng.randint(1, 20)))
        for _ in range(rng.randint(1, 5)):
            response = tuple(rng.randrange(TOKENS) for _ in range(rng.choice((1, 2, 5, 12))))
            rows.append(Row(prompt + response, len(prompt), rng.random()))
    return rows


def by_sequence(policy, batches, **options):
    """{(targets, number of the batch, of the sequence): log-probabilities} and the total loss."""
    found, loss = [], 0.0
    for batch in batches:
        logprobs = policy(batch, **options)[0]
        loss = loss - (logprobs * batch.weights).sum()
        for number in batch.sequences.unique().tolist():
            own = batch.sequences == number
            found.append(
                (tuple(batch.targets[own].tolist()), float(batch.weights[own][0]), logprobs[own])
            )
    return found, loss


def gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("packing", ["shared", "flat", "padded"])
def test_every_packing_is_the_plain_forward_pass(kind, packing):
    torch.manual_seed(0)
    model, rows = MODELS[kind](), make_rows()
    assert can_share_prompts(model, CPU)
    plain = {}
    for row in rows:
        values = logprobs_of(model, row.tokens, row.first_learned, 0.9)
        (-values.sum() * row.weight).backward()
        plain[row.tokens[row.first_learned :], torch.tensor(row.weight).item()] = values.detach()
    wanted = gradient(model)
    model.set_attn_implementation(PACKED_ATTENTION)
    for limit in (10, 60, 10**6):
        model.zero_grad()
        found, loss = by_sequence(
            TokenLogprobs(model), pack(rows, limit, packing=packing), temperature=0.9
        )
        loss.backward()
        assert len(found) == len(rows)
        assert (
            max(
                float((values.detach() - plain[targets, weight]).abs().max())
                for targets, weight, values in found
            )
            <= 1e-5
        )
        assert float((gradient(model) - wanted).norm() / wanted.norm()) <= 1e-5


def test_no_response_sees_another_or_another_prompt():
    """What changes in one response changes no bit of the log-probabilities of any other."""
    torch.manual_seed(0)
    model, rows = MODELS["llama"](), make_rows(1)
    model.set_attn_implementation(PACKED_ATTENTION)
    rows = [row for row in rows if row.first_learned >= 8 and row.learned >= 5]
    assert len(rows) > len({row.prompt for row in rows}), "the test wants a shared prompt"
    # same length, and the same place in the order: only the last token but one is another
    last = rows[0].tokens[-2]
    other = Row(
        (*rows[0].tokens[:-2], (last + 1) % TOKENS, rows[0].tokens[-1]),
        rows[0].first_learned,
        rows[0].weight,
    )
    with torch.no_grad():
        before, _ = by_sequence(TokenLogprobs(model), pack(rows, 10**6))
        after, _ = by_sequence(TokenLogprobs(model), pack([other, *rows[1:]], 10**6))
    changed = [
        index
        for index, (old, new) in enumerate(zip(before, after, strict=True))
        if old[0] != new[0]
    ]
    assert len(changed) == 1
    for index, (old, new) in enumerate(zip(before, after, strict=True)):
        assert torch.equal(old[2], new[2]) == (index not in changed)


def test_a_shared_prompt_is_computed_once():
    prompt = tuple(range(30))
    rows = [Row((*prompt, *[token] * 10), 30, 1.0) for token in range(8)]
    assert [batch.tokens.numel() for batch in pack(rows, 10**6)] == [30 + 8 * 9]
    assert [batch.tokens.numel() for batch in pack(rows, 10**6, packing="flat")] == [8 * 39]
    assert [batch.tokens.numel() for batch in pack(rows, 70)] == [30 + 4 * 9] * 2


def test_bfloat16_is_close():
    torch.manual_seed(0)
    model, rows = MODELS["llama"](), make_rows()
    exact, _ = by_sequence(TokenLogprobs(model), pack(rows, 10**6, packing="padded"))
    exact = {(targets, weight): values for targets, weight, values in exact}
    model.set_attn_implementation(PACKED_ATTENTION)
    found, loss = by_sequence(TokenLogprobs(model.bfloat16()), pack(rows, 10**6))
    loss.backward()
    errors = torch.cat([values - exact[targets, weight] for targets, weight, values in found]).abs()
    assert float(errors.mean()) < 0.2
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_what_packed_attention_cannot_do_is_known():
    windowed = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=4))
    assert not can_share_prompts(windowed, CPU)
    sliding = Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=4, max_window_layers=1)
    assert not can_share_prompts(Qwen2ForCausalLM(sliding), CPU)
    assert not can_share_prompts(LlamaForCausalLM(LlamaConfig(**SIZES, attention_dropout=0.1)), CPU)
    assert not can_share_prompts(
        LlamaForCausalLM(LlamaConfig(**SIZES | {"attn_implementation": "eager"})), CPU
    )
    assert not can_share_prompts(MODELS["llama"](), torch.device("cuda"))
