"""The plan of a run: its phases, its memory, and what would have to change."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from bi_ray.config import RunConfig
from bi_ray.planning.hardware import Hardware
from bi_ray.planning.job import Job
from bi_ray.planning.memory import MemoryUse, memory_uses
from bi_ray.planning.shapes import Shape
from bi_ray.planning.times import Phase, decode, prefill, publish, reference, short, take, train, update


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
        """Seconds of the engines and of the learners. Engines take new weights while learners go on."""
        seconds = {phase.name: phase.seconds for phase in self.phases}
        engines = sum(value for name, value in seconds.items() if name.startswith("rollout") or name == "sync: engines")
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
            "memory": [asdict(use) | {"needed": use.needed, "fits": use.fits} for use in self.memory],
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
    prompt, response = (
        prompt_tokens or config.model.max_prompt_tokens,
        response_tokens or config.model.max_response_tokens,
    )
    job = Job(config, shape, hardware, prompt, response, informative_share, nodes or 0)
    job.check()
    phases = [prefill(job), decode(job), reference(job), train(job), update(job), publish(job), take(job)]
    there = tuple(phase for phase in phases if phase is not None)
    memory = tuple(memory_uses(job))
    return Plan(job, there, memory, tuple(_problems(job, there, memory)))


def _problems(job: Job, phases: tuple[Phase, ...], memory: tuple[MemoryUse, ...]) -> list[str]:
    found = [f"{use.name}: {use.needed / 1e9:.0f} GB of {use.available / 1e9:.0f} GB. {'; '.join(use.advice)}"
             for use in memory if not use.fits]  # fmt: skip
    config, per_node = job.config, job.hardware.devices_per_node
    if job.nodes and job.devices > job.nodes * per_node:
        found.append(
            f"the run wants {job.devices:g} devices, {job.nodes} nodes have {job.nodes * per_node}: lower "
            "learner.workers or rollout.workers"
        )
    if job.on_gpu and job.engine_devices > 1:
        found.append(
            "rollout.gpus_per_worker above 1 is planned as tensor parallelism, which engines are not built with yet"
        )
    if job.cache_tokens < config.model.max_model_tokens:
        found.append(
            f"rollout.kv_cache_mib holds {job.cache_tokens} tokens, less than one sequence of "
            f"{config.model.max_model_tokens}: the engine would not start; raise it"
        )
    elif job.concurrent_sequences < min(job.engine_sequences, config.rollout.max_sequences):
        found.append(
            f"rollout.kv_cache_mib has room for {job.concurrent_sequences} sequences, and an engine gets "
            f"{job.engine_sequences}: with more the weights are read less often"
        )
    seconds = {phase.name: phase for phase in phases}
    direct_s = (
        job.bytes_per_number * job.shape.parameters / (job.hardware.link_bytes_per_s * job.hardware.network_share)
    )
    if (took := seconds["sync: engines"].seconds) > config.rollout.sync_timeout_s:
        found.append(
            f"engines need {took:.0f} s for new weights, rollout.sync_timeout_s is {config.rollout.sync_timeout_s:g}: "
            f"raise it, or put engines on fewer nodes. From GPU to GPU, which learners cannot send yet, it would take "
            f"{short(direct_s)} s"
        )
    if seconds["learner: forward and backward"].limit == "network":
        found.append("learners wait for the network: raise learner.microbatch_tokens, each micro-batch gathers anew")
    if (total := sum(seconds[name].seconds for name in seconds if name.startswith("rollout"))) > (
        config.rollout.generate_timeout_s
    ):
        found.append(
            f"rollouts take {total:.0f} s, rollout.generate_timeout_s is {config.rollout.generate_timeout_s:g}"
        )
    return found
