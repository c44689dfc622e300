"""Options of the rollout engines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from bi_ray.config.base import Config, Positive, Seconds


class RolloutConfig(Config):
    """The pool of vLLM engines."""

    workers: Positive = 2
    """Number of engines."""

    cpus_per_worker: Annotated[float, Field(gt=0)] = 0.5
    """CPU cores that each engine reserves."""

    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    """GPUs that each engine reserves. 0: it generates on CPU."""

    threads_per_worker: Positive = 1
    """Threads that each engine computes with."""

    weight_sync: Literal["shared_memory"] = "shared_memory"
    """How the learners' weights get into the engines."""

    kv_cache_mib: Positive = 512
    """KV cache of each engine."""

    max_sequences: Positive = 256
    """Maximum number of sequences that one engine decodes at a time."""

    enforce_eager: bool = True
    """Do not compile the model; compilation takes minutes on a CPU."""

    group_attempts: Positive = 3
    """A group is given up after this many failed calls whose engines stayed alive."""

    redispatch_factor: Annotated[float, Field(ge=1)] | None = 3.0
    """A group is generated again on another engine with room once it has taken this many times
    the median of the groups that finished beside it, and at least `redispatch_least_s`; the first
    answer counts. null: never."""

    redispatch_least_s: Seconds = 10
    """Minimum time before a group is generated again elsewhere."""

    keep_cache_in_flight: bool = False
    """After a swap in flight, keep the keys and values that the old weights computed."""

    start_timeout_s: Seconds = 300
    """Deadline for the engines to start."""

    no_engine_timeout_s: Seconds = 540
    """How long a run waits for an engine when none is left; shorter than rl.batch_timeout_s, so
    that the error names the reason."""

    sync_timeout_s: Seconds = 120
    """Deadline for the engines to take new weights; a late engine is replaced."""

    generate_timeout_s: Seconds = 600
    """Deadline for an engine to generate one group."""

    heartbeat_s: Seconds = 5
    """Interval between the pings of each engine."""

    suspect_after_s: Seconds = 30
    """An engine that is silent for this long gets no new work."""

    dead_after_s: Seconds = 120
    """An engine that is silent for this long is replaced; longer than `suspect_after_s`."""
