"""One safetensors file, written whole or not at all."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from safetensors import SafetensorError
from torch import Tensor

from bi_ray.files.atomic import write_whole
from bi_ray.files.errors import in_words
from bi_ray.policy.files import CheckpointError

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_TOO_LITTLE_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OS_ERROR = re.compile(r"os error (\d+)")


def write_weights_file(
    tensors: dict[str, Tensor], path: Path, write: Callable[[Path], None], mode: int = 0o666
) -> None:
    """Let ``write`` fill a temporary file, which then takes the name ``path``.

    Raises:
        CheckpointError: the file system refused; says how much space ``tensors`` need where space
            is the reason.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path, durable=False, mode=mode) as fresh:
            write(fresh)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(_write_fault(tensors, path, error)) from error


def _write_fault(tensors: dict[str, Tensor], path: Path, error: Exception) -> str:
    cause = _file_system_error(error)
    if cause is None or cause.errno not in _TOO_LITTLE_SPACE:
        return f"{path} was not written: {in_words(cause) if cause else error}"
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 2**20
    free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.exists() else 0.0
    more = (
        "give the container more shared memory (--shm-size)"
        if path.is_relative_to("/dev/shm")
        else "free some"
    )
    return f"{path} was not written: {in_words(cause)}. It needs {size:.0f} MiB, and {free:.0f} MiB are free; {more}"


def _file_system_error(error: Exception) -> OSError | None:
    """What the file system answered; safetensors has its number in the text of an error of its own."""
    if isinstance(error, OSError):
        return error
    number = _OS_ERROR.search(str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None
