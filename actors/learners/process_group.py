"""The learners' process group, formed as Ray Train does, except for who can reach its rendezvous.

PyTorch's own rendezvous (``env://``) listens on every interface of rank 0's machine, and whoever
reaches it can read and change it. Here it listens at the address of rank 0's Ray node only, which
is loopback under a local Ray.
"""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import Any

import ray
import torch
from ray.train._internal.base_worker_group import BaseWorkerGroup
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend

_listener: socket.socket | None = None  # of rank 0, from ``_listen`` until the store has it


class NodeTorchConfig(TorchConfig):
    """A ``TorchConfig`` whose rendezvous listens at the node's address."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What Ray Train calls when workers have started and when they end."""
        return _NodeTorchBackend


class _NodeTorchBackend(_TorchBackend):
    def on_start(self, worker_group: BaseWorkerGroup, backend_config: Any) -> None:
        worker_group.execute(_set_torch_distributed_env_vars)
        host, port = worker_group.execute_single(0, _listen)
        ranks = len(worker_group)
        joined: list[Any] = []
        for rank in range(ranks):
            arguments = (host, port, rank, ranks, backend_config.timeout_s)
            joined.append(worker_group.execute_single_async(rank, _join, *arguments))
        # forming the store and forming the group may take timeout_s each
        ray.get(joined, timeout=2 * backend_config.timeout_s)


def _listen() -> tuple[str, int]:
    """Open the socket of the rendezvous on rank 0; returns its host and port."""
    global _listener
    host = ray.util.get_node_ip_address()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    _listener = socket.create_server((host, 0), family=family)
    return host, _listener.getsockname()[1]


def _join(host: str, port: int, rank: int, ranks: int, timeout_s: int) -> None:
    """Join the group on one rank; rank 0 serves its store on the socket of ``_listen``."""
    timeout = timedelta(seconds=timeout_s)
    descriptor = None
    if rank == 0 and _listener is not None:
        descriptor = _listener.detach()
    store = torch.distributed.TCPStore(
        host, port, ranks, is_master=rank == 0, timeout=timeout, master_listen_fd=descriptor
    )
    backend = "nccl" if ray.train.torch.get_device().type == "cuda" else "gloo"
    torch.distributed.init_process_group(
        backend, store=store, rank=rank, world_size=ranks, timeout=timeout
    )
