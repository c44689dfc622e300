"""The configuration of a run: its sections, and what has to hold between them."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from bi_ray.config.base import Config, ForeignOptions, InKeyOf, NotInKey, Positive, Seconds, SetName
from bi_ray.config.error_messages import describe_fault
from bi_ray.config.evaluation import EvaluationConfig, VerifierConfig
from bi_ray.config.readiness import ReadinessConfig
from bi_ray.config.recipes import RECIPES, RecipeConfig
from bi_ray.config.rollout import RolloutConfig
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
