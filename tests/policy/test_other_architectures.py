"""Random small models of many kinds: what mixes their tokens decides how rows may be packed, and
none has dropout.
"""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from bi_ray.learning.learner import choose_packing
from bi_ray.policy.attention import (
    PACKED_ATTENTION,
    attends_as_laid_out,
    can_pack,
    can_share_prompts,
)
from bi_ray.policy.logprobs import TokenLogprobs
from bi_ray.policy.noise import switch_off_noise
from bi_ray.policy.packing import Row, pack

CPU = torch.device("cpu")
VOCABULARY = 97
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA = {
    "state_size": 8,
    "n_groups": 1,
    "expand": 2,
    "num_heads": 4,
    "head_dim": 16,
    "chunk_size": 8,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
MOE = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
}
MLA = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "head_dim": 4,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 6,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "n_group": 1,
    "topk_group": 1,
    "num_key_value_heads": 4,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128}
LEARNED = {
    "ffn_dim": 32,
    "word_embed_proj_dim": 32,
    "d_model": 32,
    "decoder_layers": 2,
    "decoder_attention_heads": 4,
}

# What the learner does with rows, by kind of model: (options, shares prompts on a CPU, can be
# packed at all).
KINDS = {
    "llama": ({}, True, True),
    "gpt2": (GPT2, True, True),
    "qwen3_moe": ({**MOE, "decoder_sparse_step": 1}, True, True),
    "mistral": ({"sliding_window": 4}, False, True),
    "gemma3_text": (
        {"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4},
        False,
        True,
    ),
    "qwen3_next": ({**LINEAR, **MOE}, False, False),
    "qwen3_5_text": (LINEAR, False, False),
    "lfm2": ({"layer_types": ["conv", "full_attention"], "block_ff_dim": 32}, False, False),
    "mamba": ({"state_size": 8}, False, False),
    "mamba2": (MAMBA, False, False),
    "bart": (LEARNED, False, False),
    "stablelm": ({}, False, False),
    "nemotron": ({}, False, True),
    "deepseek_v3": (MLA, False, True),
}


def make_model(kind, **more):
    options = KINDS[kind][0]
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **SIZES | options | more)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # wide, so that a leak shows
                parameter.normal_(0, 0.3)
    return model.train()


def make_rows():
    generator = torch.Generator().manual_seed(1)
    prompt = torch.randint(3, VOCABULARY, (12,), generator=generator).tolist()
    rows = []
    for length in (3, 9, 20):
        response = torch.randint(3, VOCABULARY, (length,), generator=generator).tolist()
        rows.append(Row((*prompt, *response), len(prompt), 1.0))
    other = torch.randint(3, VOCABULARY, (30,), generator=generator).tolist()
    return [*rows, Row(tuple(other), 5, 1.0)]


@torch.no_grad()
def one_at_a_time(model, rows):
    """{learned tokens: their log-probabilities}, each sequence in a pass of its own."""
    found = {}
    for row in rows:
        logprobs = (
            model(input_ids=torch.tensor([row.tokens]), use_cache=False).logits[0].log_softmax(-1)
        )
        learned = row.tokens[row.first_learned :]
        found[learned] = logprobs[range(row.first_learned - 1, len(row.tokens) - 1), learned]
    return found


@torch.no_grad()
def packed(model, rows, packing):
    [batch] = pack(rows, 10**6, packing=packing)
    logprobs = TokenLogprobs(model)(batch)[0]
    found = {}
    for number in range(len(rows)):
        own = batch.sequences == number
        found[tuple(batch.targets[own].tolist())] = logprobs[own]
    return found


def largest_difference(found, wanted):
    assert found.keys() == wanted.keys()
    return max(float((found[learned] - wanted[learned]).abs().max()) for learned in wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_learner_s_packing_is_each_sequence_by_itself(kind):
    _, shares, packs = KINDS[kind]
    model, rows = make_model(kind), make_rows()
    switch_off_noise(model)
    wanted = one_at_a_time(model, rows)
    assert largest_difference(packed(model, rows, "padded"), wanted) < 2e-5
    assert can_pack(model) == packs
    shared = can_share_prompts(model, CPU)
    if shared:
        model.set_attn_implementation(PACKED_ATTENTION)
        shared = attends_as_laid_out(model)
    assert shared == shares
    if shares:
        assert choose_packing("auto", model) == "shared"
        for packing in ("shared", "flat"):
            assert largest_difference(packed(model, rows, packing), wanted) < 2e-5
    model.config._attn_implementation = "flash_attention_2"  # as on a GPU
    assert choose_packing("auto", model) == ("flat" if packs else "padded")
    if not packs:
        with pytest.raises(
            ValueError, match=r"learner.packing is flat, which \w+ \(flash_attention_2\) cannot do"
        ):
            choose_packing("flat", model)


def test_what_is_not_packed_would_leak():
    """Why those are refused: the same rows, packed all the same."""
    for kind in ("bart", "qwen3_5_text", "lfm2", "nemotron"):
        model, rows = make_model(kind), make_rows()
        switch_off_noise(model)
        wanted = one_at_a_time(model, rows)
        model.set_attn_implementation(PACKED_ATTENTION)
        assert largest_difference(packed(model, rows, "flat"), wanted) > 1e-2


DROPOUT = {
    "gpt2": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1},
    "opt": {"dropout": 0.1, "attention_dropout": 0.1, "activation_dropout": 0.1, "layerdrop": 0.5},
    "phi": {"resid_pdrop": 0.1, "embd_pdrop": 0.1, "attention_dropout": 0.1},
    "gpt_neox": {"hidden_dropout": 0.1, "attention_dropout": 0.1},
    "llama": {"attention_dropout": 0.5},
    "mixtral": {"router_jitter_noise": 0.3, "num_local_experts": 4},
}
KINDS |= {
    "opt": ({"ffn_dim": 32, "word_embed_proj_dim": 32}, True, True),
    "phi": ({}, True, True),
    "gpt_neox": ({}, True, True),
    "mixtral": ({"num_local_experts": 4}, True, True),
}


@pytest.mark.parametrize("kind", DROPOUT)
def test_a_learner_has_no_dropout_and_stays_in_training_mode(kind):
    model, rows = make_model(kind, **DROPOUT[kind]), make_rows()
    TokenLogprobs(model)  # its check is not misled by dropout
    assert model.training
    wanted = one_at_a_time(model.eval(), rows)
    model.train()
    assert largest_difference(one_at_a_time(model, rows), wanted) > 1e-3, (
        "the test wants a model with dropout"
    )
    switch_off_noise(model)
    assert model.training
    assert largest_difference(one_at_a_time(model, rows), wanted) == 0
    assert largest_difference(packed(model, rows, "padded"), wanted) < 2e-5
