"""Compare a whole weight sync with vLLM's own `reload_weights`.

The sync goes from a learner's shards to 2 engines: the learner gathers the weights and writes the
file; the pool's engines pause, load it and resume. vLLM reloads the same tensors from the memory of
its own process. The model is a random Llama of 135 M parameters in float32; everything has one
thread; the two sides take turns.

    python benchmarks/weight_sync_vs_reload.py
"""

from __future__ import annotations

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
from common import arguments_parser, print_ratio, rounded, start_process_group
from rl_runs import RUN_ID, medians, random_model, run_config, start_ray, work_folder
from torch import distributed

from actors.rollout.engine import engine_arguments, engine_environment
from actors.rollout.pool import make_ray_pool
from actors.weights.shared_memory import announce
from bi_ray.config.run import RunConfig
from bi_ray.learning.learner import Learner
from bi_ray.policy.checkpoint import load_model
from bi_ray.policy.published import publish_weights, published_file, weights_directory
from bi_ray.policy.version import PolicyVersion

_WAIT_S = 300


def _reload(worker: Any, state: dict[str, torch.Tensor]) -> float:
    """Seconds that vLLM's worker takes; runs in its process."""
    began = time.perf_counter()
    worker.reload_weights(weights_iterator=iter(state.items()), is_checkpoint_format=True)
    return time.perf_counter() - began


def _serve_reloads(config: RunConfig, pipe: Connection) -> None:
    """Run bare vLLM in this process: reloads its weights on demand, and sends the seconds."""
    os.environ |= engine_environment(config.rollout) | {"VLLM_ENABLE_V1_MULTIPROCESSING": "0"}
    from vllm import LLM, EngineArgs

    arguments = engine_arguments(config.model.path, config.model, config.rollout, {})
    llm = LLM(**_changed_values(arguments, EngineArgs()))
    state = load_model(config.model.path).state_dict()
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    pipe.send("ready")
    while pipe.recv():
        pipe.send(llm.collective_rpc(_reload, args=(state,))[0])


def _changed_values(ours: Any, default: Any) -> dict[str, Any]:
    """The arguments of a pool's engine that differ from vLLM's defaults."""
    changed = {}
    for name, value in vars(default).items():
        if getattr(ours, name) != value:
            changed[name] = getattr(ours, name)
    return changed


async def _sync(
    config: RunConfig, repeats: int, pipe: Connection
) -> tuple[list[dict[str, float]], list[float]]:
    """Seconds of each part of our syncs, and of vLLM's reloads."""
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
    parser = arguments_parser(__doc__)
    parser.add_argument("--size", default="135m", help="of the model, a key of rl_runs.SHAPES")
    parser.add_argument("--repeats", type=int, default=5, help="measured rounds")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with work_folder() as folder:
        model = random_model(folder / "model", arguments.size)
        config = run_config(model, {"rollout": {"kv_cache_mib": 256}})
        spawn = multiprocessing.get_context("spawn")
        ours_end, vllm_end = spawn.Pipe()
        vllm = spawn.Process(target=_serve_reloads, args=(config, vllm_end), daemon=True)
        vllm.start()
        if not ours_end.poll(_WAIT_S):
            raise SystemExit(f"vLLM did not start within {_WAIT_S} s")
        ours_end.recv()
        start_process_group(folder)
        start_ray(config)
        syncs, reloads = asyncio.run(_sync(config, arguments.repeats, ours_end))
        ray.shutdown()
        ours_end.send(False)
        vllm.join(30)
        distributed.destroy_process_group()
    sync = medians(syncs, *syncs[0])
    reload_s = statistics.median(reloads)
    print("weight sync     " + "  ".join(f"{name} {value:.3f} s" for name, value in sync.items()))
    print(f"reload_weights  {reload_s:.3f} s  {rounded(reloads, 3)}")
    print_ratio("weight_sync_vs_reload", sync["all"] / reload_s)


if __name__ == "__main__":
    main()
