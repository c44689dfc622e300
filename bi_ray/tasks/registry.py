"""From a task's configuration to the task."""

from __future__ import annotations

from typing import Any

from bi_ray.config.evaluation import VerifierConfig
from bi_ray.config.tasks import (
    IGSMConfig,
    ReasoningGymConfig,
    TaskConfig,
    UserDataConfig,
    UserSetConfig,
)
from bi_ray.rows.files import file_digest
from bi_ray.tasks.base import Task
from bi_ray.tasks.igsm.task import IGSMTask
from bi_ray.tasks.promptbench.task import PromptBenchTask
from bi_ray.tasks.reasoning_gym import ReasoningGymTask
from bi_ray.tasks.userdata import UserDataTask


def build_task(config: TaskConfig, seed: int, verifier: VerifierConfig | None = None) -> Task:
    """The task that ``config.kind`` names.

    Args:
        config: the task's configuration.
        seed: the data seed.
        verifier: the limits within which a user's own responses are judged when they are read;
            None: the defaults.

    Raises:
        ConfigError: the options are wrong, or a package that they need is not installed.
    """
    if isinstance(config, UserDataConfig):
        return UserDataTask(config, seed, verifier)
    if isinstance(config, ReasoningGymConfig):
        return ReasoningGymTask(config, seed)
    if isinstance(config, IGSMConfig):
        return IGSMTask(config, seed)
    return PromptBenchTask(config, seed)


def data_files(config: TaskConfig) -> dict[str, str]:
    """Digest of every file that a task reads, by its path.

    Raises:
        DataError: a file is missing.
    """
    if not isinstance(config, UserDataConfig):
        return {}
    paths = [config.path]
    for settings in config.sets.values():
        paths.append(settings.path)
    return {path: file_digest(path) for path in paths if path}


def target_config(config: TaskConfig, target: dict[str, Any] | None, problems: int) -> TaskConfig:
    """The task with the single set ``influence_target``.

    A user's data have a set of that name, or a part of the one file that no other set has.

    Args:
        config: the task.
        target: difficulty of the set's problems (``ReadinessConfig.target``); None: that of the
            set rl.
        problems: number of problems.
    """
    settings: Any
    if isinstance(config, UserDataConfig):
        settings = config.sets.get("influence_target", UserSetConfig())
    else:
        settings = config.sets["rl"]
        if target is not None:
            settings = type(settings).model_validate(target)
    sets = {"influence_target": settings.model_copy(update={"problems": problems})}
    return config.model_copy(update={"sets": sets})
