"""Folders that are not ours are refused before anything in them is touched."""

from __future__ import annotations

import logging
from pathlib import Path

from bi_ray.files.errors import RunError, naming
from bi_ray.files.integrity import file_names
from bi_ray.runs.layout import (
    REPORT_FILES,
    RUN_MARK,
    SEEDS,
    STAGE_FILE,
    SUMMARY,
    WORK,
)
from bi_ray.runs.records import read_record
from bi_ray.runs.stages import StageRecord, read_stage

log = logging.getLogger(__name__)

_VOLUME = "lost+found"  # in every new file system
_STAGES_BELOW = (  # of a run that was copied without its hidden files
    f"*/{STAGE_FILE}",
    f"*/*/{STAGE_FILE}",
    f"{WORK}/*/*/{STAGE_FILE}",
    f"{SEEDS}/*/{STAGE_FILE}",
    f"{SEEDS}/*/*/{STAGE_FILE}",
)
_PAGE_START = 4096  # bytes
_PAGE_WORDS = (b"<!doctype html>", b"Content-Security-Policy", b"sha256-")


def refuse_foreign(path: Path) -> None:
    """Refuse a directory with something in it that is not a run or study.

    Raises:
        RunError: it is one, or a file or a broken link.
    """
    if not path.exists():
        if path.is_symlink():
            raise RunError(f"{path} is a broken symbolic link; name a directory for the run")
        return
    if not path.is_dir():
        raise RunError(f"{path} is a file; name a directory for the run")
    with naming(path):
        names = {child.name for child in path.iterdir()} - {_VOLUME}
    if names and RUN_MARK not in names and not _has_stage(path):
        raise RunError(
            f"{path} has files and is not a run directory, so nothing was written there; name a "
            "new or empty directory"
        )


def _has_stage(path: Path) -> bool:
    """Whether a stage, finished or not, is below the directory of a run or study."""
    for pattern in _STAGES_BELOW:
        for file in path.glob(pattern):
            if _is_stage_record(file):
                return True
    return False


def _is_stage_record(file: Path) -> bool:
    try:
        read_record(file, StageRecord)
    except RunError:
        log.debug("%s is not of a stage", file, exc_info=True)
        return False
    return True


def refuse_foreign_files(folder: Path) -> None:
    """Refuse a stage's folder with files that the stage did not make.

    Hidden files inside it are nobody's: records leave them out, and file systems and desktops make
    them.

    Raises:
        RunError: there is such a file; the message names it.
    """
    if not folder.exists():
        return
    if not (folder / STAGE_FILE).exists():
        if any(folder.iterdir()):
            raise _not_ours(folder, STAGE_FILE)
        return
    try:
        recorded = read_stage(folder).files
    except RunError:
        log.info("%s is made again", folder, exc_info=True)
        return
    if recorded is None:
        return
    for name in file_names(folder):
        if name not in recorded and Path(name).name != STAGE_FILE:
            raise RunError(
                f"{folder / name} was not made by the stage that is to be removed; move it away "
                "and try again"
            )


def refuse_foreign_report(folder: Path) -> None:
    """Refuse the folder of a report with something in it that is not of a report.

    Raises:
        RunError: it has; the message names it.
    """
    if not folder.exists():
        return
    names = {child.name for child in folder.iterdir()}
    foreign = sorted(names - set(REPORT_FILES))
    if foreign:
        raise RunError(f"{folder / foreign[0]} is not part of a report; move it away and try again")
    if names and SUMMARY not in names:
        raise _not_ours(folder, SUMMARY)


def refuse_foreign_page(file: Path) -> None:
    """Refuse to replace a file that is not the page of a report.

    Raises:
        RunError: it is not, or it is a directory.
    """
    if file.is_dir():
        raise RunError(f"{file} is a directory; name a file for the page")
    if not file.exists():
        return
    with naming(file), open(file, "rb") as content:
        start = content.read(_PAGE_START)
    if start and not all(words in start for words in _PAGE_WORDS):
        raise RunError(f"{file} is not a report, so it is not replaced; name another file")


def _not_ours(folder: Path, missing: str) -> RunError:
    return RunError(
        f"{folder} was not made by bi-ray: it has no {missing}; move it away and try again"
    )
