"""Whole weight sync, from a learner's shards to 2 engines, against vLLM's own `reload_weights` in
one engine's process.

The learner gathers, writes the file, and the pool's engines pause, load and go on. vLLM reloads the
same tensors from its own memory. A random Llama of 135 M parameters in float32; everything has 1
thread; both in turn.

    python benchmarks/weight_sync_vs_reload.py
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
from typing import Any

import ray
import torch
from rl_runs import RUN_ID, random_model, run_config, start_ray, work_folder
from torch import distributed

from actors.rollout.engine import engine_arguments, engine_environment
from actors.rollout.pool import make_ray_pool
from actors.weights.shared_memory import announce
from bi_ray.config import RunConfig
from bi_ray.learning.learner import Learner
from bi_ray.policy.checkpoint import load_model
from bi_ray.policy.published import publish_weights, published_file, weights_directory
from bi_ray.policy.version import PolicyVersion

_WAIT_S = 300


def _reload(worker: Any, state: dict[str, torch.Tensor]) -> float:
    """What vLLM's worker takes, inside its process."""
    began = time.perf_counter()
    worker.reload_weights(weights_iterator=iter(state.items()), is_checkpoint_format=True)
    return time.perf_counter() - began


def _serve_reloads(config: RunConfig, pipe: Connection) -> None:
    """A bare vLLM in a process of its own: reloads whenever it is asked to."""
    os.environ |= engine_environment(config.rollout) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM, EngineArgs

    arguments = engine_arguments(config.model.path, config.model, config.rollout, {})
    llm = LLM(**{name: getattr(arguments, name) for name in _shared(arguments, EngineArgs())})
    state = load_model(config.model.path).state_dict()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    pipe.send("ready")
    while pipe.recv():
        pipe.send(llm.collective_rpc(_reload, args=(state,))[0])


def _shared(ours: Any, default: Any) -> list[str]:
    """Names of the arguments in which an engine of the pool differs from vLLM's defaults."""
    return [name for name, value in vars(default).items() if getattr(ours, name) != value]


async def _sync(
    config: RunConfig, repeats: int, pipe: Connection
) -> tuple[list[dict[str, float]], list[float]]:
    model = Path(config.model.path)
    learner = Learner(model, config.model, config.learner, config.rl.optimizer, torch.device("cpu"))
    pool = make_ray_pool(config, RUN_ID, model)
    await pool.start(config.rollout.workers)
    ours, theirs = [], []
    for step in range(1, repeats + 2):  # the first round warms both up
        version = PolicyVersion(1, step)
        path = published_file(weights_directory(RUN_ID), version)
        began = time.perf_counter()
        weights = learner.gather_weights()
        gathered = time.perf_counter()
        publish_weights(weights, path)
        written = time.perf_counter()
        await pool.sync(announce(version, path))
        done = time.perf_counter()
        parts = {"gather": gathered - began, "write": written - gathered, "engines": done - written}
        ours.append(parts | {"all": done - began})
        pipe.send(True)
        theirs.append(await asyncio.to_thread(pipe.recv))
    await pool.close()
    return ours[1:], theirs[1:]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="135m")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with work_folder() as folder:
        config = run_config(
            random_model(folder / "model", arguments.size), {"rollout": {"kv_cache_mib": 256}}
        )
        here, there = multiprocessing.get_context("spawn").Pipe()
        bare = multiprocessing.get_context("spawn").Process(
            target=_serve_reloads, args=(config, there), daemon=True
        )
        bare.start()
        if not here.poll(_WAIT_S):
            raise SystemExit("vLLM did not start")
        here.recv()
        distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/rendezvous", rank=0, world_size=1
        )
        start_ray(config)
        ours, theirs = asyncio.run(_sync(config, arguments.repeats, here))
        ray.shutdown()
        here.send(False)
        bare.join(30)
        distributed.destroy_process_group()
    medians = {name: statistics.median(row[name] for row in ours) for name in ours[0]}
    print(
        "weight sync     " + "  ".join(f"{name} {value:.3f} s" for name, value in medians.items())
    )
    print(
        f"reload_weights  {statistics.median(theirs):.3f} s  {[round(value, 3) for value in theirs]}"
    )
    print(f"RATIO weight_sync_vs_reload {medians['all'] / statistics.median(theirs):.2f}")


if __name__ == "__main__":
    main()
