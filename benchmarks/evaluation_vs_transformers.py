"""Compare greedy evaluation by the rollout pool with the `generate` of transformers.

The pool has 2 engines of one thread, transformers one process of two threads. Both get the same
model, prompts and length limit, and take turns; medians are compared.

    python benchmarks/evaluation_vs_transformers.py
"""

from __future__ import annotations

import asyncio
import statistics
from pathlib import Path

import ray
import torch
from common import arguments_parser, encoded_prompts, print_ratio, rounded, timed

from actors.cluster import connect
from actors.rollout.pool import RolloutPool, make_ray_pool
from bi_ray.batches.rollout import GroupRequest, SamplingConfig
from bi_ray.config.files import load_config
from bi_ray.config.run import RunConfig
from bi_ray.policy.checkpoint import load_model, load_tokenizer

# Rows per call of `generate`: 32 and 64 were equally fast on two cores, 16 and 128 slower.
_BATCH = 64
_Prompts = list[tuple[int, ...]]


class _Transformers:
    """Generates with transformers."""

    def __init__(self, config: RunConfig) -> None:
        self._model = load_model(config.model.path).eval()
        self._tokenizer = load_tokenizer(config.model.path)
        self._tokenizer.padding_side = "left"
        self._max_tokens = config.model.max_response_tokens

    def generate(self, prompts: _Prompts) -> None:
        """Answer all prompts, batch by batch."""
        for start in range(0, len(prompts), _BATCH):
            rows = [{"input_ids": list(prompt)} for prompt in prompts[start : start + _BATCH]]
            inputs = self._tokenizer.pad(rows, return_tensors="pt")
            self._model.generate(**inputs, max_new_tokens=self._max_tokens, do_sample=False)


async def _pool_seconds(
    pool: RolloutPool, config: RunConfig, prompts: _Prompts, round_number: int
) -> float:
    max_tokens = config.model.max_response_tokens
    greedy = SamplingConfig(samples=1, temperature=0.0, max_tokens=max_tokens)
    requests = []
    for index, prompt in enumerate(prompts):
        requests.append(GroupRequest(f"{round_number}/{index}", prompt, greedy, index))
    loop = asyncio.get_running_loop()
    began = loop.time()
    await pool.generate(requests)
    return loop.time() - began


async def _measure(
    config: RunConfig, prompts: _Prompts, rounds: int
) -> tuple[list[float], list[float]]:
    """Problems per second of the pool and of transformers, in each round."""
    pool = make_ray_pool(config, "benchmark", Path(config.model.path).absolute())
    await pool.start(config.rollout.workers)
    transformers = _Transformers(config)
    pool_rates, transformers_rates = [], []
    for round_number in range(rounds + 1):  # the first round warms both up
        pool_rates.append(len(prompts) / await _pool_seconds(pool, config, prompts, round_number))
        seconds, _ = timed(lambda: transformers.generate(prompts))
        transformers_rates.append(len(prompts) / seconds)
    await pool.close()
    return pool_rates[1:], transformers_rates[1:]


def main() -> None:
    """Measure and print."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--config", default="configs/quickstart.yaml", help="of the run")
    parser.add_argument("--problems", type=int, default=128, help="problems per round")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds")
    arguments = parser.parse_args()
    config = load_config(arguments.config, RunConfig)
    torch.set_num_threads(2)
    connect(config.ray)
    prompts = encoded_prompts(config, "test_id", 0, arguments.problems)
    pool_rates, transformers_rates = asyncio.run(_measure(config, prompts, arguments.repeats))
    ray.shutdown()
    pool_rate = statistics.median(pool_rates)
    transformers_rate = statistics.median(transformers_rates)
    print(f"rollout pool   {pool_rate:.1f} problems/s  {rounded(pool_rates, 1)}")
    print(f"transformers   {transformers_rate:.1f} problems/s  {rounded(transformers_rates, 1)}")
    print_ratio("evaluation_vs_transformers", pool_rate / transformers_rate)


if __name__ == "__main__":
    main()
