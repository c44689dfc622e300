"""PromptBench (DyVal, arXiv:2309.17167): problems of arithmetic and logic in sentences."""

from bi_ray.tasks.promptbench.lines import parse_line
from bi_ray.tasks.promptbench.task import PromptBenchTask
from bi_ray.tasks.promptbench.wording import NOTATION, PREMISES, node_names, phrases
from bi_ray.tasks.traces import SYSTEM_PROMPT

__all__ = [
    "NOTATION",
    "PREMISES",
    "SYSTEM_PROMPT",
    "PromptBenchTask",
    "node_names",
    "parse_line",
    "phrases",
]
