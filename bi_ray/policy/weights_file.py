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
        CheckpointError: the file system refused. If space is the reason, the message has the size
            of ``tensors``.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with write_whole(path, durable=False, mode=mode) as fresh:
            write(fresh)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(_write_fault(tensors, path, error)) from error


def _write_fault(tensors: dict[str, Tensor], path: Path, error: Exception) -> str:
    cause = _file_system_error(error)
    if cause is None:
        return f"{path} was not written: {error}"
    fault = f"{path} was not written: {in_words(cause)}"
    if cause.errno not in _TOO_LITTLE_SPACE:
        return fault
    size = sum(tensor.nbytes for tensor in tensors.values())
    free = 0
    if path.parent.exists():
        free = shutil.disk_usage(path.parent).free
    remedy = "free some"
    if path.is_relative_to("/dev/shm"):
        remedy = "give the container more shared memory (--shm-size)"
    return (
        f"{fault}. It needs {size / 2**20:.0f} MiB, and {free / 2**20:.0f} MiB are free; {remedy}"
    )


def _file_system_error(error: Exception) -> OSError | None:
    """What the file system answered; safetensors puts its number into a text of its own."""
    if isinstance(error, OSError):
        return error
    match = _OS_ERROR.search(str(error))
    if match is None:
        return None
    number = int(match[1])
    return OSError(number, os.strerror(number))
