"""What each stage of a run depends on: options of the configuration, and artifacts that it reads.

The options are marked where they are declared: see ``NotInKey`` and ``InKeyOf`` of
``bi_ray.config.base``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic.fields import FieldInfo

from bi_ray.config.base import Config, InKeyOf, NotInKey
from bi_ray.config.recipes import RecipeConfig
from bi_ray.config.run import RunConfig
from bi_ray.config.tasks import TaskConfig
from bi_ray.config.training import LoRAConfig, SFTConfig
from bi_ray.policy.checkpoint import digest
from bi_ray.rows.files import file_digest
from bi_ray.runs.stage_key import StageKey, key_of
from bi_ray.tasks.registry import data_files, target_config

SFTKind = Literal["sft", "sft_double"]


def keyed_options(section: Config, stage: str | None = None) -> dict[str, object]:
    """The options of a section on which a stage's result depends.

    Args:
        section: the section.
        stage: choose the options that are marked ``InKeyOf(stage)``; None: those without a mark.
    """
    options: dict[str, object] = {}
    for name, field in type(section).model_fields.items():
        if _is_keyed(field, stage):
            value = getattr(section, name)
            options[name] = keyed_options(value) if isinstance(value, Config) else value
    return options


def _is_keyed(field: FieldInfo, stage: str | None) -> bool:
    for mark in field.metadata:
        if isinstance(mark, NotInKey):
            return False
        if isinstance(mark, InKeyOf):
            return mark.stage == stage
    return stage is None


@dataclass(frozen=True, slots=True)
class StageKeys:
    """The key of every stage: its options, and the digests of the artifacts that it reads."""

    config: RunConfig

    def data(self) -> StageKey:
        """The problems of every set."""
        config = self.config
        return key_of(
            {"task": config.task, "data_seed": config.seeds.data, "limits": self._limits()},
            {**self.base(), **data_files(config.task)},
        )

    def sft_data(self, arm: str, data: StageKey) -> StageKey:
        """The demonstrations of an arm."""
        recipe = self.config.arms[arm]
        inputs = {"data": data.digest}
        if recipe.demonstrations:
            inputs["demonstrations"] = file_digest(recipe.demonstrations)
        return key_of({"recipe": recipe, "data_seed": self.config.seeds.data}, inputs)

    def sft(self, sft_data: StageKey, kind: SFTKind) -> StageKey:
        """The policy of an arm after SFT."""
        options = {
            "sft": keyed_options(self.sft_config(kind)),
            "training_seed": self.config.seeds.training,
            **keyed_options(self.config.model, "sft"),
            **self._adapters(),
        }
        return key_of(options, {"sft_data": sft_data.digest, **self.base()})

    def no_sft(self, data: StageKey) -> StageKey:
        """The base as the policy of an arm without SFT.

        The problems are part of the key because the keys of RL and evaluation build on it.
        """
        return key_of({"sft": None}, {**self.base(), "data": data.digest})

    def policy(self, data: StageKey, sft_data: StageKey | None) -> StageKey:
        """The policy that RL starts from; ``sft_data`` is None for an arm without SFT."""
        return self.no_sft(data) if sft_data is None else self.sft(sft_data, "sft")

    def target(self, data: StageKey) -> StageKey:
        """The problems on which readiness measures influence."""
        task = self.target_task()
        return key_of(
            {"task": task, "data_seed": self.config.seeds.data},
            {"data": data.digest, **data_files(task)},
        )

    def readiness(
        self, policy: Mapping[str, str], recipes: Mapping[str, RecipeConfig], target: StageKey
    ) -> StageKey:
        """The readiness of a policy.

        Args:
            policy: the digest of what made the policy, by stage.
            recipes: whose demonstrations the perplexity is measured on, by name.
            target: the problems on which influence is measured.
        """
        rl = self.config.rl
        options = {
            "readiness": keyed_options(self.config.readiness),
            "sampling": {
                "samples_per_prompt": rl.samples_per_prompt,
                "temperature": rl.temperature,
                "top_p": rl.top_p,
                "seed": self.config.seeds.sampling,
            },
            "limits": self._limits(),
            "verifier": keyed_options(self.config.verifier),
            "recipes": recipes,
        }
        return key_of(options, {**policy, "target": target.digest})

    def realized(self, readiness: StageKey) -> StageKey:
        """What SGD steps on single queries really change."""
        options = keyed_options(self.config.readiness, "realized")
        return key_of({"realized": options}, {"readiness": readiness.digest})

    def queries(self, policy: StageKey) -> StageKey:
        """The queries that ``rl.query_filter`` keeps."""
        rl = self.config.rl
        assert rl.query_filter is not None
        options = {
            "filter": keyed_options(rl.query_filter),
            "sampling": {
                "temperature": rl.temperature,
                "top_p": rl.top_p,
                "seed": self.config.seeds.sampling,
            },
            "verifier": keyed_options(self.config.verifier),
            "limits": self._limits(),
        }
        return key_of(options, {"sft": policy.digest})

    def rl(self, policy: StageKey, queries: StageKey | None) -> StageKey:
        """The policy of an arm after RL; ``queries`` is None if none were rejected."""
        options = {
            "rl": keyed_options(self.config.rl),
            "verifier": keyed_options(self.config.verifier),
            "seeds": self.config.seeds,
            "limits": self._limits(),
            **self._adapters(),
        }
        inputs = {"sft": policy.digest}
        if queries is not None:
            inputs["queries"] = queries.digest
        return key_of(options, inputs)

    def evaluation(self, policy: Mapping[str, str]) -> StageKey:
        """The evaluation of a policy; ``policy`` has the digest of what made it, by stage."""
        options = {
            "evaluation": keyed_options(self.config.evaluation),
            "sampling_seed": self.config.seeds.sampling,
            "limits": self._limits(),
        }
        return key_of(options, policy)

    def _adapters(self) -> dict[str, LoRAConfig]:
        """The adapters that are trained in place of all weights, if there are any."""
        lora = self.config.learner.lora
        return {} if lora is None else {"lora": lora}

    def base(self) -> dict[str, str]:
        """The digest of the checkpoint to start from, as an input of other stages."""
        return {"base": digest(Path(self.config.model.path))}

    def sft_config(self, kind: SFTKind) -> SFTConfig:
        """The options of SFT; those of ``sft_double`` have twice the epochs."""
        sft = self.config.sft
        return sft if kind == "sft" else sft.model_copy(update={"epochs": 2 * sft.epochs})

    def target_task(self) -> TaskConfig:
        """The task with the set ``influence_target`` alone."""
        settings = self.config.readiness
        return target_config(self.config.task, settings.target, settings.target_queries)

    def _limits(self) -> dict[str, object]:
        limits = keyed_options(self.config.model)
        if not limits["stop"]:
            del limits["stop"]
        return limits
