"""What a plan knows of the machines: peaks from data sheets, or measured here in a few seconds.

A device is a GPU, or one core of a CPU while the others work too. Every rate is per second and in
one direction.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from bi_ray.config.base import Config, ConfigError

Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
Cost = Annotated[float, Field(ge=0)]


class Hardware(Config):
    """A kind of node.

    The first block comes from data sheets or ``measure``; the others are named assumptions.
    """

    name: str
    """Name of the hardware."""
    kind: str = "gpu"
    """gpu, or cpu."""
    flops_bfloat16: Rate
    """Dense matrix products of a device in bfloat16."""
    flops_float32: Rate
    """The same in float32."""
    decode_flops: Rate | None = None
    """Products with few rows, if they were measured; None: the same as the above."""
    memory_bytes: Rate
    """Memory of a device."""
    memory_bytes_per_s: Rate
    """Bandwidth of a device's memory."""
    link_bytes_per_s: Rate
    """From a device to the others of its node."""
    network_bytes_per_s: Rate
    """From a node to the others, all its cards together."""
    host_link_bytes_per_s: Rate
    """Between a device and its node's memory."""
    host_memory_bytes: Rate
    """Memory of a node."""
    file_write_bytes_per_s: Rate = 1.5e9
    """By one process, into shared memory."""
    file_read_bytes_per_s: Rate = 2.5e9
    """By one engine, from shared memory into its weights."""
    object_bytes_per_s: Rate = 1e9
    """Between two nodes through Ray's object store, by one process."""
    devices_per_node: Annotated[int, Field(ge=1)] = 8
    """Devices of a node."""

    training_mfu: Share = 0.4
    """Share of the peak in forward and backward passes."""
    prefill_mfu: Share = 0.5
    """Share of the peak while an engine is bound by it."""
    decode_bandwidth_share: Share = 0.6
    """Share of the memory's bandwidth while an engine is bound by it."""
    network_share: Share = 0.7
    """Share of link and network in collectives."""

    activation_passes: Cost = 0.0
    """How often activations are moved, where ``training_mfu`` does not include it."""
    engine_step_s: Cost = 1e-3
    """Of one step of an engine: scheduling and sampling."""
    engine_layer_s: Cost = 8e-5
    """Of each layer in a step of an engine: kernel launches."""
    engine_graph_layer_s: Cost = 1e-5
    """The same on a GPU with CUDA graphs (``rollout.enforce_eager: false``)."""
    engine_sequence_s: Cost = 1e-5
    """Of each sequence in a step of an engine."""
    learner_layer_s: Cost = 3e-4
    """Of each layer in a forward and backward pass: kernel launches."""
    sync_s: Cost = 0.1
    """Of a weight sync of no bytes: calls, a drained engine."""
    step_s: Cost = 0.1
    """Of a step that does nothing: batch transport, bookkeeping."""


# Peaks, memory and links of the SXM boards: NVIDIA's data sheets of A100, H100 and H200, dense and
# not sparse rates. NVLink's and PCIe's published figures count both directions: half of them here.
# The network is that of DGX A100 (eight cards of 200 Gb/s) and of DGX H100 and H200 (eight of 400
# Gb/s); 2 TB of host memory are DGX's too. The other figures are this project's assumptions.
HARDWARE = {
    "a100": Hardware(
        name="a100",
        flops_bfloat16=312e12,
        flops_float32=19.5e12,
        memory_bytes=80e9,
        memory_bytes_per_s=2.039e12,
        link_bytes_per_s=300e9,
        network_bytes_per_s=200e9,
        host_link_bytes_per_s=32e9,
        host_memory_bytes=2e12,
    ),
    "h100": Hardware(
        name="h100",
        flops_bfloat16=989e12,
        flops_float32=67e12,
        memory_bytes=80e9,
        memory_bytes_per_s=3.35e12,
        link_bytes_per_s=450e9,
        network_bytes_per_s=400e9,
        host_link_bytes_per_s=64e9,
        host_memory_bytes=2e12,
    ),
    "h200": Hardware(
        name="h200",
        flops_bfloat16=989e12,
        flops_float32=67e12,
        memory_bytes=141e9,
        memory_bytes_per_s=4.8e12,
        link_bytes_per_s=450e9,
        network_bytes_per_s=400e9,
        host_link_bytes_per_s=64e9,
        host_memory_bytes=2e12,
    ),
    # Measured by benchmarks/plan_check.py on two cores of an AMD EPYC (Zen 4); --measure replaces
    # what it can.
    "cpu": Hardware(
        name="cpu",
        kind="cpu",
        flops_bfloat16=94e9,
        flops_float32=94e9,
        decode_flops=75e9,
        memory_bytes=12e9,
        memory_bytes_per_s=15e9,
        link_bytes_per_s=1e9,
        network_bytes_per_s=1e9,
        host_link_bytes_per_s=15e9,
        host_memory_bytes=24e9,
        file_write_bytes_per_s=1.8e9,
        training_mfu=1.0,
        prefill_mfu=0.88,
        decode_bandwidth_share=0.88,
        activation_passes=31,
        engine_step_s=0,
        engine_layer_s=8e-4,
        engine_sequence_s=1.8e-4,
        learner_layer_s=5.7e-3,
        sync_s=0.08,
        step_s=0.045,
        devices_per_node=2,
    ),
}


def load_hardware(name: str) -> Hardware:
    """Hardware by its name, or from a JSON file with the fields of ``Hardware``.

    Raises:
        ConfigError: it is neither, or a field of the file is not valid.
    """
    if name in HARDWARE:
        return HARDWARE[name]
    path = Path(name)
    if path.suffix != ".json":
        raise ConfigError(
            f"unknown hardware {name!r}; expected one of {', '.join(HARDWARE)}, or a .json file"
        )
    try:
        return Hardware.model_validate_json(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise ConfigError(f"{path}: {field}: {first['msg']}") from error


def measure(
    start: Hardware, hidden: int, intermediate: int, layers: int, sequences: int, tokens: int
) -> Hardware:
    """Time this machine's matrix products, memory and shared memory, in a few seconds.

    Args:
        start: source of what is not measured.
        hidden: width of the model.
        intermediate: width of its MLP.
        layers: number of layers. Each has matrices of its own, so that those of a small model stay
            in the cache, as they do in an engine.
        sequences: number of rows in an engine's products.
        tokens: number of rows in a learner's products.
    """
    import torch

    cores = len(os.sched_getaffinity(0))
    threads = torch.get_num_threads()
    torch.set_num_threads(cores)
    try:
        matrices = [torch.randn(hidden, intermediate) for _ in range(min(layers, 64))]
        trained = _product_rate(matrices, torch.randn(tokens, hidden)) / cores
        source, target = torch.ones(2**25), torch.empty(2**25)  # 128 MiB each, more than a cache
        copied = 2 * source.nbytes / _seconds(lambda: target.copy_(source)) / cores
        write, read = _file_rates(source)
        torch.set_num_threads(1)
        decoded = _product_rate(matrices, torch.randn(sequences, hidden))
    finally:
        torch.set_num_threads(threads)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    measured = {
        "name": f"this machine ({cores} cores)",
        "kind": "cpu",
        "flops_float32": trained,
        "flops_bfloat16": trained,
        "decode_flops": decoded,
        "memory_bytes_per_s": copied,
        "host_link_bytes_per_s": copied,
        "file_write_bytes_per_s": write,
        "file_read_bytes_per_s": read,
        "memory_bytes": memory / cores,
        "host_memory_bytes": memory,
        "devices_per_node": cores,
    }
    return start.model_copy(update=measured)


def _product_rate(matrices: list[Any], rows: Any) -> float:
    """FLOP/s of multiplying the rows by every matrix in turn."""
    import torch

    into = torch.empty(rows.shape[0], matrices[0].shape[1])
    took = _seconds(lambda: [torch.mm(rows, matrix, out=into) for matrix in matrices])
    return 2 * rows.shape[0] * sum(matrix.numel() for matrix in matrices) / took


def _seconds(work: Callable[[], object], least_s: float = 0.3) -> float:
    """Duration of the shortest of several rounds: other work on the machine only adds to it."""
    work()
    times: list[float] = []
    while len(times) < 3 or sum(times) < least_s:
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def _file_rates(tensor: Any) -> tuple[float, float]:
    """Bytes per second that one process writes to shared memory, and reads and copies from it."""
    from safetensors.torch import load_file, save_file

    folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=folder) as directory:
        file = Path(directory) / "weights.safetensors"
        write = _seconds(lambda: save_file({"weights": tensor}, file))
        read = _seconds(lambda: load_file(file)["weights"].clone())
    return tensor.nbytes / write, tensor.nbytes / read
