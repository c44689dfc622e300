"""LoRA (arXiv:2106.09685) through peft: adapters learn; everybody else gets merged weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import PreTrainedModel

from bi_ray.config.training import LoRAConfig

ADAPTERS = "adapters.safetensors"
_BASE, _DOWN, _UP = ".base_layer.", ".lora_A.default.", ".lora_B.default."


def add_adapters(model: PreTrainedModel, config: LoRAConfig, file: Path | None) -> None:
    """Put adapters into the linear layers of ``model`` and freeze everything else.

    Args:
        model: a full model, not sharded yet.
        config: their size and place.
        file: adapters to resume from, as ``adapters_of`` gave them; None: new ones, the same in
            every process, which change nothing.

    Raises:
        ValueError: ``config.targets`` names no layer, or the file has other adapters.
    """
    # this import takes a second, which only a LoRA has to wait for
    from peft import LoraConfig, inject_adapter_in_model

    targets = config.targets if isinstance(config.targets, str) else list(config.targets)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        inject_adapter_in_model(
            LoraConfig(
                r=config.rank,
                lora_alpha=config.alpha,  # type: ignore[arg-type]  # peft takes fractions too
                lora_dropout=config.dropout,
                target_modules=targets,
            ),
            model,
        )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("lora_" in name)
    if file is None:
        return
    saved = load_file(file)
    if saved.keys() != adapters_of(dict(model.state_dict())).keys():
        raise ValueError(
            f"{file} has adapters of other layers than learner.lora.targets: {config.targets}"
        )
    model.load_state_dict(saved, strict=False)


def adapters_of(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The adapters in a full state dict."""
    return {name: tensor for name, tensor in state.items() if _is_adapter(name)}


def _is_adapter(name: str) -> bool:
    return _DOWN in name or _UP in name


def merged(state: dict[str, Tensor], config: LoRAConfig) -> dict[str, Tensor]:
    """A full state dict with adapters as that of the plain model: W + alpha / rank * B A."""
    plain = {}
    for name, tensor in state.items():
        if _is_adapter(name):
            continue
        weight = tensor
        if name.endswith(f"{_BASE}weight"):
            down = state[name.replace(_BASE, _DOWN)]
            up = state[name.replace(_BASE, _UP)]
            weight = tensor + config.alpha / config.rank * (up @ down)
        plain[name.replace(_BASE, ".")] = weight
    return plain
