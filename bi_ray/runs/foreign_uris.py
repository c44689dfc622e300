"""URIs that are not ours are refused before anything there is touched."""

from __future__ import annotations

import logging
import re
from pathlib import PurePosixPath

from bi_ray.files.errors import RunError
from bi_ray.files.names import OURS
from bi_ray.runs.layout import CHECKPOINT_FILE, RUN_MARK, STAGE_FILE, WORK
from bi_ray.runs.remote import NotWhole, Remote
from bi_ray.runs.remote_lock import LOCK, read_lock

log = logging.getLogger(__name__)
_DEPTH_OF_STAGES = 3  # parts of data/stage.json and sft/bridge/stage.json, at most
_DEEPER = re.compile(rf"{WORK}|seed_[0-9]+")  # folders with marks further down


def refuse_foreign_uri(remote: Remote) -> None:
    """Refuse a URI with files that is not a run or study.

    Raises:
        RunError: it is not.
    """
    if remote.exists(RUN_MARK):
        return
    files = [PurePosixPath(name) for name in remote.files_below("")]
    if all(_is_ours(file) for file in files):
        return
    lock = read_lock(remote)
    if lock is not None and lock.holder is not None:
        return
    if not any(_is_mark(remote, file) for file in files):
        raise RunError(
            f"{remote.name} has files and is not a run directory, so nothing was written there; "
            "name a new or empty folder"
        )


def mark_as_run(remote: Remote) -> None:
    """Mark a URI as that of a run or study."""
    if not remote.exists(RUN_MARK):
        remote.write(RUN_MARK, "")


def _is_ours(file: PurePosixPath) -> bool:
    return file.name.startswith(OURS) or str(file) == LOCK


def _is_mark(remote: Remote, file: PurePosixPath) -> bool:
    """Whether a file is the mark of a stage or checkpoint of a run at the URI, not below it."""
    if file.name not in (STAGE_FILE, CHECKPOINT_FILE):
        return False
    may_be_deeper = _DEEPER.fullmatch(file.parts[0]) is not None
    if len(file.parts) > _DEPTH_OF_STAGES and not may_be_deeper:
        return False
    try:
        remote.mark(str(file.parent), file.name)
    except NotWhole:
        log.info("%s/%s is not a mark", remote.name, file, exc_info=True)
        return False
    return True
