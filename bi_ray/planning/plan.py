"""The plan of a run: its phases, its memory, and what would have to change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bi_ray.config import RunConfig
from bi_ray.planning.hardware import Hardware, measure
from bi_ray.planning.job import Job
from bi_ray.planning.memory import MemoryUse, memory_uses
from bi_ray.planning.shapes import Shape
from bi_ray.planning.times import (
    Phase,
    decode,
    prefill,
    publish,
    reference,
    short,
    take,
    train,
    update,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """Of one RL step.

    Attributes:
        job: what is planned.
        phases: in their order.
        memory: of a learner, an engine and a node.
        problems: what would stop or slow such a run, each with the option to change.
    """

    job: Job
    phases: tuple[Phase, ...]
    memory: tuple[MemoryUse, ...]
    problems: tuple[str, ...]

    @property
    def step_s(self) -> float:
        """Synchronously all phases one after the other; with staleness the longer of the two sides."""
        rl = self.job.config.rl
        fixed = self.job.hardware.step_s
        if not rl.max_staleness:
            return fixed + sum(phase.seconds for phase in self.phases)
        engines, learners = self.sides
        return fixed + max(engines, learners)

    @property
    def sides(self) -> tuple[float, float]:
        """Seconds of the engines and of the learners. Engines take new weights while learners go
        on.
        """
        seconds = {phase.name: phase.seconds for phase in self.phases}
        engines = sum(
            value
            for name, value in seconds.items()
            if name.startswith("rollout") or name == "sync: engines"
        )
        return engines, sum(seconds.values()) - engines

    @property
    def fits(self) -> bool:
        """Whether all memory suffices."""
        return all(use.fits for use in self.memory)

    @property
    def samples_per_s(self) -> float:
        """Responses."""
        rl = self.job.config.rl
        return rl.prompts_per_step * rl.samples_per_prompt / self.step_s

    @property
    def tokens_per_s(self) -> float:
        """Of responses."""
        return self.samples_per_s * self.job.response_tokens

    def as_dict(self) -> dict[str, Any]:
        """For machines: plain values, SI units."""
        job = self.job
        return {
            "name": job.config.name,
            "hardware": job.hardware.model_dump(),
            "parameters": job.shape.parameters,
            "devices": job.devices,
            "nodes": job.nodes,
            "prompt_tokens": job.prompt_tokens,
            "response_tokens": job.response_tokens,
            "phases": [asdict(phase) for phase in self.phases],
            "memory": [
                asdict(use) | {"needed": use.needed, "fits": use.fits} for use in self.memory
            ],
            "step_s": self.step_s,
            "samples_per_s": self.samples_per_s,
            "tokens_per_s": self.tokens_per_s,
            "fits": self.fits,
            "problems": list(self.problems),
        }


def make_plan(
    config: RunConfig,
    shape: Shape,
    hardware: Hardware,
    prompt_tokens: float | None = None,
    response_tokens: float | None = None,
    informative_share: float = 1.0,
    nodes: int | None = None,
) -> Plan:
    """Plan one RL step.

    Args:
        config: of the run.
        shape: of its model.
        hardware: of a node.
        prompt_tokens: mean length; None: the longest, ``model.max_prompt_tokens``.
        response_tokens: mean length; None: the longest.
        informative_share: of the groups that the learners see.
        nodes: how many there are; None: as many as the run needs.

    Raises:
        ConfigError: see ``Job.check``.
    """
    prompt: float = config.model.max_prompt_tokens
    response: float = config.model.max_response_tokens
    if prompt_tokens is not None:
        prompt = prompt_tokens
    if response_tokens is not None:
        response = response_tokens
    job = Job(config, shape, hardware, prompt, response, informative_share, nodes or 0)
    job.check()
    found = [
        prefill(job),
        decode(job),
        reference(job),
        train(job),
        update(job),
        publish(job),
        take(job),
    ]
    phases = {phase.name: phase for phase in found if phase is not None}
    memory = tuple(memory_uses(job))
    return Plan(job, tuple(phases.values()), memory, tuple(_problems(job, phases, memory)))


def _problems(job: Job, phases: dict[str, Phase], memory: tuple[MemoryUse, ...]) -> Iterator[str]:
    for use in memory:
        if not use.fits:
            yield f"{use.name}: {short(use.needed / 1e9)} of {short(use.available / 1e9)} GB. {'; '.join(use.advice)}"
    there = job.nodes * job.hardware.devices_per_node
    if there and job.devices > there:
        yield (
            f"the run wants {job.devices:g} devices, {job.nodes} nodes have {there}: lower learner.workers or "
            "rollout.workers"
        )
    if job.on_gpu and job.engine_devices > 1:
        yield "rollout.gpus_per_worker above 1 is planned as tensor parallelism, which engines are not built with yet"
    yield from _cache_problems(job)
    yield from _slow_phases(job, phases)


def _cache_problems(job: Job) -> Iterator[str]:
    longest, wanted = (
        job.config.model.max_model_tokens,
        min(job.engine_sequences, job.config.rollout.max_sequences),
    )
    if job.cache_tokens < longest:
        yield (
            f"rollout.kv_cache_mib holds {job.cache_tokens} tokens, less than one sequence of {longest}: the engine "
            "would not start; raise it"
        )
    elif job.concurrent_sequences < wanted:
        yield (
            f"rollout.kv_cache_mib has room for {job.concurrent_sequences} of {wanted} sequences: with more the "
            "weights are read less often"
        )


def _slow_phases(job: Job, phases: dict[str, Phase]) -> Iterator[str]:
    rollout, hardware = job.config.rollout, job.hardware
    if phases["learner: forward and backward"].limit == "network":
        yield (
            "learners wait for the network: raise learner.microbatch_tokens, since each micro-batch gathers anew, or "
            "set learner.gradient_sync: step where memory allows it"
        )
    sync_s = phases["sync: engines"].seconds
    if sync_s > rollout.sync_timeout_s:
        direct_s = (
            job.bytes_per_number
            * job.shape.parameters
            / (hardware.network_bytes_per_s * hardware.network_share)
        )
        yield (
            f"engines need {short(sync_s)} s for new weights, rollout.sync_timeout_s is {rollout.sync_timeout_s:g}: "
            "raise it, or put engines on fewer nodes. From GPU to GPU, which learners cannot send yet, it would take "
            f"{short(direct_s)} s"
        )
    rollout_s = phases["rollout: prefill"].seconds + phases["rollout: decode"].seconds
    if rollout_s > rollout.generate_timeout_s:
        yield f"rollouts take {short(rollout_s)} s, rollout.generate_timeout_s is {rollout.generate_timeout_s:g}"


def measure_for(config: RunConfig, shape: Shape, start: Hardware) -> Hardware:
    """``start`` with this machine's rates at the sizes of a run."""
    job = Job(
        config,
        shape,
        start,
        config.model.max_prompt_tokens,
        config.model.max_response_tokens,
        1.0,
        0,
    )
    rows = min(config.learner.microbatch_tokens, 4096)
    return measure(
        start, shape.hidden, shape.intermediate, shape.layers, job.concurrent_sequences, rows
    )
