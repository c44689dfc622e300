"""FSDP2 shards of a policy, and its full state gathered from them and put back, for any number of
ranks.

Everything here is collective: every rank of the process group must call it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor

from bi_ray.config import LearnerConfig
from bi_ray.policy.logprobs import TokenLogprobs

_SEPARATOR = "|"  # between a parameter's name and a key of its optimizer state


def shard(
    policy: TokenLogprobs, device: torch.device, compute_dtype: torch.dtype, options: LearnerConfig
) -> TokenLogprobs:
    """Shard every decoder layer, and the rest as the root, over all ranks.

    One rank that computes in float32 needs no shards: its weights stay plain tensors, and FSDP's
    copies are spared.

    Args:
        policy: a full model in float32; its weights stay float32 whatever ``compute_dtype`` is.
        device: where this rank computes.
        compute_dtype: of the forward and backward passes; gradients are summed over ranks in
            float32.
        options: ``cpu_offload`` and ``reshard_after_forward``.
    """
    ranks = torch.distributed.get_world_size()
    if ranks == 1 and compute_dtype == torch.float32 and not options.cpu_offload:
        return policy.to(device)
    more: dict[str, Any] = {"mesh": init_device_mesh(device.type, (ranks,))}
    more["mp_policy"] = MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32)
    if options.cpu_offload:
        more["offload_policy"] = CPUOffloadPolicy(pin_memory=device.type != "cpu")
    for layer in policy.model.get_decoder().layers:
        fully_shard(layer, reshard_after_forward=options.reshard_after_forward, **more)
    fully_shard(policy, **more)
    return policy


def fill_shards(model: nn.Module, state: dict[str, Any], device: torch.device) -> None:
    """Give every rank its part of the full state that rank 0 has; those without memory for it get
    that first.

    Args:
        model: sharded; of ranks but 0 on the device meta.
        state: on rank 0, of the model before it was sharded.
        device: where the shards are to be.
    """
    model._apply(
        lambda tensor: torch.empty_like(tensor, device=device) if tensor.is_meta else tensor
    )
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_model_state_dict(model, state, options=options)


def full_tensor(tensor: Tensor) -> Tensor:
    """The whole of a tensor that may be sharded."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gather_weights(model: nn.Module) -> dict[str, Tensor]:
    """All weights by name on the CPU of rank 0; an empty dict on other ranks."""
    state: Any = get_model_state_dict(
        model, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return state


def gather_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state as "parameter|key" -> tensor on the CPU of rank 0; empty elsewhere, and
    for plain SGD.
    """
    state: Any = get_optimizer_state_dict(
        model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    return {
        f"{name}{_SEPARATOR}{key}": torch.as_tensor(value).contiguous()
        for name, entries in state.get("state", {}).items()
        for key, value in entries.items()
    }


def save_optimizer(state: dict[str, Tensor], path: Path) -> None:
    """Write what ``gather_optimizer`` gave to rank 0."""
    save_file(state, path)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Put the state of ``path`` into the shards of ``optimizer``; each rank reads the file and
    keeps its part.

    Hyper-parameters are the run's, not the file's.
    """
    entries: dict[str, Any] = {}
    for name, tensor in load_file(path).items():
        parameter, key = name.split(_SEPARATOR)
        entries.setdefault(parameter, {})[key] = tensor
    if not entries:  # plain SGD has no state, and the library refuses to load none
        return
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups: Any = [
        {**group, "params": [names[parameter] for parameter in group["params"]]}
        for group in optimizer.param_groups
    ]
    set_optimizer_state_dict(
        model,
        optimizer,
        {"state": entries, "param_groups": groups},
        options=StateDictOptions(full_state_dict=True, cpu_offload=False),
    )
