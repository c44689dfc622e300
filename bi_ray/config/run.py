"""Every option of a run. Units stand in the names; an unknown key is an error; this module imports no torch.

A YAML file is read by ``load_config``; ``bi-ray run --dry-run`` prints it with every default filled in.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from bi_ray.config.base import Config, Positive, Seconds, SetName
from bi_ray.config.recipes import RECIPES, RecipeConfig
from bi_ray.config.tasks import (
    ReasoningGymConfig,
    TaskConfig,
    UserDataConfig,
)
from bi_ray.config.training import (
    LearnerConfig,
    RLConfig,
    SFTConfig,
)

_ARM_LENGTH, _NAME_LENGTH = 64, 200  # folders of a run and of trackers have these names
_ARM = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{_ARM_LENGTH - 1}}}")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio", "prometheus")


class SeedsConfig(Config):
    """Where randomness comes from. The three vary separately; a seed of a study varies all of them."""

    data: int = 0
    training: int = 0  # order of the demonstrations and of the queries
    sampling: int = 0  # rollouts


class ModelConfig(Config):
    """The checkpoint to start from and its limits."""

    path: str = "models/tiny-base"  # a directory with safetensors and a tokenizer, seen from the project's root
    max_prompt_tokens: Positive = 512
    max_response_tokens: Positive = 512
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()  # strings that end a response, and stay in it
    dtype: Literal["float32", "bfloat16"] = "float32"
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"

    @property
    def max_model_tokens(self) -> int:
        """Longest sequence that an engine has to hold."""
        return self.max_prompt_tokens + self.max_response_tokens


class RolloutConfig(Config):
    """The pool of vLLM engines."""

    workers: Positive = 2
    cpus_per_worker: Annotated[float, Field(gt=0)] = 0.5
    gpus_per_worker: Annotated[float, Field(ge=0)] = 0
    threads_per_worker: Positive = 1
    weight_sync: Literal["shared_memory"] = "shared_memory"  # how the learners' weights get into the engines
    kv_cache_mib: Positive = 512
    max_sequences: Positive = 256  # that one engine decodes at a time
    enforce_eager: bool = True  # compilation takes minutes on a CPU
    group_attempts: Positive = 3  # failed calls, all engines being alive, before a group is given up
    # A group that takes this many times as long as the median of those finished with it runs a second time on another
    # worker with room, if it is out for `redispatch_least_s`; the first answer counts. None: never.
    redispatch_factor: Annotated[float, Field(ge=1)] | None = 3.0
    redispatch_least_s: Seconds = 10
    keep_cache_in_flight: bool = False  # a swap in flight keeps the keys and values that the old weights made
    start_timeout_s: Seconds = 300
    # That a run waits for an engine when none is left; less than `rl.batch_timeout_s`, so that the reason is named.
    no_engine_timeout_s: Seconds = 540
    sync_timeout_s: Seconds = 120
    generate_timeout_s: Seconds = 600
    heartbeat_s: Seconds = 5
    suspect_after_s: Seconds = 30
    dead_after_s: Seconds = 120


class VerifierConfig(Config):
    """How a response becomes a verdict."""

    sample_timeout_s: Seconds = 5  # a response whose judgment takes longer is a data failure
    batch_timeout_s: Seconds = 120  # sent to the verifier together: as many responses as this is enough for
    start_timeout_s: Seconds = 120  # of its process, and for a user's function to load what its first call needs
    memory_mib: Positive = 8192  # of the process that judges; a response that makes it take more is a data failure
    reward_function: str | None = None  # import path "package.module:function"; None: exact answer
    trace_reward: Annotated[float, Field(ge=0, lt=0.5)] = 0.0  # times what `trace_reward_of` says is added
    trace_reward_of: Literal["progress", "valid"] = "progress"  # share of the needed quantities solved before the first
    # wrong line; or 1 where every line is right, else 0


class EvaluationConfig(Config):
    """What is measured before and after RL."""

    sets: tuple[SetName, ...] = ("test_id", "test_ood")
    samples_per_prompt: Annotated[int, Field(ge=0)] = 8  # for pass@k and the informative share; 0: greedy only
    base_model: bool = False  # also evaluate the model that SFT starts from
    sampled_problems: Positive = 100  # how many problems of each set are sampled that often
    temperature: Annotated[float, Field(ge=0.01)] = 1.0
    bootstrap_draws: Positive = 10_000
    timeout_s: Seconds = 7200  # of one policy on one set


class ReadinessConfig(Config):
    """What is measured of a policy before RL, and every few steps while RL trains it.

    Queries are taken from the set `rl`, and their influence is measured on problems of `influence_target`, a set that
    shares none with any other. Both are sampled as RL will: rl.samples_per_prompt times, at rl.temperature.
    """

    queries: Annotated[int, Field(ge=0)] = 64  # whose influence is measured; 0: no readiness at all
    target_queries: Positive = 64  # on which they have it
    target: dict[str, Any] | None = None  # how hard those are, as in task.sets; None: as the set rl
    token_scales: tuple[Literal["sum", "mean"], ...] = ("sum", "mean")  # each costs its own passes
    method: Literal["forward", "shifted"] = "forward"  # shifted: approximate, for attention kernels without jvp
    shift_norm: Annotated[float, Field(gt=0)] = 3e-3  # of the weights' move under shifted
    pairwise_mib: Annotated[float, Field(ge=0)] = 1024  # for one gradient per query; if too little: no all against all
    every_rl_steps: Annotated[int, Field(ge=0)] = 0  # 0: not while RL trains; else the target is sampled that often
    realized_queries: Annotated[int, Field(ge=0)] = 0  # on which one SGD step is really taken, to see what it does
    realized_samples_per_prompt: Positive = 16  # of each target problem, after each such step
    realized_step_norm: Annotated[float, Field(gt=0)] = 0.1  # length of that step in weight space
    microbatch_tokens: Positive = 4096
    cpus: Annotated[float, Field(ge=0)] = 0  # that its actor asks for; 0: it shares those of the others
    gpus: Annotated[float, Field(ge=0)] = 0
    threads: Positive = 2
    start_timeout_s: Seconds = 180
    timeout_s: Seconds = 3600  # of the analysis of one policy

    @model_validator(mode="after")
    def _a_scale_is_named(self) -> Self:
        if not self.token_scales:
            raise ValueError("token_scales: name at least one of sum and mean")
        return self


class RayConfig(Config):
    """Which cluster runs the actors."""

    address: str | None = None  # None: start a local one
    local_cpus: Positive | None = None  # of a local cluster; None: every core
    auth_mode: Literal["disabled", "token"] = "token"  # at `address`, unless RAY_AUTH_MODE is set; local: always token
    call_timeout_s: Seconds = 60  # of a call that only reads or sets state


class RunConfig(Config):
    """One experiment: the task, its arms, and every stage from problems to the table."""

    name: str
    task: TaskConfig
    arms: dict[str, RecipeConfig]
    seeds: SeedsConfig = SeedsConfig()
    model: ModelConfig = ModelConfig()
    learner: LearnerConfig = LearnerConfig()
    sft: SFTConfig = SFTConfig()
    rl: RLConfig = RLConfig()
    rollout: RolloutConfig = RolloutConfig()
    verifier: VerifierConfig = VerifierConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    readiness: ReadinessConfig = ReadinessConfig()
    ray: RayConfig = RayConfig()
    trackers: dict[str, dict[str, Any]] = Field({})  # beside metrics.jsonl: options by name, or by import path

    @field_validator("trackers", mode="before")
    @classmethod
    def _named_trackers(cls, value: object) -> object:
        """``trackers: [tensorboard, mlflow]`` is short for these without options."""
        return {name: {} for name in value} if isinstance(value, list) else value

    @field_validator("trackers")
    @classmethod
    def _known_trackers(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        for name in value:
            if name not in TRACKERS and ":" not in name:
                known = ", ".join(TRACKERS)
                raise ValueError(f"no tracker is called {name!r}; known: {known}, or package.module:Class")
        return value

    @field_validator("arms", mode="before")
    @classmethod
    def _named_recipes(cls, value: object) -> object:
        """``arms: [vanilla, bridge]`` is short for the recipes of these names; so is ``arms: {control: filler}``."""
        if isinstance(value, list) and all(isinstance(name, str) for name in value):
            value = {name: name for name in value}
        if not isinstance(value, dict):
            return value
        unknown = [recipe for recipe in value.values() if isinstance(recipe, str) and recipe not in RECIPES]
        if unknown:
            raise ValueError(f"no recipe is called {unknown[0]!r}; known: {', '.join(RECIPES)}")
        return {arm: RECIPES[recipe] if isinstance(recipe, str) else recipe for arm, recipe in value.items()}

    @field_validator("arms")
    @classmethod
    def _arms_name_folders(cls, value: dict[str, RecipeConfig]) -> dict[str, RecipeConfig]:
        for arm in value:
            if not _ARM.fullmatch(arm):
                raise ValueError(
                    f"{arm!r:.80} cannot name an arm: use 1 to {_ARM_LENGTH} letters, digits, - and _, a letter or "
                    "digit first"
                )
        return value

    @field_validator("name")
    @classmethod
    def _name_is_no_path(cls, value: str) -> str:
        is_path = value.strip(" .") == "" or "/" in value or "\\" in value
        if is_path or not value.isprintable() or len(value) > _NAME_LENGTH:
            raise ValueError(
                f"{value!r:.80} cannot name a folder: use 1 to {_NAME_LENGTH} characters, none of them / or \\"
            )
        return value

    @model_validator(mode="after")
    def _sets_are_there(self) -> Self:
        if not self.arms:
            raise ValueError("arms: name at least one, for example [vanilla, bridge]")
        if self.learner.lora and self.rl.kl.measured and self.rl.kl.reference == "moving":
            raise ValueError("rl.kl.reference: moving follows all weights, learner.lora trains adapters; use frozen")
        wanted = {"rl", *self.evaluation.sets} | (set(self.rl.validation.sets) if self.rl.validation else set())
        if any(recipe.sft and not recipe.demonstrations for recipe in self.arms.values()):
            wanted.add("sft")
        absent = sorted(wanted - set(self.task.sets))
        if absent:
            raise ValueError(f"task.sets lacks {', '.join(absent)}")
        return self

    @model_validator(mode="after")
    def _influence_is_of_one_policy(self) -> Self:
        if self.rl.max_staleness and self.readiness.queries and self.readiness.every_rl_steps:
            raise ValueError(
                "readiness.every_rl_steps measures rollouts of one policy, and with rl.max_staleness > 0 several make "
                "a batch; set one of the two to 0"
            )
        return self

    @model_validator(mode="after")
    def _text_has_no_graph(self) -> Self:
        if isinstance(self.task, (UserDataConfig, ReasoningGymConfig)):
            for arm, recipe in self.arms.items():
                if recipe.behaviors:
                    raise ValueError(
                        f"arms.{arm}: behaviors are injected into graphs, and problems of kind {self.task.kind} are "
                        "text; give the arm a file of demonstrations that has them"
                    )
                if isinstance(self.task, ReasoningGymConfig) and recipe.sft and not recipe.demonstrations:
                    raise ValueError(
                        f"arms.{arm}: reasoning-gym has no demonstrations; use the arm base (no SFT), or give the arm "
                        "a file of demonstrations"
                    )
        return self

    @model_validator(mode="after")
    def _target_is_a_set(self) -> Self:
        task, settings = self.task, self.readiness
        if isinstance(task, UserDataConfig):
            if settings.target is not None:
                raise ValueError("readiness.target: of a user's data it is the set influence_target; name that instead")
            if settings.queries and task.path is None and "influence_target" not in task.sets:
                raise ValueError(
                    "task.sets lacks influence_target, on which readiness measures influence; add it, with a file that "
                    "shares no question with the others, or set readiness.queries to 0"
                )
        elif settings.target is not None:
            try:
                type(task.sets["rl"]).model_validate(settings.target)
            except ValidationError as error:
                first = error.errors()[0]
                raise ValueError(f"readiness.target.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        return self


class ExtractConfig(Config):
    """The language model that reads graphs out of free text, behind any OpenAI-compatible endpoint."""

    endpoint: str = "https://api.openai.com/v1"  # base URL
    model: str  # as the endpoint calls it
    api_key_env: str = "OPENAI_API_KEY"  # the environment variable that holds the key; "": the endpoint asks for none
    concurrency: Positive = 16  # requests in flight at a time
    retries: Annotated[int, Field(ge=0)] = 5  # of one row, after rate limits, server errors, timeouts and broken JSON
    timeout_s: Seconds = 120  # of one request
    max_tokens: Positive = 4096  # of one answer; an answer that is cut off is rejected
    token_limit_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"  # as the endpoint calls the limit
    temperature: Annotated[float, Field(ge=0)] | None = 0.0  # None: not sent, for models that refuse it
