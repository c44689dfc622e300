"""How every vLLM engine of this project is built, and how it takes new weights.

Rollouts and serving share it. vLLM is imported inside the functions: the driver needs only names.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bi_ray.config.rollout import RolloutConfig
from bi_ray.config.run import ModelConfig
from bi_ray.policy.checkpoint import check_directory

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

# On a CPU vLLM puts its worker into a third process, to bind threads to cores. We bind none, so the
# worker runs inside the engine's process: a start takes a process and an import of vLLM less, and a
# kill leaves no message queue in /dev/shm.
_IN_PROCESS = "vllm.v1.executor.uniproc_executor.UniProcExecutor"
_SCHEDULER = "actors.rollout.engine_scheduler.WholeResponses"
# The samples of a group share only whole blocks of their prompt; many prompts are shorter than the
# 128 tokens that vLLM takes on a CPU.
_CPU_BLOCK_TOKENS = 32
WARM_UP_TOKENS = 4


def engine_arguments(
    path: str | Path, model: ModelConfig, rollout: RolloutConfig, more: dict[str, Any]
) -> Any:
    """The ``AsyncEngineArgs`` of an engine for the checkpoint at ``path``.

    Args:
        path: a checkpoint directory.
        model: limits and type of the weights; ``model.path`` is not read.
        rollout: how engines are built.
        more: arguments of the way that weights are updated.

    Raises:
        CheckpointError: the directory is not complete.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    on_cpu = rollout.gpus_per_worker == 0
    return AsyncEngineArgs(
        model=str(check_directory(path).absolute()),
        dtype=model.dtype,
        max_model_len=model.max_model_tokens,
        max_num_seqs=rollout.max_sequences,
        kv_cache_memory_bytes=rollout.kv_cache_mib * 2**20,
        enforce_eager=rollout.enforce_eager,
        enable_prefix_caching=True,
        logprobs_mode="processed_logprobs",
        disable_log_stats=True,
        distributed_executor_backend=_IN_PROCESS if on_cpu else None,
        block_size=_CPU_BLOCK_TOKENS if on_cpu else None,
        # On a GPU a scheduler of our own would end vLLM's asynchronous scheduling.
        scheduler_cls=_SCHEDULER if on_cpu else None,
        # When vLLM cuts a prompt in two, it takes back the random draw of the first part through
        # the generator's offset. Generators on a CPU have no offset, and the engine would die of
        # it. So there a prompt waits for a step that has room for all of it.
        enable_chunked_prefill=False if on_cpu else None,
        **more,
    )


def engine_environment(rollout: RolloutConfig) -> dict[str, str]:
    """Variables that vLLM reads at its import, in the actor and in the engine that it spawns."""
    return {
        "OMP_NUM_THREADS": str(rollout.threads_per_worker),
        # engines share cores; bound ones would fight over the first
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_LOGGING_LEVEL": os.environ.get("VLLM_LOGGING_LEVEL", "WARNING"),
        "VLLM_NO_USAGE_STATS": "1",
        # models are directories; without this, vLLM asks the hub and waits for it
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # A reload builds every layer anew. Memory that malloc returns to the kernel between two
        # layers comes back page by page, which takes a quarter of the reload.
        "MALLOC_MMAP_THRESHOLD_": str(4 * 2**30),
        "MALLOC_TRIM_THRESHOLD_": str(8 * 2**30),
    }


async def replace_weights(
    engine: AsyncLLM,
    version: str,
    load: Callable[[], Awaitable[None]],
    in_flight: bool = False,
    keep_cache: bool = False,
) -> None:
    """Load other weights, and continue with them under the stamp ``version``.

    Requests that come in meanwhile wait and see the new weights only. After an error of ``load``
    the engine stays paused: its weights are unknown, and the caller ends it.

    Args:
        engine: it generates, or is idle.
        version: of the new weights.
        load: loads them.
        in_flight: running requests are frozen and continue under the new weights; else they finish
            first.
        keep_cache: keep keys and values as the old weights made them. Else all are dropped, and
            those of running requests are computed again, so that their next tokens are drawn from
            the new policy and no other.
    """
    await engine.pause_generation(mode="keep" if in_flight else "wait", clear_cache=not keep_cache)
    await load()
    await engine.update_weight_version(version)
    await engine.resume_generation()
