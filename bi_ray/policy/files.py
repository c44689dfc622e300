"""The files of a checkpoint directory, looked at before anything is loaded: what is wrong is named
with its file.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

log = logging.getLogger(__name__)
INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(.+)-[0-9]{5}-of-([0-9]{5})\.safetensors")
_LFS = b"version https://git-lfs"
_POINTER_BYTES = 1024  # a git-lfs pointer is shorter


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what to change."""


def check_files(directory: Path) -> None:
    """Look at the headers of all weight files, and at the index of a checkpoint in several.

    Raises:
        CheckpointError: a file is missing, cut short, a git-lfs pointer, or cannot be read.
    """
    for file in sorted(directory.iterdir()):
        if file.suffix in {".safetensors", ".json", ".model", ".jinja"}:
            _refuse_pointer(file)
    tensors: dict[str, set[str]] = {}
    for file in sorted(directory.glob("*.safetensors")):
        tensors[file.name] = tensor_names(file)
        _require_shards(file)
    if (directory / INDEX).exists():
        _check_index(directory / INDEX, tensors)


def tensor_names(file: Path) -> set[str]:
    """Names of the tensors in a safetensors file.

    Raises:
        CheckpointError: the file is cut short or cannot be read.
    """
    with reading(file), safe_open(file, framework="pt") as content:
        return set(content.keys())


def refuse_second_head(directory: Path, tied: dict[str, str]) -> None:
    """Refuse an output matrix of its own where the configuration says that the embedding is used
    for it.

    transformers would keep it, and engines would not.

    Args:
        directory: of the checkpoint.
        tied: name of each tied matrix, and of the one that it is tied to.

    Raises:
        CheckpointError: they differ.
    """
    for head, embedding in tied.items():
        matrices = [_read_tensor(directory, name) for name in (head, embedding)]
        if matrices[0] is None or matrices[1] is None:
            continue
        if matrices[0].shape != matrices[1].shape or not torch.equal(*matrices):
            raise CheckpointError(
                f"{directory / 'config.json'} sets tie_word_embeddings to true (or leaves it at that default), but the "
                f"weights have a {head} that differs from {embedding}: set tie_word_embeddings to false there, or "
                f"remove {head} from the weights"
            )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while a checkpoint is read into one line that names the file or the
    directory.

    Raises:
        CheckpointError: the block failed.
    """
    try:
        yield
    except CheckpointError:
        raise
    # the libraries raise ValueError, KeyError, OSError, and Exception itself
    except Exception as error:
        log.info("cannot read %s", path, exc_info=True)
        raise CheckpointError(_fault(path, error)) from error


def _fault(path: Path, error: Exception) -> str:
    if "trust_remote_code" in str(error):
        return (
            f"{path} needs Python code that comes with the checkpoint, and such code is never executed: convert the "
            "checkpoint to a model type that transformers supports, and remove auto_map from its JSON files"
        )
    if "attn_implementation" in str(error):
        return f"{path}: transformers does not support this attention for this model type: set model.attention to eager"
    if path.is_file():
        if isinstance(error, SafetensorError):
            return f"{path} is cut short or damaged ({error}): copy or download it again"
        return f"{path} cannot be read: {_one_line(error)}"
    for file in sorted(path.glob("*.json")):
        try:
            json.loads(file.read_bytes())
        except (OSError, ValueError) as fault:
            return f"{file} cannot be read: {_one_line(fault)}"
    return f"{path} cannot be loaded: {_one_line(error)}"


def _one_line(error: Exception) -> str:
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _refuse_pointer(file: Path) -> None:
    with reading(file):
        if file.stat().st_size > _POINTER_BYTES:
            return
        is_pointer = file.read_bytes().startswith(_LFS)
    if is_pointer:
        raise CheckpointError(
            f"{file} is a git-lfs pointer, not the file itself: run `git lfs pull` there"
        )


def _require_shards(file: Path) -> None:
    """Refuse a shard without the others, or without the index that says which tensor is where."""
    match = _SHARD.fullmatch(file.name)
    if not match:
        return
    for number in range(1, int(match[2]) + 1):
        shard = file.with_name(f"{match[1]}-{number:05}-of-{match[2]}.safetensors")
        if not shard.exists():
            raise CheckpointError(f"{shard} is missing: copy or download it")
    index = file.with_name(f"{match[1]}.safetensors.index.json")
    if not index.exists():
        raise CheckpointError(f"{index} is missing: it says which shard has which weights")


def _check_index(index: Path, tensors: dict[str, set[str]]) -> None:
    with reading(index):
        shards: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        places = list(shards.items())
    for name, shard in places:
        if shard not in tensors:
            raise CheckpointError(
                f"{index.with_name(shard)} is missing: {index.name} lists it for {name}"
            )
        if name not in tensors[shard]:
            raise CheckpointError(
                f"{index.with_name(shard)} does not contain {name}, although {index.name} lists it"
            )


def _read_tensor(directory: Path, name: str) -> Any:
    """A tensor by its name in the model, also where the file leaves the first part of the name out;
    None: absent.
    """
    for file in sorted(directory.glob("*.safetensors")):
        with reading(file), safe_open(file, framework="pt") as content:
            names = set(content.keys())
            for known in (name, name.partition(".")[2]):
                if known in names:
                    return content.get_tensor(known)
    return None
