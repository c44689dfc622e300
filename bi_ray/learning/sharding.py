"""FSDP2 shards of a policy; gathers its full state from them and puts it back.

Every rank of the process group must make every call; the number of ranks may change in between.
"""

from __future__ import annotations

from functools import partial
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
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor

from bi_ray.config.training import LearnerConfig
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
        options: for ``cpu_offload`` and ``reshard_after_forward``.
    """
    ranks = torch.distributed.get_world_size()
    if ranks == 1 and compute_dtype == torch.float32 and not options.cpu_offload:
        return policy.to(device)
    offload = OffloadPolicy()
    if options.cpu_offload:
        offload = CPUOffloadPolicy(pin_memory=device.type != "cpu")
    shard_over_ranks = partial(
        fully_shard,
        mesh=init_device_mesh(device.type, (ranks,)),
        mp_policy=MixedPrecisionPolicy(param_dtype=compute_dtype, reduce_dtype=torch.float32),
        offload_policy=offload,
    )
    for layer in policy.model.get_decoder().layers:
        shard_over_ranks(layer, reshard_after_forward=options.reshard_after_forward)
    shard_over_ranks(policy)
    return policy


def fill_shards(model: nn.Module, state: dict[str, Any], device: torch.device) -> None:
    """Give every rank its part of the full state that rank 0 has.

    Args:
        model: sharded; on all ranks but 0, its tensors may be on the device meta, without memory.
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
    """The optimizer's state by "parameter|key", on the CPU of rank 0.

    It is empty on other ranks, and for plain SGD.
    """
    state: Any = get_optimizer_state_dict(
        model, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    flat = {}
    for name, entries in state.get("state", {}).items():
        for key, value in entries.items():
            flat[f"{name}{_SEPARATOR}{key}"] = torch.as_tensor(value).contiguous()
    return flat


def save_optimizer(state: dict[str, Tensor], path: Path) -> None:
    """Write what ``gather_optimizer`` gave to rank 0."""
    save_file(state, path)


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Put the state of ``path`` into the shards of ``optimizer``.

    Each rank reads the file and keeps its part. Hyper-parameters are the run's, not the file's.
    """
    entries: dict[str, dict[str, Tensor]] = {}
    for name, tensor in load_file(path).items():
        parameter, key = name.split(_SEPARATOR)
        entries.setdefault(parameter, {})[key] = tensor
    if not entries:  # plain SGD has no state, and the library refuses to load an empty one
        return
    names = {parameter: name for name, parameter in model.named_parameters()}
    groups: list[Any] = []
    for group in optimizer.param_groups:
        groups.append(group | {"params": [names[parameter] for parameter in group["params"]]})
    state: Any = {"state": entries, "param_groups": groups}
    set_optimizer_state_dict(
        model,
        optimizer,
        state,
        options=StateDictOptions(full_state_dict=True, cpu_offload=False),
    )
