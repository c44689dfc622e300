"""A whole GRPO step against TRL's GRPOTrainer at fixed length, every group informative: the worst
case.

    python benchmarks/grpo_step_fixed_vs_trl.py [--steps 6]

A model of 5 M parameters is made on the fly. Its end token lies outside of its vocabulary, so every
response has 128 tokens, and a reward drawn by a hash of the response leaves no group out. The rest
is as in grpo_step_vs_trl.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from common import BUILD, ROOT
from grpo.race import race
from transformers import LlamaConfig, LlamaForCausalLM

from bi_ray.config import RunConfig, load_config
from bi_ray.policy.checkpoint import load_tokenizer

PROMPTS, SAMPLES, TOKENS = 16, 8, 128


def make_model(directory: Path) -> int:
    """Write a random Llama that never ends; returns how many parameters it has."""
    tokenizer = load_tokenizer(ROOT / "models" / "tiny-base")
    vocabulary = len(tokenizer)
    tokenizer.add_special_tokens({"eos_token": "<|never|>"})
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=704,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model.num_parameters()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=6)
    steps = parser.parse_args().steps
    path = BUILD / "model_5m"
    parameters = make_model(path)
    config = load_config(ROOT / "configs" / "quickstart.yaml", RunConfig)
    rl = {
        "prompts_per_step": PROMPTS,
        "samples_per_prompt": SAMPLES,
        "steps": steps,
        "checkpoint_every_steps": 1000,
    }
    rl["optimizer"] = {"learning_rate": 1e-6}
    options = config.model_dump(exclude={"rl", "model"}) | {"rl": rl}
    options["model"] = {"path": str(path), "max_prompt_tokens": 256, "max_response_tokens": TOKENS}
    setup = (
        f"A GRPO step of {PROMPTS} prompts x {SAMPLES} rollouts of exactly {TOKENS} tokens, all groups informative, a "
        f"random Llama of {parameters / 1e6:.1f} M, on two cores: this project (driver, 2 engines, 2 learners) and "
        "TRL's GRPOTrainer, same prompts, reward, loss and learning rate, in turn."
    )
    race("grpo_step_fixed_vs_trl", RunConfig.model_validate(options), True, (32, 64, 128), setup)


if __name__ == "__main__":
    main()
