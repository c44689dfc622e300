"""Names of files and folders of ours that are not what a user asked for, and the names of the
stages.
"""

from __future__ import annotations

import uuid
from pathlib import Path

OURS = ".bi-ray-"
TEMPORARY = f"{OURS}tmp-"
ASIDE = f"{OURS}old-"  # what a new folder replaces, between two renames
RUN_MARK = f"{OURS}run"  # in every run directory, from its beginning
STAGES = (  # the first parts of their names, in the order of a run
    "data", "eval_base", "sft_data", "sft", "eval_sft", "target", "readiness", "realized", "sft_double",
    "eval_sft_double", "queries", "rl", "eval_rl", "report",
)  # fmt: skip


def temporary_name(target: Path) -> Path:
    """A free name beside ``target`` for what is to take its place."""
    return target.with_name(f"{TEMPORARY}{target.name}.{uuid.uuid4().hex[:8]}.tmp")


def target_name(temporary: Path) -> str:
    """The name of the target, from a name that ``temporary_name`` gave."""
    return temporary.name.removeprefix(TEMPORARY).removesuffix(".tmp").rpartition(".")[0]
