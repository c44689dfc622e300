"""What is planned: a run's configuration, the model's shape, the machines, and what a step has to
do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from bi_ray.config import ConfigError, RunConfig
from bi_ray.planning.hardware import Hardware
from bi_ray.planning.shapes import Shape

CHUNK_LOGITS = 2**26  # as in bi_ray.policy.logprobs, which imports torch
_CACHE_BLOCK_TOKENS = {
    "cpu": 32,
    "gpu": 16,
}  # of an engine's prefix cache: actors/rollout/engine.py, and vLLM's default


@dataclass(frozen=True, slots=True)
class Job:
    """One RL step of a run on machines of a kind.

    Attributes:
        config: of the run.
        shape: of its model.
        hardware: a node.
        prompt_tokens: mean length of a prompt.
        response_tokens: mean length of a response.
        informative_share: of the groups that teach something; the others leave the step.
        nodes: how many there are.
    """

    config: RunConfig
    shape: Shape
    hardware: Hardware
    prompt_tokens: float
    response_tokens: float
    informative_share: float
    nodes: int

    @property
    def on_gpu(self) -> bool:
        """Whether devices are GPUs."""
        return self.hardware.kind == "gpu"

    @property
    def bytes_per_number(self) -> int:
        """Of a weight in an engine, and of what the learners compute in."""
        return 2 if self.config.model.dtype == "bfloat16" else 4

    @property
    def flops_per_s(self) -> float:
        """Peak of a device in the run's type."""
        hardware = self.hardware
        return hardware.flops_bfloat16 if self.bytes_per_number == 2 else hardware.flops_float32

    @property
    def engine_devices(self) -> float:
        """GPUs or cores of one engine."""
        rollout = self.config.rollout
        return rollout.gpus_per_worker if self.on_gpu else rollout.threads_per_worker

    @property
    def learner_devices(self) -> float:
        """GPUs or cores of one learner."""
        learner = self.config.learner
        return learner.gpus_per_worker if self.on_gpu else learner.threads_per_worker

    @property
    def devices(self) -> float:
        """All that the run asks for. On a CPU engines and learners share the cores: they work in
        turn.
        """
        learners = self.config.learner.workers * self.learner_devices
        engines = self.config.rollout.workers * self.engine_devices
        return learners + engines if self.on_gpu else max(learners, engines)

    @property
    def learner_nodes(self) -> int:
        """Nodes that learners stand on, packed close."""
        return math.ceil(
            self.config.learner.workers * self.learner_devices / self.hardware.devices_per_node
        )

    # Rollouts

    @property
    def engine_groups(self) -> int:
        """Groups of the engine that gets the most."""
        return math.ceil(self.config.rl.prompts_per_step / self.config.rollout.workers)

    @property
    def engine_sequences(self) -> int:
        """Responses of that engine."""
        return self.engine_groups * self.config.rl.samples_per_prompt

    @property
    def concurrent_sequences(self) -> int:
        """That an engine decodes at a time: what it has, what is allowed, what its cache holds."""
        held = self.response_tokens + self.prompt_tokens / self.config.rl.samples_per_prompt
        room = int(self.cache_tokens / held)
        return max(1, min(self.engine_sequences, self.config.rollout.max_sequences, room))

    @property
    def cache_tokens(self) -> int:
        """Tokens whose keys and values an engine's cache holds."""
        per_token = self.shape.cache_bytes_per_token(self.bytes_per_number)
        return self.config.rollout.kv_cache_mib * 2**20 // per_token

    @property
    def decode_steps(self) -> float:
        """Of an engine: full batches as long as sequences wait, then until the longest of the last
        is done.
        """
        waiting = self.engine_sequences - self.concurrent_sequences
        longest = self.config.model.max_response_tokens
        return waiting * self.response_tokens / self.concurrent_sequences + longest

    @property
    def prefill_tokens(self) -> float:
        """Of an engine: a prompt once, and for each further sample the half block that the cache
        does not share.
        """
        block = _CACHE_BLOCK_TOKENS[self.hardware.kind] / 2
        again = (self.config.rl.samples_per_prompt - 1) * min(block, self.prompt_tokens)
        return self.engine_groups * (self.prompt_tokens + again)

    # Learners

    @property
    def packing(self) -> str:
        """As bi_ray.learning.learner.choose_packing chooses."""
        wanted, attention = self.config.learner.packing, self.config.model.attention
        if wanted != "auto":
            return wanted
        if attention == "sdpa" and not self.on_gpu:
            return "shared"
        return "flat" if attention == "flash_attention_2" else "padded"

    @property
    def sequences(self) -> float:
        """Responses that one learner trains on."""
        rl = self.config.rl
        return (
            rl.prompts_per_step
            * rl.samples_per_prompt
            * self.informative_share
            / self.config.learner.workers
        )

    @property
    def microbatches(self) -> int:
        """Of one learner. Whole responses only go into one; a longer response gets one of its own."""
        limit = self.config.learner.microbatch_tokens
        if self.packing == "shared":
            prompts = self.sequences / self.config.rl.samples_per_prompt * self.prompt_tokens
            return max(1, math.ceil((self.sequences * self.response_tokens + prompts) / limit))
        fitting = max(1, int(limit / (self.prompt_tokens + self.response_tokens)))
        return max(1, math.ceil(self.sequences / fitting))

    @property
    def learner_tokens(self) -> float:
        """Through one learner's layers: with shared prompts one per group, and again where a group
        is cut.

        The last token of a response predicts nothing, and only a row of a padded matrix has it.
        """
        prompts, responses = self.sequences, self.sequences * self.response_tokens
        if self.packing != "padded":
            responses -= self.sequences
        if self.packing == "shared":
            samples = self.config.rl.samples_per_prompt
            cuts = (self.microbatches - 1) * (1 - 1 / samples)
            prompts = min(self.sequences / samples + cuts, self.sequences)
        return responses + prompts * self.prompt_tokens

    @property
    def learner_pairs(self) -> float:
        """Queries with the keys that they see, of one learner."""
        prompt, response = self.prompt_tokens, self.response_tokens
        prompts = self.sequences / (
            self.config.rl.samples_per_prompt if self.packing == "shared" else 1
        )
        return prompts * prompt**2 / 2 + self.sequences * response * (prompt + response / 2)

    @property
    def learned_parameters(self) -> int:
        """That get a gradient."""
        lora = self.config.learner.lora
        return self.shape.adapter_parameters(lora) if lora else self.shape.parameters

    @property
    def held_parameters(self) -> int:
        """Of the policy that learns."""
        return self.shape.parameters + (self.learned_parameters if self.config.learner.lora else 0)

    @property
    def sharded(self) -> bool:
        """Whether FSDP holds the weights: not on one rank that computes in float32
        (bi_ray.learning.sharding).
        """
        learner = self.config.learner
        return learner.workers > 1 or self.bytes_per_number == 2 or learner.cpu_offload

    def check(self) -> None:
        """See that the numbers can be a step's.

        Raises:
            ConfigError: they cannot; the message says which option to change.
        """
        model = self.config.model
        for name, mean, longest in (
            ("prompt-tokens", self.prompt_tokens, model.max_prompt_tokens),
            ("response-tokens", self.response_tokens, model.max_response_tokens),
        ):
            if not 0 < mean <= longest:
                raise ConfigError(
                    f"--{name} {mean:g}: a mean lies between 0 and the longest, which is {longest}"
                )
        if not 0 < self.informative_share <= 1:
            raise ConfigError(
                f"--informative-share {self.informative_share:g}: a share lies between 0 and 1"
            )
        for name, devices in (("rollout", self.engine_devices), ("learner", self.learner_devices)):
            if not devices:
                raise ConfigError(
                    f"{name}.gpus_per_worker is 0, so this run is for CPUs: set it, or plan with --hardware cpu"
                )
