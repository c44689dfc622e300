"""Names of our temporary files and folders: nothing of another name is ever cleaned up."""

from __future__ import annotations

import uuid
from pathlib import Path

OURS = ".bi-ray-"
TEMPORARY = f"{OURS}tmp-"
ASIDE = f"{OURS}old-"  # what a new folder replaces, between two renames


def temporary_name(target: Path) -> Path:
    """A free name beside ``target`` for what will replace it."""
    return target.with_name(f"{TEMPORARY}{target.name}.{uuid.uuid4().hex[:8]}.tmp")


def target_name(temporary: Path) -> str:
    """The name of the target, from a name that ``temporary_name`` gave."""
    return temporary.name.removeprefix(TEMPORARY).removesuffix(".tmp").rpartition(".")[0]
