"""What is in a run directory: the names of its files, a stage's record, and what tells a run from
any other folder.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bi_ray.files.errors import RunError, naming
from bi_ray.files.integrity import FileRecord
from bi_ray.files.names import OURS, RUN_MARK
from bi_ray.files.records import damaged, parse_record, read_record, remedy_for

STAGE_FILE = "stage.json"
# in a checkpoint of an unfinished stage, the last file that is written
CHECKPOINT_FILE = "state.json"
LOCK_FILE = ".lock"
REPORT = "report"
SUMMARY = "summary.json"
PAGE = "report.html"
PICTURE = "result.svg"
MARKDOWN = "result.md"
REPORT_FILES = (SUMMARY, PAGE, PICTURE, MARKDOWN)
_SHOWN_HOLDER = 200  # characters of what a lock file holds
_HOLDER = re.compile(r"\d+( \(job \S+ on \S+\))?")  # what ``this_process`` writes
_VOLUME = "lost+found"  # in every new file system
_STAGES_BELOW = (f"*/{STAGE_FILE}", f"*/*/{STAGE_FILE}")
_MARKS_BELOW = (
    *_STAGES_BELOW,
    f"work/*/*/{STAGE_FILE}",
    f"seed_*/*/{STAGE_FILE}",
    f"seed_*/*/*/{STAGE_FILE}",
)
_PAGE_START, _PAGE_WORDS = 4096, (b"<!doctype html>", b"Content-Security-Policy", b"sha256-")
_OWN_NAMES = (STAGE_FILE, ".unsent")  # in a stage's folder, beside the files that its record lists
# what a directory without a finished stage held before there was a mark
_BEFORE_THE_MARK = re.compile(
    r"\.lock|config\.yaml|\.cluster\.json|work|trackers|lost\+found|metrics\.jsonl|checkpoint|progress\.json|hashes\.u64"
    r"|data-\d+\.\w+|.+\.\d+\.tmp"
)


@dataclass(frozen=True, slots=True)
class StageRecord:
    """What ``stage.json`` says of a stage.

    Attributes:
        key, config, inputs: see ``StageKey``.
        code_version: that made it.
        seconds: that it took, None of an unfinished one.
        files: size and digest of every file by its path in the folder, None of an unfinished one.
    """

    key: str
    config: dict[str, Any]
    inputs: dict[str, str]
    code_version: str
    seconds: float | None
    files: dict[str, FileRecord] | None = None


def read_stage(folder: Path) -> StageRecord:
    """What a stage's folder says of itself.

    Raises:
        RunError: the file is damaged or missing.
    """
    return read_record(folder / STAGE_FILE, StageRecord)


def parse_stage(text: str, run: str, stage: str) -> StageRecord:
    """The same from the text of the file of ``stage`` in ``run``, a URI."""
    remedy = f"make it again with --from {stage.split('/')[0]}"
    return parse_record(text, StageRecord, f"{run}/{stage}/{STAGE_FILE}", remedy)


def is_finished(folder: Path) -> bool:
    """Whether a stage's folder is whole: then each of its files has to be there."""
    return (folder / STAGE_FILE).exists()


def stage_folders(run: Path) -> list[Path]:
    """The folder of every finished stage of a run, by name."""
    files = [file for pattern in _STAGES_BELOW for file in sorted(run.glob(pattern))]
    return [
        file.parent
        for file in files
        if file.relative_to(run).parts[0] != "work" and not file.relative_to(run).as_posix().startswith(OURS)
        and not file.parent.name.startswith(OURS)
    ]  # fmt: skip


def require_sizes(folder: Path, absent_ok: bool = False) -> None:
    """Raises RunError where a file of a finished stage is not as long as when it was written.

    Args:
        folder: of the stage.
        absent_ok: it may also be missing, such as weights that were removed to make room.
    """
    for name, record in (read_stage(folder).files or {}).items():
        file, size = folder / name, record.bytes
        try:
            found = file.stat().st_size
        except FileNotFoundError as error:
            if absent_ok:
                continue
            raise RunError(f"{file} is missing: {remedy_for(file)}") from error
        if found != size:
            raise damaged(file, f"{found:,} bytes of {size:,}")


def refuse_foreign(path: Path) -> None:
    """Raises RunError where ``path`` is a directory with something in it, and not a run or study of
    ours.
    """
    if path.is_symlink() and not path.exists():
        raise RunError(f"{path} is a broken symbolic link; name a directory for the run")
    if not path.exists():
        return
    if not path.is_dir():
        raise RunError(f"{path} is a file; name a directory for the run")
    with naming(path):
        names = {child.name for child in path.iterdir()} - {_VOLUME}
    if names and not _is_run(path, names):
        raise RunError(
            f"{path} has files and is not a run directory, so nothing was written there; name a new or empty directory"
        )


def _is_run(path: Path, names: set[str]) -> bool:
    """Whether a directory is a run, a study or an unfinished set: by its mark, or as versions
    before the mark left it.

    Args:
        path: the directory.
        names: of what is in it.
    """
    if RUN_MARK in names or any(
        _is_stage(file) for below in _MARKS_BELOW for file in path.glob(below)
    ):
        return True
    if LOCK_FILE not in names or not (path / LOCK_FILE).is_file():
        return False
    with open(path / LOCK_FILE, "rb") as lock:
        holder = lock.read(_SHOWN_HOLDER).decode(errors="replace")
    return (not holder or _HOLDER.fullmatch(holder) is not None) and all(
        map(_BEFORE_THE_MARK.fullmatch, names)
    )


def _is_stage(file: Path) -> bool:
    try:
        read_record(file, StageRecord)
    except RunError:
        return False
    return True


def refuse_foreign_files(folder: Path) -> None:
    """Raises RunError where a stage's folder holds what the stage did not make.

    Hidden files inside it are nobody's: records leave them out, and file systems and desktops make
    them.
    """
    if not folder.exists():
        return
    if not (folder / STAGE_FILE).exists():
        if any(folder.iterdir()):
            raise RunError(
                f"{folder} was not made by bi-ray: it has no {STAGE_FILE}; move it away and try again"
            )
        return
    try:
        made = read_stage(folder).files
    except RunError:  # it is damaged, and to be made again
        made = None
    if made is None:
        return
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        name = path.as_posix()
        if any(part.startswith(".") for part in path.parts):
            continue
        if file.is_file() and name not in made and file.name not in _OWN_NAMES:
            raise RunError(
                f"{file} was not made by the stage that is to be removed; move it away and try again"
            )


def refuse_foreign_report(folder: Path) -> None:
    """Raises RunError where the folder of a report holds what no report has."""
    if not folder.exists():
        return
    names = {child.name for child in folder.iterdir()}
    foreign = sorted(names - set(REPORT_FILES))
    if foreign:
        raise RunError(f"{folder / foreign[0]} is not part of a report; move it away and try again")
    if names and SUMMARY not in names:
        raise RunError(
            f"{folder} was not made by bi-ray: it has no {SUMMARY}; move it away and try again"
        )


def refuse_foreign_page(file: Path) -> None:
    """Raises RunError where a page is to replace a file that is no report."""
    if file.is_dir():
        raise RunError(f"{file} is a directory; name a file for the page")
    if not file.exists():
        return
    with naming(file), open(file, "rb") as content:
        start = content.read(_PAGE_START)
    if start and not all(words in start for words in _PAGE_WORDS):
        raise RunError(f"{file} is not a report, so it is not replaced; name another file")


def holder_in(content: bytes) -> str:
    """What a lock file says of its holder, as far as it can be shown in a line."""
    text = content[:_SHOWN_HOLDER].decode(errors="replace")
    return " ".join("".join(filter(str.isprintable, text)).split()) or "unknown"
