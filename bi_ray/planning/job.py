"""What is planned: a run's configuration, the model's shape, the machines, and a step's work."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bi_ray.config.base import ConfigError
from bi_ray.config.run import RunConfig
from bi_ray.planning.hardware import Hardware
from bi_ray.planning.shapes import Shape

CHUNK_LOGITS = 2**26  # as in bi_ray.policy.logprobs, which imports torch
# block size of an engine's prefix cache: actors/rollout/engine.py, and vLLM's default
_CACHE_BLOCK_TOKENS = {"cpu": 32, "gpu": 16}


@dataclass(frozen=True, slots=True)
class Job:
    """One RL step of a run on machines of a kind.

    Attributes:
        config: the run's configuration.
        shape: the model's sizes.
        hardware: a node.
        prompt_tokens: mean length of a prompt.
        response_tokens: mean length of a response.
        informative_share: share of the groups that teach something; the others leave the step.
        nodes: number of nodes; 0: as many as the run needs.
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
        """Bytes of a weight in an engine, and of the numbers in which learners compute."""
        return 2 if self.config.model.dtype == "bfloat16" else 4

    @property
    def flops_per_s(self) -> float:
        """Peak of a device in the run's ``model.dtype``."""
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
        """Devices that the run asks for.

        On a CPU, engines and learners share the cores, since they work by turns.
        """
        learners = self.config.learner.workers * self.learner_devices
        engines = self.config.rollout.workers * self.engine_devices
        return learners + engines if self.on_gpu else max(learners, engines)

    @property
    def learner_nodes(self) -> int:
        """Number of nodes that learners occupy, packed densely."""
        devices = self.config.learner.workers * self.learner_devices
        return math.ceil(devices / self.hardware.devices_per_node)

    # Rollouts

    @property
    def engine_groups(self) -> int:
        """Number of groups of the engine that gets the most."""
        return math.ceil(self.config.rl.prompts_per_step / self.config.rollout.workers)

    @property
    def engine_sequences(self) -> int:
        """Number of responses of that engine."""
        return self.engine_groups * self.config.rl.samples_per_prompt

    @property
    def concurrent_sequences(self) -> int:
        """Sequences that an engine decodes at a time.

        The least of what it has, what is allowed, and what its cache holds.
        """
        held = self.response_tokens + self.prompt_tokens / self.config.rl.samples_per_prompt
        room = int(self.cache_tokens / held)
        return max(1, min(self.engine_sequences, self.config.rollout.max_sequences, room))

    @property
    def cache_tokens(self) -> int:
        """Number of tokens whose keys and values an engine's cache holds."""
        per_token = self.shape.cache_bytes_per_token(self.bytes_per_number)
        return self.config.rollout.kv_cache_mib * 2**20 // per_token

    @property
    def decode_steps(self) -> float:
        """Decoding steps of an engine.

        Full batches while sequences are waiting, then until the longest of the last ones is done.
        """
        waiting = self.engine_sequences - self.concurrent_sequences
        longest = self.config.model.max_response_tokens
        return waiting * self.response_tokens / self.concurrent_sequences + longest

    @property
    def prefill_tokens(self) -> float:
        """Tokens that an engine prefills.

        Every prompt once, and for each further sample the half block that the cache does not share.
        """
        half_block = _CACHE_BLOCK_TOKENS[self.hardware.kind] / 2
        repeated = (self.config.rl.samples_per_prompt - 1) * min(half_block, self.prompt_tokens)
        return self.engine_groups * (self.prompt_tokens + repeated)

    # Learners

    @property
    def packing(self) -> str:
        """The packing that ``bi_ray.learning.learner.choose_packing`` chooses."""
        wanted, attention = self.config.learner.packing, self.config.model.attention
        if wanted != "auto":
            return wanted
        if attention == "sdpa" and not self.on_gpu:
            return "shared"
        return "flat" if attention == "flash_attention_2" else "padded"

    @property
    def sequences(self) -> float:
        """Number of responses that one learner trains on."""
        rl = self.config.rl
        responses = rl.prompts_per_step * rl.samples_per_prompt * self.informative_share
        return responses / self.config.learner.workers

    @property
    def microbatches(self) -> int:
        """Number of micro-batches of one learner.

        A micro-batch holds whole responses; a response that is too long has one of its own.
        """
        limit = self.config.learner.microbatch_tokens
        if self.packing == "shared":
            prompts = self.sequences / self.config.rl.samples_per_prompt * self.prompt_tokens
            return max(1, math.ceil((self.sequences * self.response_tokens + prompts) / limit))
        fitting = max(1, int(limit / (self.prompt_tokens + self.response_tokens)))
        return max(1, math.ceil(self.sequences / fitting))

    @property
    def learner_tokens(self) -> float:
        """Tokens that pass through one learner's layers.

        A shared prompt passes once per group, and again where a group is cut in two. The last token
        of a response predicts nothing, so only a row of a padded matrix contains it.
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
        """Number of pairs of a query and a key that it sees, of one learner."""
        prompt, response = self.prompt_tokens, self.response_tokens
        prompts = self.sequences
        if self.packing == "shared":
            prompts = self.sequences / self.config.rl.samples_per_prompt
        return prompts * prompt**2 / 2 + self.sequences * response * (prompt + response / 2)

    @property
    def learned_parameters(self) -> int:
        """Number of parameters that have a gradient."""
        lora = self.config.learner.lora
        return self.shape.adapter_parameters(lora) if lora else self.shape.parameters

    @property
    def held_parameters(self) -> int:
        """Number of parameters of the policy that learns, adapters included."""
        return self.shape.parameters + (self.learned_parameters if self.config.learner.lora else 0)

    @property
    def sharded(self) -> bool:
        """Whether FSDP holds the weights (``bi_ray.learning.sharding``).

        It does not for one rank that computes in float32.
        """
        learner = self.config.learner
        return learner.workers > 1 or self.bytes_per_number == 2 or learner.cpu_offload

    def check(self) -> None:
        """Check that the numbers are possible.

        Raises:
            ConfigError: they are not; the message names the option to change.
        """
        model = self.config.model
        for name, mean, longest in (
            ("prompt-tokens", self.prompt_tokens, model.max_prompt_tokens),
            ("response-tokens", self.response_tokens, model.max_response_tokens),
        ):
            if not 0 < mean <= longest:
                raise ConfigError(
                    f"--{name}: expected a mean above 0 and at most {longest}, the longest "
                    f"allowed; got {mean:g}"
                )
        if not 0 < self.informative_share <= 1:
            raise ConfigError(
                f"--informative-share: expected a share above 0 and at most 1, got "
                f"{self.informative_share:g}"
            )
        for name, devices in (("rollout", self.engine_devices), ("learner", self.learner_devices)):
            if not devices:
                raise ConfigError(
                    f"{name}.gpus_per_worker is 0, so this run is for CPUs: raise it, or plan with "
                    "--hardware cpu"
                )
