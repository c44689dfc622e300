"""PromptBench (DyVal, arXiv:2309.17167): arithmetic, boolean, deductive and abductive problems in
sentences.
"""

from bi_ray.tasks.promptbench.lines import parse_line
from bi_ray.tasks.promptbench.task import PromptBenchTask
from bi_ray.tasks.promptbench.wording import NOTATION, PREMISES, SYSTEM_PROMPT, node_names, phrases

__all__ = [
    "NOTATION",
    "PREMISES",
    "SYSTEM_PROMPT",
    "PromptBenchTask",
    "node_names",
    "parse_line",
    "phrases",
]
