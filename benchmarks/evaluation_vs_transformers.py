"""Greedy evaluation: the rollout pool (2 engines of 1 thread) against transformers' generate (1
process, 2 threads).

The same model, prompts and length limit, side by side in one run; prints the medians and `RATIO`.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import time
from pathlib import Path

import ray
import torch

from actors.cluster import connect
from actors.rollout.pool import make_ray_pool
from bi_ray.batches.rollout import GroupRequest, SamplingConfig
from bi_ray.config import RunConfig, load_config
from bi_ray.policy.chat import encode_prompt
from bi_ray.policy.checkpoint import load_model, load_tokenizer
from bi_ray.tasks.registry import build_task

# rows of one generate call: 32 and 64 were equally fast on two cores, 16 and 128 slower
_BATCH = 64


def _prompts(config: RunConfig, count: int) -> list[tuple[int, ...]]:
    task, tokenizer = build_task(config.task, 0), load_tokenizer(config.model.path)
    questions = (task.problem("test_id", i).question for i in range(count))
    return [tuple(encode_prompt(tokenizer, task.system_prompt, question)) for question in questions]


def _transformers(config: RunConfig, prompts: list[tuple[int, ...]]) -> float:
    model, tokenizer = load_model(config.model.path).eval(), load_tokenizer(config.model.path)
    tokenizer.padding_side = "left"
    began = time.perf_counter()
    for start in range(0, len(prompts), _BATCH):
        rows = [{"input_ids": list(prompt)} for prompt in prompts[start : start + _BATCH]]
        model.generate(
            **tokenizer.pad(rows, return_tensors="pt"),
            max_new_tokens=config.model.max_response_tokens,
            do_sample=False,
        )
    return len(prompts) / (time.perf_counter() - began)


async def _measure(
    config: RunConfig, prompts: list[tuple[int, ...]], repeats: int
) -> tuple[list[float], list[float]]:
    pool = make_ray_pool(config, "benchmark", Path(config.model.path).absolute())
    await pool.start(config.rollout.workers)
    greedy = SamplingConfig(samples=1, temperature=0.0, max_tokens=config.model.max_response_tokens)
    ours, theirs = [], []
    for repeat in range(repeats + 1):  # the first round warms both up
        requests = [
            GroupRequest(f"{repeat}/{i}", prompt, greedy, i) for i, prompt in enumerate(prompts)
        ]
        began = time.perf_counter()
        await pool.generate(requests)
        ours.append(len(prompts) / (time.perf_counter() - began))
        theirs.append(_transformers(config, prompts))
    await pool.close()
    return ours[1:], theirs[1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--problems", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    config = load_config(arguments.config, RunConfig)
    torch.set_num_threads(2)
    connect(config.ray)
    ours, theirs = asyncio.run(
        _measure(config, _prompts(config, arguments.problems), arguments.repeats)
    )
    ray.shutdown()
    print(f"rollout pool   {statistics.median(ours):.1f} problems/s  {[round(v, 1) for v in ours]}")
    print(
        f"transformers   {statistics.median(theirs):.1f} problems/s  {[round(v, 1) for v in theirs]}"
    )
    print(
        f"RATIO evaluation_vs_transformers {statistics.median(ours) / statistics.median(theirs):.2f}"
    )


if __name__ == "__main__":
    main()
