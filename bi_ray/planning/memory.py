"""Memory that a learner, an engine and a node need and have, and which option would make it fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import yaml

from bi_ray.planning.job import CHUNK_LOGITS, Job

USABLE = 0.9  # share of a device's memory; the rest is its context, and lost to fragmentation
# logits, their float32 copy, log-softmax, and its gradient or the entropy's product
_BYTES_PER_LOGIT = 16
_ENGINE_WORKSPACE_BYTES = 2 * 2**30  # per GPU of an engine

Change = tuple[str, dict[str, Any]]  # a section of the configuration, and options to change in it


@dataclass(frozen=True, slots=True)
class MemoryUse:
    """Memory that one part of a run needs.

    Attributes:
        name: learner, engine, or node.
        parts: bytes needed, by purpose.
        available: bytes that there are.
        advice: options that would make it fit; empty if it fits.
    """

    name: str
    parts: dict[str, float]
    available: float
    advice: tuple[str, ...] = ()

    @property
    def needed(self) -> float:
        """Bytes of all parts."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the usable memory suffices."""
        return self.needed <= USABLE * self.available


def memory_uses(job: Job) -> list[MemoryUse]:
    """Memory of a learner, of an engine and of the node with the most of them."""
    learner = _with_advice(job, _learner, _learner_changes(job))
    engine = _with_advice(job, _engine, _engine_changes(job))
    return [learner, engine, _node(job)]


def learner_parts(job: Job) -> dict[str, float]:
    """Bytes on the device of a learner, by purpose.

    Master weights, gradients and AdamW's moments are float32 in every ``model.dtype``.
    """
    options, shape, width = job.config.learner, job.shape, job.bytes_per_number
    on_device = 0 if options.cpu_offload and job.on_gpu else 1 / options.workers
    moments = 8 if job.config.rl.optimizer.kind == "adamw" else 0
    tokens = _microbatch_tokens(job)
    parts = {
        "weights": 4 * job.held_parameters * on_device,
        "gradients": 4 * job.learned_parameters * on_device,
        "optimizer": moments * job.learned_parameters * on_device,
    }
    if job.config.rl.kl.measured:
        parts["reference"] = 4 * shape.parameters * on_device
        if job.sharded:  # its root stays whole
            parts["reference"] += width * shape.root_parameters
    if job.sharded:
        parts["gathered"] = _gathered_bytes(job)
        if options.gradient_sync == "step":
            parts["whole gradient"] = 4.0 * job.learned_parameters
    layer = shape.activation_bytes_per_token(width) * tokens
    stored = shape.hidden * width * tokens * shape.layers + layer
    parts["activations"] = stored if options.activation_checkpointing else layer * shape.layers
    parts["logits"] = _BYTES_PER_LOGIT * shape.vocabulary * _logit_rows(job, tokens)
    return parts


def _microbatch_tokens(job: Job) -> float:
    """Tokens of the largest micro-batch: the limit, or one sequence of the greatest length."""
    limit, longest = job.config.learner.microbatch_tokens, job.config.model.max_model_tokens
    return max(min(limit, job.learner_tokens), longest)


def _logit_rows(job: Job, tokens: float) -> float:
    learned = tokens * job.response_tokens / (job.prompt_tokens + job.response_tokens)
    return min(learned, max(1, CHUNK_LOGITS // job.shape.vocabulary))


def _gathered_bytes(job: Job) -> float:
    """Whole weights that FSDP gathers for a layer and the next one, and their gradients.

    The root (embedding and output matrix) stays whole from the forward to the end of the backward
    pass. A gradient is summed over ranks in float32.
    """
    options, shape, width = job.config.learner, job.shape, job.bytes_per_number
    layers = 2 if options.reshard_after_forward else shape.layers
    weights = width * (layers * shape.layer_parameters + shape.root_parameters)
    if options.lora:
        return weights
    return weights + (width + 4) * max(shape.root_parameters, shape.layer_parameters)


def _learner(job: Job) -> MemoryUse:
    return MemoryUse(
        "learner", learner_parts(job), job.hardware.memory_bytes * max(1, job.learner_devices)
    )


def _engine(job: Job) -> MemoryUse:
    """Memory on all devices of an engine together."""
    parts = {
        "weights": float(job.bytes_per_number * job.shape.parameters),
        "KV cache": float(job.config.rollout.kv_cache_mib * 2**20),
    }
    if job.on_gpu:
        parts["workspace"] = _ENGINE_WORKSPACE_BYTES * max(1.0, job.engine_devices)
    return MemoryUse("engine", parts, job.hardware.memory_bytes * job.engine_devices)


def _node(job: Job) -> MemoryUse:
    """Memory of a node: on a CPU that of the whole run, else that of rank 0's node.

    Rank 0 reads the whole model in float32 before it keeps its shard. Later it gathers all weights
    for a publication, into a file in shared memory that stays until every engine has taken the next
    one.
    """
    publication = 3 * 4.0 * job.shape.parameters  # gathered, written, and the file before it
    if not job.on_gpu:
        return _machine(job, publication)
    learner, hardware = job.config.learner, job.hardware
    parts = {"publication": publication}
    advice = "take a smaller model"
    if learner.cpu_offload:
        learners_here = min(learner.workers, hardware.devices_per_node // job.learner_devices)
        held = 4 * job.held_parameters + 12 * job.learned_parameters
        parts["offloaded"] = held * learners_here / learner.workers
        advice = "turn learner.cpu_offload off, or use more learners"
    use = MemoryUse("node", parts, hardware.host_memory_bytes)
    return use if use.fits else replace(use, advice=(advice,))


def _machine(job: Job, publication: float) -> MemoryUse:
    """Memory of the one machine that runs everything on its CPU."""
    parts = {}
    for name, size in learner_parts(job).items():
        parts[f"learner: {name}"] = size * job.config.learner.workers
    parts["engines"] = _engine(job).needed * job.config.rollout.workers
    parts["publication"] = publication
    return MemoryUse("machine", parts, job.hardware.host_memory_bytes)


def _with_advice(
    job: Job, measure: Callable[[Job], MemoryUse], changes: Iterator[Change]
) -> MemoryUse:
    """The memory of one part, with the options that would make it fit.

    Args:
        job: what is planned.
        measure: gives the memory of the part.
        changes: options that may spare memory.
    """
    use = measure(job)
    if use.fits:
        return use
    advice = []
    names = []
    together = job
    for section, update in changes:
        name = _named(section, update)
        after = measure(_changed(job, section, update))
        if after.fits:
            advice.append(f"{name}: then {after.needed / 1e9:.0f} GB")
        names.append(name)
        together = _changed(together, section, update)
    if not advice:
        advice.append(_advice_together(names, measure(together)))
    return replace(use, advice=tuple(advice))


def _advice_together(names: Sequence[str], after: MemoryUse) -> str:
    """What all changes achieve together, where none suffices by itself."""
    verdict = "still do not fit: take a smaller model or larger devices"
    if not names:
        return "no option makes it fit: take a smaller model or larger devices"
    if after.fits:
        verdict = "fit"
    return f"all of {', '.join(names)} together {verdict} ({after.needed / 1e9:.0f} GB)"


def _learner_changes(job: Job) -> Iterator[Change]:
    learner = job.config.learner
    if not learner.activation_checkpointing:
        yield "learner", {"activation_checkpointing": True}
    if learner.gradient_sync == "step":
        yield "learner", {"gradient_sync": "microbatch"}
    if not learner.reshard_after_forward:
        yield "learner", {"reshard_after_forward": True}
    if learner.microbatch_tokens > job.config.model.max_model_tokens:
        yield "learner", {"microbatch_tokens": job.config.model.max_model_tokens}
    yield "learner", {"workers": 2 * learner.workers}
    if job.on_gpu and not learner.cpu_offload:
        yield "learner", {"cpu_offload": True}
    if not learner.lora:
        yield "learner", {"lora": {"rank": 64}}


def _engine_changes(job: Job) -> Iterator[Change]:
    room = USABLE * job.hardware.memory_bytes * job.engine_devices - _engine(job).needed
    cache_mib = job.config.rollout.kv_cache_mib + math.floor(room / 2**20)
    if cache_mib > 0:
        yield "rollout", {"kv_cache_mib": cache_mib}
    if job.bytes_per_number == 4:
        yield "model", {"dtype": "bfloat16"}
    if job.on_gpu:
        yield "rollout", {"gpus_per_worker": 2 * max(1.0, job.engine_devices)}


def _named(section: str, update: dict[str, Any]) -> str:
    """The options of a change as they are written in a configuration."""
    return ", ".join(f"{section}.{name}: {_yaml(value)}" for name, value in update.items())


def _yaml(value: object) -> str:
    return yaml.safe_dump(value, default_flow_style=True).split("\n")[0]


def _changed(job: Job, section: str, update: dict[str, Any]) -> Job:
    """The job after a change of its configuration."""
    options = getattr(job.config, section)
    changed = type(options).model_validate(options.model_dump() | update)
    return replace(job, config=job.config.model_copy(update={section: changed}))
