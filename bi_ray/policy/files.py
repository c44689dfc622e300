"""The files of a checkpoint directory, checked before anything is loaded.

Every error names the file at fault.
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
    """Check the headers of all weight files, and the index if there is one.

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
    """Refuse an output matrix that differs from the embedding to which the configuration ties it.

    transformers would keep it, and engines would not.

    Args:
        directory: of the checkpoint.
        tied: name of each tied matrix, and of the one that it is tied to.

    Raises:
        CheckpointError: they differ.
    """
    for head, embedding in tied.items():
        head_matrix = _read_tensor(directory, head)
        embedding_matrix = _read_tensor(directory, embedding)
        if head_matrix is None or embedding_matrix is None:
            continue
        if not torch.equal(head_matrix, embedding_matrix):  # False for other shapes, too
            raise CheckpointError(
                f"{directory / 'config.json'} sets tie_word_embeddings to true (or leaves it at "
                f"that default), but the weights have a {head} that differs from {embedding}: set "
                f"tie_word_embeddings to false there, or remove {head} from the weights"
            )


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever goes wrong while ``path`` is read into one line that names it.

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
            f"{path} needs Python code that comes with the checkpoint, and such code is never "
            "executed: convert the checkpoint to a model type that transformers supports, and "
            "remove auto_map from its JSON files"
        )
    if "attn_implementation" in str(error):
        return (
            f"{path}: transformers does not support this attention for this model type: "
            "set model.attention to eager"
        )
    if path.is_file():
        return _file_fault(path, error)
    return _damaged_json(path) or f"{path} cannot be loaded: {_one_line(error)}"


def _file_fault(file: Path, error: Exception) -> str:
    if isinstance(error, SafetensorError):
        return f"{file} is cut short or damaged ({error}): copy or download it again"
    return f"{file} cannot be read: {_one_line(error)}"


def _damaged_json(directory: Path) -> str | None:
    """What is wrong with the first JSON file that cannot be read; None: all can."""
    for file in sorted(directory.glob("*.json")):
        try:
            json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            return _file_fault(file, error)
    return None


def _one_line(error: Exception) -> str:
    text = str(error)
    if isinstance(error, OSError):
        text = error.strerror or text
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
    """Refuse a shard without the others, or without the index of all tensors."""
    match = _SHARD.fullmatch(file.name)
    if not match:
        return
    for number in range(1, int(match[2]) + 1):
        shard = file.with_name(f"{match[1]}-{number:05}-of-{match[2]}.safetensors")
        if not shard.exists():
            raise CheckpointError(f"{shard} is missing: copy or download it")
    index = file.with_name(f"{match[1]}.safetensors.index.json")
    if not index.exists():
        raise CheckpointError(f"{index} is missing: it lists which shard has which weights")


def _check_index(index: Path, tensors: dict[str, set[str]]) -> None:
    """Compare an index with the tensors of each weight file."""
    with reading(index):
        shards: dict[str, str] = json.loads(index.read_bytes())["weight_map"]
        entries = list(shards.items())
    for name, shard in entries:
        file = index.with_name(shard)
        if shard not in tensors:
            raise CheckpointError(f"{file} is missing: {index.name} lists it for {name}")
        if name not in tensors[shard]:
            raise CheckpointError(f"{file} does not contain {name}, although {index.name} lists it")


def _read_tensor(directory: Path, name: str) -> Any:
    """A tensor by its name in the model, of which a file may leave the first part out.

    None: no file has it.
    """
    short_name = name.partition(".")[2]
    for file in sorted(directory.glob("*.safetensors")):
        with reading(file), safe_open(file, framework="pt") as content:
            names = set(content.keys())
            if name in names:
                return content.get_tensor(name)
            if short_name in names:
                return content.get_tensor(short_name)
    return None
