"""Compare the rollout pool with bare vLLM: two engines, or ``LLM.generate`` in two processes.

    python benchmarks/rollout_vs_vllm.py [--rounds 6]

Prompts, seeds, sampling and engine settings are the same. Each bare process gets every second group
in one call, which is the best that one can do by hand. Also shown is bare vLLM with its default
block size on a CPU, which is too long for these prompts to be shared. The sides take turns, one
round each; the first round of each does not count.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from multiprocessing.connection import Connection
from pathlib import Path

import ray
from common import arguments_parser, encoded_prompts, medians_of, quickstart, report

from actors.cluster import connect
from actors.rollout.engine import engine_arguments, engine_environment
from actors.rollout.generation import FailedGroup
from actors.rollout.pool import RolloutPool, make_ray_pool
from bi_ray.batches.rollout import GroupRequest, SamplingConfig, seed_for
from bi_ray.config.run import RunConfig

PROMPTS, SAMPLES, ENGINES = 24, 12, 2
# The arguments from ``engine_arguments`` that bare vLLM gets; only the scheduler is our own.
SETTINGS = (
    "model",
    "dtype",
    "max_model_len",
    "max_num_seqs",
    "kv_cache_memory_bytes",
    "enforce_eager",
    "block_size",
    "enable_prefix_caching",
    "logprobs_mode",
    "disable_log_stats",
    "enable_chunked_prefill",
    "distributed_executor_backend",
)
POOL, SAME_SETTINGS, DEFAULT_BLOCKS = "pool", "vLLM, same settings", "vLLM, its own block size"


def requests(config: RunConfig, number: int) -> list[GroupRequest]:
    """The groups of a round."""
    sampling = SamplingConfig(SAMPLES, 1.0, 1.0, config.model.max_response_tokens)
    groups = []
    for index, prompt in enumerate(encoded_prompts(config, "rl", number * PROMPTS, PROMPTS)):
        groups.append(GroupRequest(str(index), prompt, sampling, seed_for(number, index)))
    return groups


def serve_bare_vllm(config: RunConfig, default_blocks: bool, pipe: Connection) -> None:
    """Generate with ``LLM`` in this process: receives groups, sends the number of tokens."""
    os.environ.update(engine_environment(config.rollout))
    from vllm import LLM, SamplingParams

    arguments = engine_arguments(config.model.path, config.model, config.rollout, {})
    settings = {name: getattr(arguments, name) for name in SETTINGS}
    if default_blocks:
        settings["block_size"] = None
    llm = LLM(**settings)
    pipe.send("ready")
    while (groups := pipe.recv()) is not None:
        params = []
        for group in groups:
            sampling = group.sampling
            params.append(
                SamplingParams(
                    n=sampling.samples,
                    max_tokens=sampling.max_tokens,
                    seed=group.seed,
                    logprobs=0,
                )
            )
        prompts = [{"prompt_token_ids": list(group.prompt_tokens)} for group in groups]
        tokens = 0
        for answer in llm.generate(prompts, params, use_tqdm=False):
            tokens += sum(len(sample.token_ids) for sample in answer.outputs)
        pipe.send(tokens)
    llm.llm_engine.engine_core.shutdown()  # its process outlives this one otherwise


class BareVLLM:
    """Two processes with bare vLLM."""

    def __init__(self, config: RunConfig, default_blocks: bool) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(ENGINES):
            ours, theirs = spawn.Pipe()
            arguments = (config, default_blocks, theirs)
            self._processes.append(spawn.Process(target=serve_bare_vllm, args=arguments))
            self._pipes.append(ours)
        for process in self._processes:
            process.start()
        for pipe in self._pipes:
            pipe.recv()

    def generate(self, groups: list[GroupRequest]) -> int:
        """Generate the groups; returns their number of tokens."""
        for number, pipe in enumerate(self._pipes):
            pipe.send(groups[number::ENGINES])
        return sum(pipe.recv() for pipe in self._pipes)

    def close(self) -> None:
        """End both processes."""
        for pipe, process in zip(self._pipes, self._processes, strict=True):
            pipe.send(None)
            process.join(30)
            process.kill()


async def pool_tokens(pool: RolloutPool, groups: list[GroupRequest]) -> int:
    """Generate the groups with the pool; returns their number of tokens."""
    tokens = 0
    for group in await pool.generate(groups):
        if not isinstance(group, FailedGroup):
            tokens += sum(len(sample.tokens) for sample in group.samples)
    return tokens


async def measure(config: RunConfig, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each side in every round that counts."""
    pool = make_ray_pool(config, "bench-rollouts", Path(config.model.path).absolute())
    await pool.start(ENGINES)
    bare = {DEFAULT_BLOCKS: BareVLLM(config, True), SAME_SETTINGS: BareVLLM(config, False)}
    rates: dict[str, list[float]] = {POOL: [], DEFAULT_BLOCKS: [], SAME_SETTINGS: []}
    for number in range(rounds + 1):
        groups = requests(config, number)
        began = time.perf_counter()
        tokens = {POOL: await pool_tokens(pool, groups)}
        seconds = {POOL: time.perf_counter() - began}
        for name, side in bare.items():
            began = time.perf_counter()
            tokens[name] = side.generate(groups)
            seconds[name] = time.perf_counter() - began
        assert len(set(tokens.values())) == 1, f"the sides generated different numbers: {tokens}"
        for name in rates:
            rates[name].append(tokens[name] / seconds[name])
    for side in bare.values():
        side.close()
    await pool.close()
    return {name: values[1:] for name, values in rates.items()}


def main() -> None:
    """Measure and print."""
    parser = arguments_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=6, help="measured rounds")
    rounds = parser.parse_args().rounds
    config = quickstart()
    connect(config.ray)
    medians = medians_of(asyncio.run(measure(config, rounds)))
    ray.shutdown()
    setup = (
        f"{PROMPTS} prompts x {SAMPLES} samples at temperature 1 with seeds and "
        "log-probabilities, models/tiny-base (0.82 M), responses that end by themselves, "
        f"{ENGINES} engines of one thread on two cores: the rollout pool (Ray actors), and "
        "LLM.generate in two processes, in turn. Tokens per second, medians."
    )
    figures = {name: round(value) for name, value in medians.items()}
    own_blocks_ratio = medians[POOL] / medians[DEFAULT_BLOCKS]
    report("rollout_vs_vllm_own_blocks", own_blocks_ratio, setup, **figures)
    report("rollout_vs_vllm", medians[POOL] / medians[SAME_SETTINGS], setup, **figures)


if __name__ == "__main__":
    main()
