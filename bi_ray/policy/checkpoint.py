"""Policies on disk: directories that transformers and vLLM load.

Weights are in safetensors files, never in pickles.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights
from safetensors.torch import save_file
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.logging import disable_progress_bar

from bi_ray.policy.files import CheckpointError, check_files, reading, refuse_second_head
from bi_ray.policy.weights_file import write_weights_file

WEIGHTS = "model.safetensors"
_COMPANIONS = {".json", ".jinja", ".txt", ".model"}  # suffixes of what belongs to the weights
_SHOWN_NAMES = 3
disable_progress_bar()  # a run shows its own


def check_directory(path: str | Path) -> Path:
    """``path`` as a ``Path``, if it has what a checkpoint needs.

    Raises:
        CheckpointError: the directory, its config, its weights or its tokenizer are missing.
    """
    directory = Path(path)
    if not directory.is_dir():
        raise CheckpointError(
            f"no model at {directory}: set model.path to a directory with config.json and weights"
        )
    if not (directory / "config.json").exists():
        raise CheckpointError(f"{directory} has no config.json, so it is not a model directory")
    if not any(directory.glob("*.safetensors")):
        raise CheckpointError(
            f"{directory} has no *.safetensors; convert its weights first (pickles are refused)"
        )
    if not (directory / "tokenizer_config.json").exists():
        raise CheckpointError(
            f"{directory} has no tokenizer; copy tokenizer.json and tokenizer_config.json there"
        )
    return directory


def _readable(path: str | Path) -> Path:
    """The directory, if no file in it is missing, cut short or a git-lfs pointer."""
    directory = check_directory(path)
    with reading(directory):
        check_files(directory)
    return directory


def check_model(path: str | Path) -> None:
    """Check everything about a checkpoint that can be known before its weights are loaded.

    Raises:
        CheckpointError: see ``check_directory`` and ``load_tokenizer``; or transformers has no such
            model, or see ``refuse_second_head``.
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


def load_model(
    path: str | Path, dtype: str = "float32", attention: str = "sdpa"
) -> PreTrainedModel:
    """The checkpoint's model on the CPU, in training mode.

    Raises:
        CheckpointError: see ``check_directory``; or weights of the model are not in the files, or
            differ in shape.
    """
    return _loaded(path, dtype=getattr(torch, dtype), attn_implementation=attention).train()


def _loaded(path: str | Path, **options: Any) -> PreTrainedModel:
    """A model by ``from_pretrained``, which by itself would draw missing weights at random."""
    directory = _readable(path)
    refuse_second_head(directory, tied_weights(directory))
    with reading(directory):
        result: Any = AutoModelForCausalLM.from_pretrained(
            directory, trust_remote_code=False, output_loading_info=True, **options
        )
    model, info = result
    missing = sorted(info["missing_keys"])
    if missing:
        listed = ", ".join(missing[:_SHOWN_NAMES])
        raise CheckpointError(
            f"{directory} lacks {len(missing)} weights of the model, such as {listed}"
        )
    return model


def empty_model(path: str | Path, attention: str = "sdpa") -> PreTrainedModel:
    """The checkpoint's model in training mode, with buffers, its weights on the meta device.

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
        tied: see ``tied_weights``. The output matrix is written out all the same: vLLM's
            ``reload_weights`` leaves a tied head as it was when the file does not name it.

    Raises:
        CheckpointError: the disk or the shared memory is full or cannot be written. No partial file
            is left.
    """
    tensors = {name: tensor.contiguous() for name, tensor in state.items()}
    for head, embedding in tied.items():
        if embedding in tensors:
            tensors[head] = tensors[embedding].clone()
    write_weights_file(
        tensors, path, lambda file: save_file(tensors, file, metadata={"format": "pt"})
    )


def save_policy(state: dict[str, Tensor], base: str | Path, directory: Path) -> None:
    """Fill ``directory`` with the weights of ``state``, and the config and tokenizer of ``base``.

    Raises:
        CheckpointError: see ``check_directory`` and ``save_weights``.
    """
    directory.mkdir(parents=True, exist_ok=True)
    source = check_directory(base)
    for file in source.iterdir():
        is_index = file.name.endswith(".index.json")  # of weights in several files
        if file.suffix in _COMPANIONS and not is_index:
            shutil.copy(file, directory / file.name)
    save_weights(state, directory / WEIGHTS, tied_weights(source))


def copy_policy(base: str | Path, directory: Path) -> None:
    """Fill ``directory`` with the checkpoint ``base``, its weights in one file.

    Raises:
        CheckpointError: see ``load_model`` and ``save_weights``.
    """
    model = _loaded(base, dtype="auto")
    save_policy(model.state_dict(), base, directory)


def tied_weights(path: str | Path) -> dict[str, str]:
    """Names of tied matrices: that of the output, mapped to the embedding used for it, if it is."""
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
