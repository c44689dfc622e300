"""From a task's configuration to the task."""

from __future__ import annotations

from bi_ray.config import PromptBenchConfig
from bi_ray.tasks.base import Task
from bi_ray.tasks.promptbench import PromptBenchTask


def build_task(config: PromptBenchConfig, seed: int) -> Task:
    """The task that ``config.kind`` names."""
    return PromptBenchTask(config, seed)
