"""Published weights: everything about the files through which engines get a new policy.

The weights of a version are one safetensors file, ``{incarnation}.{step}.safetensors``, in a folder
of shared memory that each node has for each run:

- rank 0 of the learners writes it (``publish_weights``), over the memory of the spare file;
- whoever needs it for longer than the engines do gives it a second name (``hold_weights``);
- once every engine is past a version, its file becomes the spare one or goes (``release``);
- the run clears the folder at its start and end (``clear``).

How the files reach other nodes is a matter of ``actors.weights``.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bi_ray.files.atomic import remove_leftovers
from bi_ray.files.private import private_folder
from bi_ray.policy.version import PolicyVersion
from bi_ray.policy.weights_file import EMBEDDING, HEAD, write_weights_file

SHARED_MEMORY = Path(f"/dev/shm/bi_ray_{os.geteuid()}")
SPARE = "spare"  # the file whose memory the next version is written over
_SUFFIX = ".safetensors"
_CHUNK_BYTES = 64 * 2**20
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


# Names


def weights_directory(run_id: str) -> Path:
    """Where each node has the weights of a run; ``make_weights_directory`` makes the folder."""
    return SHARED_MEMORY / run_id


def new_copies_directory(run_id: str) -> Path:
    """A name for a folder of copies from other nodes, inside ``weights_directory(run_id)``.

    It is new at every call, so that no file of an earlier pool is taken for one of this pool.
    """
    return weights_directory(run_id) / f"copies_{uuid.uuid4().hex[:8]}"


def make_weights_directory(directory: Path) -> None:
    """Make a folder for weights on this node, and ``SHARED_MEMORY`` around it for this user alone.

    Raises:
        PrivacyError: ``SHARED_MEMORY`` belongs to another user, or cannot be made.
    """
    if directory.is_relative_to(SHARED_MEMORY):
        private_folder(SHARED_MEMORY)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


def published_file(directory: Path, version: PolicyVersion) -> Path:
    """The file that has, or will have, the weights of a version."""
    return directory / f"{version}{_SUFFIX}"


def _published_version(file: Path) -> PolicyVersion:
    return PolicyVersion.parse(file.name.removesuffix(_SUFFIX))


# Files


def publish_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write a full state dict for engines, by atomic rename, over the spare file if there is one.

    New pages of shared memory cost several times what copying into old ones does. A head that
    equals the embedding is left out: engines put it in themselves (``WeightExtension``).

    Args:
        state: parameters by name, on the CPU.
        path: from ``published_file``.

    Raises:
        CheckpointError: see ``save_weights``.
    """
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    head, embedding = tensors.get(HEAD), tensors.get(EMBEDDING)
    if head is not None and embedding is not None and torch.equal(head, embedding):
        del tensors[HEAD]

    def write(file: Path) -> None:
        remove_leftovers(path.parent)  # of learners that were killed: they fill the memory
        with suppress(FileNotFoundError):
            path.with_name(SPARE).rename(file)
        with open(file, "r+b") as content:
            content.write(_header(tensors))
            for tensor in tensors.values():
                numbers: Any = tensor.flatten().view(torch.uint8).numpy()  # no copy
                content.write(numbers)
            content.truncate()

    write_weights_file(tensors, path, write, mode=0o600)


def _header(tensors: dict[str, Tensor]) -> bytes:
    """The start of a safetensors file: the header's length, then where each tensor is, as JSON."""
    entries: dict[str, dict[str, object]] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def hold_weights(file: Path, name: str) -> Path:
    """Give a published file a second name in its folder, under which it stays when it is released.

    Where the file system has no hard links, a copy is made. Whoever holds it removes it.

    Raises:
        OSError: the file is gone, or there is no space for a copy.
    """
    held = file.with_name(name)
    held.unlink(missing_ok=True)
    try:
        os.link(file, held)
    except OSError:
        shutil.copy(file, held)
    return held


class WeightOwner:
    """Looks after the published files of one run on one node; its only state is the folder.

    Args:
        directory: the folder.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def clear(self) -> None:
        """Remove everything, also what a crashed earlier command of the same run left behind."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def release(self, oldest: PolicyVersion, spare: bool = True) -> None:
        """Remove the files of versions before ``oldest``, which no engine needs any more.

        Args:
            oldest: what every engine has, or is past.
            spare: keep one of them as the spare file. A file with a second name (``hold_weights``)
                is never that one: writing over it would change what is held.
        """
        for file in self.directory.glob(f"*{_SUFFIX}"):
            if _published_version(file) >= oldest:
                continue
            is_held = file.stat().st_nlink > 1
            if spare and not is_held:
                file.replace(self.directory / SPARE)
            else:
                file.unlink(missing_ok=True)

    def read(self, path: str, offset: int) -> bytes:
        """At most 64 MiB of a file, from byte ``offset`` on; empty at its end."""
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(_CHUNK_BYTES)
