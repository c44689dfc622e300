"""The plan of a run: its phases, its memory, and what would have to change."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from bi_ray.config.run import RunConfig
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
    """The plan of one RL step.

    Attributes:
        job: what is planned.
        phases: the phases of the step in order.
        memory: of a learner, an engine and a node.
        problems: what would stop or slow down the run, each with the option to change.
    """

    job: Job
    phases: tuple[Phase, ...]
    memory: tuple[MemoryUse, ...]
    problems: tuple[str, ...]

    @property
    def step_s(self) -> float:
        """Seconds of a step: of all phases, or with staleness of the slower of the two sides."""
        rl = self.job.config.rl
        fixed = self.job.hardware.step_s
        if not rl.max_staleness:
            return fixed + sum(phase.seconds for phase in self.phases)
        engines, learners = self.sides
        return fixed + max(engines, learners)

    @property
    def sides(self) -> tuple[float, float]:
        """Seconds of the engines and of the learners.

        Engines take new weights while learners continue.
        """
        engines = 0.0
        for phase in self.phases:
            if phase.name.startswith("rollout") or phase.name == "sync: engines":
                engines += phase.seconds
        return engines, sum(phase.seconds for phase in self.phases) - engines

    @property
    def fits(self) -> bool:
        """Whether the memory suffices everywhere."""
        return all(use.fits for use in self.memory)

    @property
    def samples_per_s(self) -> float:
        """Responses per second."""
        rl = self.job.config.rl
        return rl.prompts_per_step * rl.samples_per_prompt / self.step_s

    @property
    def tokens_per_s(self) -> float:
        """Response tokens per second."""
        return self.samples_per_s * self.job.response_tokens

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values, in SI units."""
        job = self.job
        memory = []
        for use in self.memory:
            memory.append(asdict(use) | {"needed": use.needed, "fits": use.fits})
        return {
            "name": job.config.name,
            "hardware": job.hardware.model_dump(),
            "parameters": job.shape.parameters,
            "devices": job.devices,
            "nodes": job.nodes,
            "prompt_tokens": job.prompt_tokens,
            "response_tokens": job.response_tokens,
            "phases": [asdict(phase) for phase in self.phases],
            "memory": memory,
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
        config: the run's configuration.
        shape: the model's sizes.
        hardware: a node.
        prompt_tokens: mean length; None: the longest, ``model.max_prompt_tokens``.
        response_tokens: mean length; None: the longest, ``model.max_response_tokens``.
        informative_share: share of the groups that the learners see.
        nodes: number of nodes; None: as many as the run needs.

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
    phases = [prefill(job), decode(job)]
    if job.config.rl.kl.measured:
        phases.append(reference(job))
    phases += [train(job), update(job), publish(job), take(job)]
    by_name = {phase.name: phase for phase in phases}
    memory = tuple(memory_uses(job))
    return Plan(job, tuple(phases), memory, tuple(_problems(job, by_name, memory)))


def _problems(job: Job, phases: dict[str, Phase], memory: tuple[MemoryUse, ...]) -> Iterator[str]:
    for use in memory:
        if not use.fits:
            needed, available = short(use.needed / 1e9), short(use.available / 1e9)
            yield f"{use.name}: needs {needed} GB of {available} GB. {'; '.join(use.advice)}"
    available_devices = job.nodes * job.hardware.devices_per_node
    if available_devices and job.devices > available_devices:
        yield (
            f"the run asks for {job.devices:g} devices, but {job.nodes} nodes have "
            f"{available_devices}: lower learner.workers or rollout.workers"
        )
    if job.on_gpu and job.engine_devices > 1:
        yield (
            "rollout.gpus_per_worker above 1 is planned as tensor parallelism, which engines do "
            "not support yet"
        )
    yield from _cache_problems(job)
    yield from _slow_phases(job, phases)


def _cache_problems(job: Job) -> Iterator[str]:
    longest = job.config.model.max_model_tokens
    wanted = min(job.engine_sequences, job.config.rollout.max_sequences)
    if job.cache_tokens < longest:
        yield (
            f"rollout.kv_cache_mib holds {job.cache_tokens} tokens, less than one sequence of "
            f"{longest}: the engine would not start; raise it"
        )
    elif job.concurrent_sequences < wanted:
        yield (
            f"rollout.kv_cache_mib has room for {job.concurrent_sequences} of {wanted} sequences: "
            "raise it, so that an engine reads its weights less often"
        )


def _slow_phases(job: Job, phases: dict[str, Phase]) -> Iterator[str]:
    rollout, hardware = job.config.rollout, job.hardware
    if phases["learner: forward and backward"].limit == "network":
        yield (
            "learners wait for the network: raise learner.microbatch_tokens, since every "
            "micro-batch gathers the weights anew, or set learner.gradient_sync: step if memory "
            "allows"
        )
    sync_s = phases["sync: engines"].seconds
    if sync_s > rollout.sync_timeout_s:
        weights = job.bytes_per_number * job.shape.parameters
        direct_s = weights / (hardware.network_bytes_per_s * hardware.network_share)
        yield (
            f"engines need {short(sync_s)} s for new weights, but rollout.sync_timeout_s is "
            f"{rollout.sync_timeout_s:g}: raise it, or put engines on fewer nodes. From GPU to "
            f"GPU, which learners cannot send yet, it would take {short(direct_s)} s"
        )
    rollout_s = phases["rollout: prefill"].seconds + phases["rollout: decode"].seconds
    if rollout_s > rollout.generate_timeout_s:
        yield (
            f"rollouts take {short(rollout_s)} s, but rollout.generate_timeout_s is "
            f"{rollout.generate_timeout_s:g}: raise it"
        )


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
