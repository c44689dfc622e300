"""Every option of a run, and of the extraction of graphs from free text."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from bi_ray.config.base import (
    Config,
    Deadline,
    ForeignOptions,
    InKeyOf,
    NotInKey,
    NotNegative,
    Positive,
    Seconds,
    SetName,
)
from bi_ray.config.faults import describe_fault
from bi_ray.config.recipes import RECIPES, RecipeConfig
from bi_ray.config.tasks import ReasoningGymConfig, TaskConfig, UserDataConfig
from bi_ray.config.training import LearnerConfig, RLConfig, SFTConfig

_ARM_LENGTH, _NAME_LENGTH = 64, 200  # folders of a run and of trackers have these names
_ARM = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{_ARM_LENGTH - 1}}}")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "prometheus")


class SeedsConfig(Config):
    """Where randomness comes from. The three seeds are independent; a study varies all of them."""

    data: int = 0
    """Seed of problems and demonstrations."""

    training: int = 0
    """Seed of the order of demonstrations and queries."""

    sampling: int = 0
    """Seed of the rollouts."""


class ModelConfig(Config):
    """The checkpoint to start from and its limits."""

    path: Annotated[str, NotInKey()] = "models/tiny-base"  # keys have the checkpoint's digest
    """A directory with safetensors and a tokenizer, relative to the working directory."""

    max_prompt_tokens: Positive = 512
    """Longest prompt."""

    max_response_tokens: Positive = 512
    """Longest response; longer ones are cut off."""

    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end a response, and remain part of it."""

    dtype: Annotated[Literal["float32", "bfloat16"], InKeyOf("sft")] = "float32"
    """Precision of weights and computation."""

    attention: Annotated[Literal["sdpa", "eager", "flash_attention_2"], NotInKey()] = "sdpa"
    """The learners' implementation of attention."""

    @property
    def max_model_tokens(self) -> int:
        """Longest sequence that an engine has to hold, in tokens."""
        return self.max_prompt_tokens + self.max_response_tokens


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


class VerifierConfig(Config):
    """How a response becomes a verdict."""

    sample_timeout_s: Seconds = 5
    """A response that takes longer to judge is a data failure."""

    batch_timeout_s: Deadline = 120
    """Responses are sent to the verifier in batches that this is enough for, even if each takes
    `sample_timeout_s`."""

    start_timeout_s: Deadline = 120
    """Deadline for the verifier's process to start, and for a user's function to load what its
    first call needs."""

    memory_mib: Annotated[Positive, NotInKey()] = 8192
    """Memory of the process that judges; a response that makes it take more is a data failure."""

    reward_function: str | None = None
    """Import path package.module:function of a reward of your own. null: whether the answer is
    right."""

    trace_reward: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """Reward for the trace: this times what `trace_reward_of` measures is added. 0: none."""

    trace_reward_of: Literal["progress", "valid"] = "progress"
    """progress: the share of the needed quantities solved before the first wrong line. valid: 1 if
    every line is right, else 0."""


class EvaluationConfig(Config):
    """What is measured before and after RL."""

    sets: tuple[SetName, ...] = ("test_id", "test_ood")
    """The sets to evaluate on."""

    samples_per_prompt: NotNegative = 8
    """Responses sampled in addition to the greedy one, for pass@k and the informative share. 0:
    greedy only."""

    base_model: Annotated[bool, NotInKey()] = False
    """Also evaluate the model that SFT starts from."""

    sampled_problems: Positive = 100
    """How many problems of each set are sampled that often, the first ones."""

    temperature: Annotated[float, Field(ge=0.01)] = 1.0
    """Temperature of those samples."""

    bootstrap_draws: Positive = 10_000
    """Resamples behind each bootstrap interval."""

    timeout_s: Deadline = 7200
    """Deadline of evaluating one policy on one set."""


class ReadinessConfig(Config):
    """What is measured of a policy before RL, and every few steps while RL trains it.

    Queries are taken from the set `rl`. Their influence is measured on problems of the set
    `influence_target`, which shares none with any other set. Both are sampled as RL will:
    rl.samples_per_prompt times, at rl.temperature.
    """

    queries: NotNegative = 64
    """Queries whose influence is measured. 0: readiness is not measured at all."""

    target_queries: Positive = 64
    """Problems on which the influence is measured."""

    target: Annotated[dict[str, Any] | None, InKeyOf("target")] = None
    """Difficulty of those problems, written as in task.sets. null: that of the set rl."""

    token_scales: tuple[Literal["sum", "mean"], ...] = ("sum", "mean")
    """How a response's tokens are combined; each scale takes passes of its own."""

    method: Literal["forward", "shifted"] = "forward"
    """How influence is computed. forward: exactly, by forward-mode differentiation. shifted: an
    approximation, for attention kernels without jvp."""

    shift_norm: Annotated[float, Field(gt=0)] = 3e-3
    """How far the method shifted moves the weights, as a norm."""

    pairwise_mib: Annotated[float, Field(ge=0)] = 1024
    """Memory for one gradient per query. If it is too small, the influence of each query on each
    other one is not measured."""

    every_rl_steps: Annotated[NotNegative, NotInKey()] = 0
    """Also measure at this interval of steps while RL trains. 0: only before RL."""

    realized_queries: Annotated[NotNegative, InKeyOf("realized")] = 0
    """Queries on which one SGD step is really taken, to compare its effect with the prediction.
    0: none."""

    realized_samples_per_prompt: Annotated[Positive, InKeyOf("realized")] = 16
    """Responses sampled for each target problem after each such step."""

    realized_step_norm: Annotated[float, Field(gt=0), InKeyOf("realized")] = 0.1
    """Length of that step in weight space."""

    microbatch_tokens: Positive = 4096
    """Maximum number of padded tokens in one forward and backward pass."""

    cpus: Annotated[float, Field(ge=0), NotInKey()] = 0
    """CPU cores that the analyzer reserves. 0: it shares those of the other actors."""

    gpus: Annotated[float, Field(ge=0), NotInKey()] = 0
    """GPUs that the analyzer reserves. 0: it computes on CPU."""

    threads: Annotated[Positive, NotInKey()] = 2
    """Threads that the analyzer computes with."""

    start_timeout_s: Deadline = 180
    """Deadline for the analyzer to start."""

    timeout_s: Deadline = 3600
    """Deadline of the analysis of one policy."""

    @model_validator(mode="after")
    def _a_scale_is_named(self) -> Self:
        if not self.token_scales:
            raise ValueError("token_scales: name at least one of sum and mean")
        return self


class RayConfig(Config):
    """Which cluster runs the actors."""

    address: str | None = None
    """Address of the cluster, HOST:PORT or auto. null: start a local one."""

    local_cpus: Positive | None = None
    """CPU cores of a local cluster. null: all of them."""

    auth_mode: Literal["disabled", "token"] = "token"
    """Authentication at `address`, unless RAY_AUTH_MODE is set; a local cluster always uses
    token."""

    call_timeout_s: Seconds = 60
    """Deadline of calls that only read or set state."""


class RunConfig(Config):
    """One experiment: the task, its arms, and every stage from problems to the table."""

    name: Annotated[str, NotInKey()]
    """Name of the experiment, for trackers and the report."""

    task: TaskConfig
    """The problems."""

    arms: dict[str, RecipeConfig]
    """The arms to compare, by name: what the demonstrations of each look like. A list of recipe
    names, such as [vanilla, bridge], is short for arms of these names."""

    seeds: SeedsConfig = SeedsConfig()
    """The seeds."""

    model: ModelConfig = ModelConfig()
    """The checkpoint to start from."""

    learner: Annotated[LearnerConfig, NotInKey()] = LearnerConfig()
    """The learner group."""

    sft: SFTConfig = SFTConfig()
    """Supervised fine-tuning."""

    rl: RLConfig = RLConfig()
    """Reinforcement learning."""

    rollout: Annotated[RolloutConfig, NotInKey()] = RolloutConfig()
    """The rollout engines."""

    verifier: VerifierConfig = VerifierConfig()
    """Verdicts and rewards."""

    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation on the test sets."""

    readiness: ReadinessConfig = ReadinessConfig()
    """Rollout accuracy and influence."""

    ray: Annotated[RayConfig, NotInKey()] = RayConfig()
    """The cluster."""

    trackers: Annotated[dict[str, ForeignOptions], NotInKey()] = {}
    """Where metrics go beside metrics.jsonl: tensorboard, wandb, mlflow, trackio, prometheus, or an
    import path package.module:Class, each with its options. A list of names is short for trackers
    without options."""

    @field_validator("trackers", mode="before")
    @classmethod
    def _named_trackers(cls, value: object) -> object:
        """Resolve ``trackers: [tensorboard, mlflow]``, which is short for these without options."""
        return {name: {} for name in value} if isinstance(value, list) else value

    @field_validator("trackers")
    @classmethod
    def _known_trackers(cls, value: dict[str, ForeignOptions]) -> dict[str, ForeignOptions]:
        for name in value:
            if name not in TRACKERS and ":" not in name:
                known = ", ".join(TRACKERS)
                raise ValueError(
                    f"unknown tracker {name!r}; known: {known}, or package.module:Class"
                )
        return value

    @field_validator("arms", mode="before")
    @classmethod
    def _named_recipes(cls, value: object) -> object:
        """Resolve recipes by name: ``arms: [vanilla, bridge]`` and ``arms: {control: filler}``."""
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            value = {name: name for name in value}
        if not isinstance(value, dict):
            return value
        arms: dict[object, object] = {}
        for arm, recipe in value.items():
            if isinstance(recipe, str):
                if recipe not in RECIPES:
                    raise ValueError(f"unknown recipe {recipe!r}; known: {', '.join(RECIPES)}")
                recipe = RECIPES[recipe]
            arms[arm] = recipe
        return arms

    @field_validator("arms")
    @classmethod
    def _arms_name_folders(cls, value: dict[str, RecipeConfig]) -> dict[str, RecipeConfig]:
        for arm in value:
            if not _ARM.fullmatch(arm):
                raise ValueError(
                    f"{arm!r:.80} cannot name an arm: use 1 to {_ARM_LENGTH} letters, digits, - "
                    "and _, a letter or digit first"
                )
        return value

    @field_validator("name")
    @classmethod
    def _name_is_no_path(cls, value: str) -> str:
        is_path = value.strip(" .") == "" or "/" in value or "\\" in value
        if is_path or not value.isprintable() or len(value) > _NAME_LENGTH:
            raise ValueError(
                f"{value!r:.80} cannot name a folder: use 1 to {_NAME_LENGTH} characters, none of "
                "them / or \\"
            )
        return value

    @model_validator(mode="after")
    def _sets_are_there(self) -> Self:
        if not self.arms:
            raise ValueError("arms: name at least one, for example [vanilla, bridge]")
        needed: set[SetName] = {"rl", *self.evaluation.sets}
        if self.rl.validation:
            needed.update(self.rl.validation.sets)
        if any(recipe.sft and not recipe.demonstrations for recipe in self.arms.values()):
            needed.add("sft")
        if absent := sorted(needed - set(self.task.sets)):
            raise ValueError(f"task.sets lacks {', '.join(absent)}")
        return self

    @model_validator(mode="after")
    def _the_reference_can_follow(self) -> Self:
        kl = self.rl.kl
        if self.learner.lora and kl.measured and kl.reference == "moving":
            raise ValueError(
                "rl.kl.reference: moving follows all weights, learner.lora trains adapters; use "
                "frozen"
            )
        return self

    @model_validator(mode="after")
    def _influence_is_of_one_policy(self) -> Self:
        if self.rl.max_staleness and self.readiness.queries and self.readiness.every_rl_steps:
            raise ValueError(
                "readiness.every_rl_steps measures rollouts of one policy, and with "
                "rl.max_staleness > 0 a batch comes from several; set one of the two to 0"
            )
        return self

    @model_validator(mode="after")
    def _text_has_no_graph(self) -> Self:
        if not isinstance(self.task, (UserDataConfig, ReasoningGymConfig)):
            return self
        for arm, recipe in self.arms.items():
            if recipe.behaviors:
                raise ValueError(
                    f"arms.{arm}: behaviors are injected into graphs, and problems of kind "
                    f"{self.task.kind} are text; give the arm a file of demonstrations that has "
                    "them"
                )
            is_gym = isinstance(self.task, ReasoningGymConfig)
            if is_gym and recipe.sft and not recipe.demonstrations:
                raise ValueError(
                    f"arms.{arm}: reasoning-gym has no demonstrations; use the arm base (no SFT), "
                    "or give the arm a file of demonstrations"
                )
        return self

    @model_validator(mode="after")
    def _target_is_a_set(self) -> Self:
        task, settings = self.task, self.readiness
        if isinstance(task, UserDataConfig):
            self._check_target_of_a_user(task)
        elif settings.target is not None:
            model = type(task.sets["rl"])
            try:
                model.model_validate(settings.target)
            except ValidationError as error:
                first = error.errors()[0]
                raise ValueError(describe_fault(first, model, "readiness.target")) from error
        return self

    def _check_target_of_a_user(self, task: UserDataConfig) -> None:
        if self.readiness.target is not None:
            raise ValueError(
                "readiness.target: for a user's data it is the set influence_target; name that "
                "instead"
            )
        is_absent = task.path is None and "influence_target" not in task.sets
        if self.readiness.queries and is_absent:
            raise ValueError(
                "task.sets lacks influence_target, on which readiness measures influence; add it, "
                "with a file that shares no question with the others, or set readiness.queries to 0"
            )


class ExtractConfig(Config):
    """The language model that reads graphs out of free text, at an OpenAI-compatible endpoint."""

    endpoint: str = "https://api.openai.com/v1"
    """Base URL of the endpoint."""

    model: str
    """The endpoint's name of the model."""

    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the API key. Empty: the endpoint needs none."""

    concurrency: Positive = 16
    """Maximum number of requests in flight at a time."""

    retries: NotNegative = 5
    """Retries of one row after rate limits, server errors, timeouts and broken JSON."""

    timeout_s: Seconds = 120
    """Deadline of one request."""

    max_tokens: Positive = 4096
    """Longest answer; one that is cut off is rejected."""

    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The endpoint's name of that limit."""

    temperature: Annotated[float, Field(ge=0)] | None = 0.0
    """Sampling temperature. null: it is not sent, for models that refuse it."""
