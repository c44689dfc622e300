"""TRL's side of the race: GRPO on this CPU, one step per line of input.

    python trl_side.py '{"model": ..., "prompts": ..., ...}'    (see ``race.TRLSetting``)

Runs in TRL's own environment, without this project. Prints one line of JSON per step: its seconds,
tokens and reward.
"""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any
from zlib import crc32

_ANSWER = re.compile(r"<answer> The final answer is (-?\d+) </answer>")
SETTING = json.loads(sys.argv[1])


def exact(prompts: list, completions: list, answer: list[str], **_: Any) -> list[float]:
    """1 for a response whose last answer, in promptbench's form, is the right number; else 0."""
    rewards = []
    for completion, right in zip(completions, answer, strict=True):
        answers = _ANSWER.findall(completion[-1]["content"])
        rewards.append(float(bool(answers) and answers[-1] == right))
    return rewards


def drawn(prompts: list, completions: list, **_: Any) -> list[float]:
    """0 or 1 by a hash of the response, so that rewards differ in every group."""
    return [float(crc32(completion[-1]["content"].encode()) % 2) for completion in completions]


def grpo_options() -> dict[str, Any]:
    """Arguments of ``GRPOConfig`` that match this project's options."""
    samples = SETTING["prompts_per_step"] * SETTING["samples_per_prompt"]
    max_tokens = SETTING["max_response_tokens"]
    return {
        "output_dir": SETTING["output"],
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "num_generations": SETTING["samples_per_prompt"],
        "per_device_train_batch_size": SETTING["micro_batch"],
        "gradient_accumulation_steps": samples // SETTING["micro_batch"],
        "max_completion_length": max_tokens,
        "generation_kwargs": {"min_new_tokens": max_tokens} if SETTING["fixed_length"] else {},
        "shuffle_dataset": False,
        "loss_type": "dapo",  # a mean over all tokens of the step, like our token_mean
        "beta": 0.0,
        "epsilon": 0.2,
        "temperature": 1.0,
        "learning_rate": SETTING["learning_rate"],
        "lr_scheduler_type": "constant",
        "adam_beta2": 0.95,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
        "max_steps": SETTING["steps"],
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": 0,
    }


def main() -> None:
    """Train."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(SETTING["threads"])

    class Gate(TrainerCallback):
        """Waits for a line of input before a step, and prints a line after it."""

        began = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if not sys.stdin.readline():
                sys.exit()
            self.began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            metrics = trainer._metrics["train"]
            row = {
                "seconds": time.perf_counter() - self.began,
                "response_tokens_mean": metrics["completions/mean_length"][-1],
                "reward": metrics["reward"][-1],
            }
            print(json.dumps(row), flush=True)

    with open(SETTING["prompts"]) as file:
        rows = [json.loads(line) for line in file]
    model = AutoModelForCausalLM.from_pretrained(
        SETTING["model"], trust_remote_code=False, dtype=torch.float32
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=drawn if SETTING["fixed_length"] else exact,
        args=GRPOConfig(**grpo_options()),
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(SETTING["model"], trust_remote_code=False),
        callbacks=[Gate()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
