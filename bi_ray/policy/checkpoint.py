"""Policies on disk: a directory that transformers and vLLM load, weights in safetensors, never in pickles."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from bi_ray.files import remove_leftovers, temporary_name
from bi_ray.policy.files import CheckpointError, check_files, reading, refuse_second_head
from bi_ray.private import open_private
from bi_ray.store import in_words

WEIGHTS = "model.safetensors"
SPARE = "spare"  # in a folder of published weights: a file that nobody needs any more, but for its memory
_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_TOO_LITTLE_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_OS_ERROR = re.compile(r"os error (\d+)")
_SHOWN_NAMES = 3
disable_progress_bar()  # a run shows its own


def check_directory(path: str | Path) -> Path:
    """The directory of a checkpoint, if it is one.

    Raises:
        CheckpointError: the directory, its config, its weights or its tokenizer are missing.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise CheckpointError(f"no model at {directory}: set model.path to a directory with config.json and weights")
    if not (directory / "config.json").exists():
        raise CheckpointError(f"{directory} has no config.json, so it is no model directory")
    if not any(directory.glob("*.safetensors")):
        raise CheckpointError(f"{directory} has no *.safetensors; convert its weights first (pickles are refused)")
    if not (directory / "tokenizer_config.json").exists():
        raise CheckpointError(f"{directory} has no tokenizer; copy tokenizer.json and tokenizer_config.json there")
    return directory


def _readable(path: str | Path) -> Path:
    """The directory of a checkpoint, if nothing in it is missing, cut short or a git-lfs pointer."""
    directory = check_directory(path)
    with reading(directory):
        check_files(directory)
    return directory


def check_model(path: str | Path) -> None:
    """Look at everything of a checkpoint that can be known before its weights are loaded.

    Raises:
        CheckpointError: see ``check_directory`` and ``load_tokenizer``; or transformers has no such model, or the
            weights have an output matrix of their own although the configuration says otherwise.
    """
    directory = _readable(path)
    load_tokenizer(directory)
    refuse_second_head(directory, tied_weights(directory))


def load_tokenizer(path: str | Path) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    Raises:
        CheckpointError: see ``check_directory``; or there is no chat template.
    """
    directory = check_directory(path)
    with reading(directory):
        tokenizer = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    if tokenizer.chat_template is None:
        raise CheckpointError(f"{path} has no chat template; add chat_template.jinja to it")
    return tokenizer


def load_model(path: str | Path, dtype: str = "float32", attention: str = "sdpa") -> PreTrainedModel:
    """The checkpoint's model on the CPU, in training mode.

    Raises:
        CheckpointError: see ``check_directory``; or weights of the model are not in the files, or differ in shape.
    """
    return _loaded(path, dtype=getattr(torch, dtype), attn_implementation=attention).train()


def _loaded(path: str | Path, **options: Any) -> PreTrainedModel:
    """A model by ``from_pretrained``, which would fill weights that it does not find with random numbers."""
    directory = _readable(path)
    refuse_second_head(directory, tied_weights(directory))
    with reading(directory):
        result: Any = AutoModelForCausalLM.from_pretrained(
            directory, trust_remote_code=False, output_loading_info=True, **options
        )
    model, info = result
    if missing := sorted(info["missing_keys"]):
        listed = ", ".join(missing[:_SHOWN_NAMES])
        raise CheckpointError(f"{directory} lacks {len(missing)} weights of the model, such as {listed}")
    return model


def empty_model(path: str | Path, attention: str = "sdpa") -> PreTrainedModel:
    """The checkpoint's model with buffers but without memory for its weights (on the device meta), in training mode.

    Raises:
        CheckpointError: see ``check_directory``.
    """
    directory = check_directory(path)
    with reading(directory), init_empty_weights(include_buffers=False):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation=attention, trust_remote_code=False
        )
    model.tie_weights()
    return model.train()


def save_weights(state: dict[str, Tensor], path: Path, tied: Mapping[str, str]) -> None:
    """Write a full state dict as one safetensors file, by atomic rename.

    Args:
        state: parameters by name, on the CPU.
        path: the file.
        tied: see ``tied_weights``. The output matrix is written out all the same: vLLM's ``reload_weights`` leaves a
            tied head as it was when the file does not name it.

    Raises:
        CheckpointError: the disk, or the shared memory, is full or cannot be written. No half file is left.
    """
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    for head, embedding in tied.items():
        if embedding in tensors:
            tensors[head] = tensors[embedding].clone()
    _write(tensors, path, lambda file: save_file(tensors, file, metadata={"format": "pt"}))


def publish_weights(state: dict[str, Tensor], path: Path) -> None:
    """Write a full state dict for engines, by atomic rename, over the file ``SPARE`` of the same folder if it is there.

    New pages of shared memory cost several times what copying into old ones does. A head that equals the embedding is
    left out: engines put it in themselves (``WeightExtension``).

    Raises:
        CheckpointError: see ``save_weights``.
    """
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    head, embedding = tensors.get(_HEAD), tensors.get(_EMBEDDING)
    if head is not None and embedding is not None and torch.equal(head, embedding):
        del tensors[_HEAD]

    def write(file: Path) -> None:
        remove_leftovers(path.parent)  # of learners that were killed: they fill the memory
        with suppress(FileNotFoundError):
            path.with_name(SPARE).rename(file)
        with open(file, "r+b" if file.exists() else "wb", opener=open_private) as content:
            content.write(_header(tensors))
            for tensor in tensors.values():
                numbers: Any = tensor.flatten().view(torch.uint8).numpy()  # no copy
                content.write(numbers)
            content.truncate()

    _write(tensors, path, write)


def _header(tensors: dict[str, Tensor]) -> bytes:
    """What stands before the tensors in a safetensors file: its own length, and where each of them is."""
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


def _write(tensors: dict[str, Tensor], path: Path, write: Callable[[Path], None]) -> None:
    temporary = temporary_name(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        temporary.rename(path)
    except (OSError, SafetensorError) as error:
        temporary.unlink(missing_ok=True)
        raise CheckpointError(_write_fault(tensors, path, error)) from error


def _write_fault(tensors: dict[str, Tensor], path: Path, error: Exception) -> str:
    cause = _file_system_error(error)
    if cause is None or cause.errno not in _TOO_LITTLE_SPACE:
        return f"{path} was not written: {in_words(cause) if cause else error}"
    size = sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) / 2**20
    free = shutil.disk_usage(path.parent).free / 2**20 if path.parent.exists() else 0.0
    more = "give the container more shared memory (--shm-size)" if path.is_relative_to("/dev/shm") else "free some"
    return f"{path} was not written: {in_words(cause)}. It needs {size:.0f} MiB, and {free:.0f} MiB are free; {more}"


def _file_system_error(error: Exception) -> OSError | None:
    """What the file system answered; safetensors has its number in the text of an error of its own."""
    if isinstance(error, OSError):
        return error
    number = _OS_ERROR.search(str(error))
    return OSError(int(number[1]), os.strerror(int(number[1]))) if number else None


def save_policy(state: dict[str, Tensor], base: str | Path, directory: Path) -> None:
    """Fill ``directory`` with the weights of ``state`` and with the config and tokenizer of the checkpoint ``base``."""
    directory.mkdir(parents=True, exist_ok=True)
    source = check_directory(base)
    for file in source.iterdir():
        if file.suffix in {".json", ".jinja", ".txt", ".model"} and not file.name.endswith(".index.json"):
            shutil.copy(file, directory / file.name)
    save_weights(state, directory / WEIGHTS, tied_weights(source))


def copy_policy(base: str | Path, directory: Path) -> None:
    """Fill ``directory`` with the checkpoint ``base`` as it is, its weights in one file however many it has."""
    model = _loaded(base, dtype="auto")
    save_policy(model.state_dict(), base, directory)


def tied_weights(path: str | Path) -> dict[str, str]:
    """The output matrix of a checkpoint whose embedding is used for it, and that embedding, by name; else empty."""
    return dict(empty_model(path, "eager").all_tied_weights_keys)


def digest(path: str | Path) -> str:
    """Hash of the weights, config and tokenizer of a checkpoint (64 bits, hexadecimal)."""
    result = hashlib.blake2b(digest_size=8)
    for file in sorted(check_directory(path).iterdir()):
        if file.suffix in {".json", ".safetensors", ".jinja"}:
            result.update(file.name.encode() + b"\0")
            with open(file, "rb") as content:
                result.update(hashlib.file_digest(content, "blake2b").digest())
    return result.hexdigest()
