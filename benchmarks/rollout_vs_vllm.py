"""The rollout pool with two engines against bare vLLM: ``LLM.generate`` in two processes.

    python benchmarks/rollout_vs_vllm.py [--rounds 6]

The same prompts, seeds, sampling and engine settings; each bare process gets every second group as
one call, which is the best that one can do by hand. Also shown: bare vLLM with the block size that
it takes by itself on a CPU, too long for these prompts to share. In turn, a round each; the first
counts on neither side.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import time
from multiprocessing.connection import Connection
from pathlib import Path

import ray
from common import ROOT, report

from actors.cluster import connect
from actors.rollout.engine import engine_arguments, engine_environment
from actors.rollout.pool import FailedGroup, make_ray_pool
from bi_ray.batches.rollout import GroupRequest, SamplingConfig, seed_for
from bi_ray.config import RunConfig, load_config
from bi_ray.policy.chat import encode_prompt
from bi_ray.policy.checkpoint import load_tokenizer
from bi_ray.tasks.registry import build_task

PROMPTS, SAMPLES, ENGINES = 24, 12, 2
# Of ``engine_arguments``, what both sides have; the scheduler that holds responses back is this
# project's own.
SETTINGS = [
    *(
        "model",
        "dtype",
        "max_model_len",
        "max_num_seqs",
        "kv_cache_memory_bytes",
        "enforce_eager",
        "block_size",
    ),
    *("enable_prefix_caching", "logprobs_mode", "disable_log_stats", "enable_chunked_prefill"),
    "distributed_executor_backend",
]


def requests(config: RunConfig, number: int) -> list[GroupRequest]:
    """The groups of a round."""
    task, tokenizer = build_task(config.task, 0), load_tokenizer(config.model.path)
    sampling = SamplingConfig(SAMPLES, 1.0, 1.0, config.model.max_response_tokens)
    questions = [task.problem("rl", number * PROMPTS + i).question for i in range(PROMPTS)]
    prompts = [
        tuple(encode_prompt(tokenizer, task.system_prompt, question)) for question in questions
    ]
    return [
        GroupRequest(str(i), prompt, sampling, seed_for(number, i))
        for i, prompt in enumerate(prompts)
    ]


def bare(config: RunConfig, defaults: bool, pipe: Connection) -> None:
    """A process with an ``LLM``: takes groups, answers with how many tokens it made."""
    os.environ.update(engine_environment(config.rollout))
    from vllm import LLM, SamplingParams

    arguments = engine_arguments(config.model.path, config.model, config.rollout, {})
    given = {name: getattr(arguments, name) for name in SETTINGS}
    llm = LLM(**(given | ({"block_size": None} if defaults else {})))
    pipe.send("ready")
    while (groups := pipe.recv()) is not None:
        params = [
            SamplingParams(
                n=group.sampling.samples,
                max_tokens=group.sampling.max_tokens,
                seed=group.seed,
                logprobs=0,
            )
            for group in groups
        ]
        prompts = [{"prompt_token_ids": list(group.prompt_tokens)} for group in groups]
        answers = llm.generate(prompts, params, use_tqdm=False)
        pipe.send(sum(len(sample.token_ids) for answer in answers for sample in answer.outputs))
    llm.llm_engine.engine_core.shutdown()  # its process outlives this one otherwise


class BareVLLM:
    """Two ``bare`` processes."""

    def __init__(self, config: RunConfig, defaults: bool) -> None:
        context = multiprocessing.get_context("spawn")
        pairs = [context.Pipe() for _ in range(ENGINES)]
        self._pipes = [own for own, _ in pairs]
        self._processes = [
            context.Process(target=bare, args=(config, defaults, theirs)) for _, theirs in pairs
        ]
        for process in self._processes:
            process.start()
        for pipe in self._pipes:
            pipe.recv()

    def generate(self, groups: list[GroupRequest]) -> int:
        """How many tokens the groups have."""
        for number, pipe in enumerate(self._pipes):
            pipe.send(groups[number::ENGINES])
        return sum(pipe.recv() for pipe in self._pipes)

    def close(self) -> None:
        """End both."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join(30)
            process.kill()


async def measure(config: RunConfig, rounds: int) -> dict[str, list[float]]:
    """Tokens a second of every round."""
    pool = make_ray_pool(config, "bench-rollouts", Path(config.model.path).absolute())
    await pool.start(ENGINES)
    sides = {
        "vLLM, its own block size": BareVLLM(config, True),
        "vLLM, same settings": BareVLLM(config, False),
    }
    rates: dict[str, list[float]] = {name: [] for name in ("pool", *sides)}
    for number in range(rounds + 1):
        groups = requests(config, number)
        began = time.perf_counter()
        answers = [
            group for group in await pool.generate(groups) if not isinstance(group, FailedGroup)
        ]
        made = {"pool": sum(len(sample.tokens) for group in answers for sample in group.samples)}
        took = {"pool": time.perf_counter() - began}
        for name, side in sides.items():
            began = time.perf_counter()
            made[name] = side.generate(groups)
            took[name] = time.perf_counter() - began
        assert len(set(made.values())) == 1, f"not the same samples: {made} tokens"
        for name in rates:
            if number:
                rates[name].append(made[name] / took[name])
    for side in sides.values():
        side.close()
    await pool.close()
    return rates


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    config = load_config(ROOT / "configs" / "quickstart.yaml", RunConfig)
    config = config.model_copy(
        update={"model": config.model.model_copy(update={"path": str(ROOT / config.model.path)})}
    )
    connect(config.ray)
    rates = asyncio.run(measure(config, rounds))
    ray.shutdown()
    medians = {name: statistics.median(values) for name, values in rates.items()}
    setup = (
        f"{PROMPTS} prompts x {SAMPLES} samples at temperature 1 with seeds and log-probabilities, models/tiny-base "
        f"(0.82 M), natural stops, {ENGINES} engines of one thread on two cores: the rollout pool (Ray actors), and "
        "LLM.generate in two processes, in turn. Tokens a second, medians."
    )
    figures = {name: round(value) for name, value in medians.items()}
    report(
        "rollout_vs_vllm_own_blocks",
        medians["pool"] / medians["vLLM, its own block size"],
        setup,
        **figures,
    )
    report("rollout_vs_vllm", medians["pool"] / medians["vLLM, same settings"], setup, **figures)


if __name__ == "__main__":
    main()
