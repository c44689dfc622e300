"""GRPO by TRL on this CPU, a step whenever a line comes in. Runs in TRL's own environment, without
this project.

    python trl_side.py '{"model": ..., "prompts": ..., ...}'    (see ``race.TRLSetting``)

Answers each step with one line of JSON on stdout: seconds, tokens and reward of the step.
"""

from __future__ import annotations

import json
import re
import sys
import time
from typing import Any
from zlib import crc32

# as promptbench asks for it
_ANSWER = re.compile(r"<answer> The final answer is (-?\d+) </answer>")
SETTING = json.loads(sys.argv[1])


def exact(prompts: list, completions: list, answer: list[str], **_: Any) -> list[float]:
    """1 where the last answer of a response is the right number."""
    found = [_ANSWER.findall(completion[-1]["content"]) for completion in completions]
    return [
        float(bool(values) and values[-1] == right)
        for values, right in zip(found, answer, strict=True)
    ]


def drawn(prompts: list, completions: list, **_: Any) -> list[float]:
    """0 or 1 by a hash of the response, so that every group tells something."""
    return [float(crc32(completion[-1]["content"].encode()) % 2) for completion in completions]


def main() -> None:
    """Train."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    torch.set_num_threads(SETTING["threads"])
    samples = SETTING["prompts_per_step"] * SETTING["samples_per_prompt"]
    fixed = SETTING["fixed_length"]

    class Gate(TrainerCallback):
        """Waits for a line before a step, and answers after it."""

        began = 0.0

        def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
            if not sys.stdin.readline():
                sys.exit()
            self.began = time.perf_counter()

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            metrics = {
                key: values[-1] for key, values in trainer._metrics["train"].items() if values
            }
            row = {
                "seconds": time.perf_counter() - self.began,
                "response_tokens_mean": metrics["completions/mean_length"],
                "reward": metrics["reward"],
            }
            print(json.dumps(row), flush=True)

    config = GRPOConfig(
        output_dir=SETTING["output"],
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        num_generations=SETTING["samples_per_prompt"],
        per_device_train_batch_size=SETTING["micro_batch"],
        gradient_accumulation_steps=samples // SETTING["micro_batch"],
        max_completion_length=SETTING["max_response_tokens"],
        generation_kwargs={"min_new_tokens": SETTING["max_response_tokens"]} if fixed else {},
        shuffle_dataset=False,
        loss_type="dapo",  # a mean over all tokens of the step, as token_mean is
        beta=0.0,
        epsilon=0.2,
        temperature=1.0,
        learning_rate=SETTING["learning_rate"],
        lr_scheduler_type="constant",
        adam_beta2=0.95,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=SETTING["steps"],
        logging_strategy="no",
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=0,
    )
    with open(SETTING["prompts"]) as file:
        rows = [json.loads(line) for line in file]
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(
            SETTING["model"], trust_remote_code=False, dtype=torch.float32
        ),
        reward_funcs=drawn if fixed else exact,
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(SETTING["model"], trust_remote_code=False),
        callbacks=[Gate()],
    )
    trainer.train()


if __name__ == "__main__":
    main()
