"""Weights published for the engines: one safetensors file per version and node, in shared memory."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bi_ray.files.atomic import remove_leftovers
from bi_ray.files.private import private_folder
from bi_ray.policy.version import PolicyVersion, parse_version
from bi_ray.policy.weights_file import EMBEDDING, HEAD, write_weights_file

SHARED_MEMORY = Path(f"/dev/shm/bi_ray_{os.geteuid()}")

_CHUNK_BYTES = 64 * 2**20

_SUFFIX = ".safetensors"


def weights_directory(run_id: str) -> Path:
    """Where the weights of a run are published on each node, in memory; ``make_weights_directory``
    makes it.
    """
    return SHARED_MEMORY / run_id


def make_weights_directory(directory: Path) -> None:
    """Make a folder for weights on this node, and ``SHARED_MEMORY`` around it for this user alone.

    Raises:
        PrivacyError: ``SHARED_MEMORY`` belongs to another user, or cannot be made.
    """
    if directory.is_relative_to(SHARED_MEMORY):
        private_folder(SHARED_MEMORY)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


class WeightOwner:
    """Looks after the published files of one run on one node; keeps no state beyond the folder
    itself.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def clear(self) -> None:
        """Remove everything, also what a crashed earlier command of the same run left behind."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def release(self, oldest: PolicyVersion, spare: bool = True) -> None:
        """Remove the files of versions before ``oldest``: no engine needs them any more.

        ``spare``: one is kept, under another name, so that the next version is written over it. A
        file that somebody holds by a link of his own (``InfluenceMonitor``) is never that one.
        """
        for file in self.directory.glob(f"*{_SUFFIX}"):
            if parse_version(file.name.removesuffix(_SUFFIX)) < oldest:
                if spare and file.stat().st_nlink == 1:
                    file.replace(self.directory / SPARE)
                else:
                    file.unlink(missing_ok=True)

    def read(self, path: str, offset: int) -> bytes:
        """At most 64 MiB of a file from ``offset`` on; nothing at its end."""
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(_CHUNK_BYTES)


# in a folder of published weights: a file that nobody needs any more, but for its memory
SPARE = "spare"

_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


def publish_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write a full state dict for engines, by atomic rename, over the file ``SPARE`` of the same
    folder if it is there.

    New pages of shared memory cost several times what copying into old ones does. A head that
    equals the embedding is left out: engines put it in themselves (``WeightExtension``).

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
    """What stands before the tensors in a safetensors file: its own length, and where each of them
    is.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.nbytes
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end],
        }  # fmt: skip
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    return len(text).to_bytes(8, "little") + text
