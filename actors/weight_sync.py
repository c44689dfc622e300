"""How the learners' weights get into the engines: one interface, two ways, chosen by ``rollout.weight_sync``.

``shared_memory``: rank 0 of the learners writes one safetensors file per version under ``SHARED_MEMORY/<run>/``, a
folder of this user alone; engines on that node read it, other nodes fetch it once each through a ``WeightOwner`` on the
publishing node. Files older than what every engine holds are removed. ``nccl``: vLLM's own transfer engine, GPU to GPU.

An engine drains before it takes new weights (``RolloutWorker.sync``), so neither way sees a running request.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bi_ray.config import RolloutConfig
from bi_ray.files import remove_leftovers, temporary_name
from bi_ray.policy.checkpoint import SPARE
from bi_ray.policy.rollout import PolicyVersion
from bi_ray.private import open_private, private_folder

if TYPE_CHECKING:
    from torch import Tensor
    from vllm.v1.engine.async_llm import AsyncLLM

SHARED_MEMORY = Path(f"/dev/shm/bi_ray_{os.geteuid()}")
EXTENSION = "actors.engine_extension.WeightExtension"
log = logging.getLogger(__name__)
_CHUNK_BYTES = 64 * 2**20
_SUFFIX = ".safetensors"


class WeightSyncError(RuntimeError):
    """Weights could not be published or loaded; the message says what to change."""


class Announcement(Protocol):
    """Tells engines that a version is there, and how to get it. Plain data, a few hundred bytes."""

    @property
    def version(self) -> PolicyVersion:
        """The version that is announced."""

    def for_worker(self, index: int) -> Self:
        """What worker ``index`` of those that take part in this sync is told."""


class WeightSync(Protocol):
    """The engine's side of one way to get weights."""

    def engine_options(self) -> dict[str, Any]:
        """Arguments that the engine must be built with.

        Raises:
            WeightSyncError: this machine cannot do it.
        """

    async def load(self, engine: AsyncLLM, announcement: Any, timeout_s: float) -> None:
        """Replace all weights of an idle engine.

        Raises:
            WeightSyncError: it did not work; the engine's weights are unknown and it must not be used any more.
        """


def make_weight_sync(config: RolloutConfig, copies: Path) -> WeightSync:
    """The way that ``rollout.weight_sync`` names; ``copies`` is the folder for files from other nodes."""
    return SharedMemorySync(copies) if config.weight_sync == "shared_memory" else NcclSync()


# Shared memory


@dataclass(frozen=True, slots=True)
class FileAnnouncement:
    """A version lies in a file.

    Attributes:
        version: whose weights they are.
        node_id: Ray node that has the file.
        path: absolute path of the safetensors file on that node.
    """

    version: PolicyVersion
    node_id: str
    path: str

    def for_worker(self, index: int) -> Self:
        """Every worker is told the same."""
        return self


def announce(version: PolicyVersion, path: Path, node_id: str | None = None) -> FileAnnouncement:
    """Announce the weights in the file ``path``, which lies on this node unless ``node_id`` names another one."""
    return FileAnnouncement(version, node_id or ray.get_runtime_context().get_node_id(), str(path.absolute()))


def weights_directory(run_id: str) -> Path:
    """Where the weights of a run are published on each node, in memory; ``make_weights_directory`` makes it."""
    return SHARED_MEMORY / run_id


def make_weights_directory(directory: Path) -> None:
    """Make a folder for weights on this node, and ``SHARED_MEMORY`` around it for this user alone.

    Raises:
        PrivacyError: ``SHARED_MEMORY`` belongs to another user, or cannot be made.
    """
    if directory.is_relative_to(SHARED_MEMORY):
        private_folder(SHARED_MEMORY)
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)


class WeightOwner:
    """Looks after the published files of one run on one node; keeps no state beyond the folder itself."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def clear(self) -> None:
        """Remove everything, also what a crashed earlier command of the same run left behind."""
        shutil.rmtree(self.directory, ignore_errors=True)

    def release(self, oldest: PolicyVersion, spare: bool = True) -> None:
        """Remove the files of versions before ``oldest``: no engine needs them any more.

        ``spare``: one is kept, under another name, so that the next version is written over it. A file that somebody
        holds by a link of his own (``InfluenceMonitor``) is never that one.
        """
        for file in self.directory.glob(f"*{_SUFFIX}"):
            if parse_version(file.name.removesuffix(_SUFFIX)) < oldest:
                if spare and file.stat().st_nlink == 1:
                    file.replace(self.directory / SPARE)
                else:
                    file.unlink(missing_ok=True)

    def read(self, path: str, offset: int) -> bytes:
        """At most 64 MiB of a file from ``offset`` on; nothing at its end."""
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(_CHUNK_BYTES)


class RunWeightFiles:
    """The published weights of one run, seen from the driver's node: other nodes are asked through their owners."""

    def __init__(self, run_id: str, here: str, timeout_s: float) -> None:
        self._directory = weights_directory(run_id)
        self._here = here
        self._timeout_s = timeout_s

    async def release(self, announcement: Announcement) -> None:
        """Every engine holds this version or a later one: remove what is older."""
        if not isinstance(announcement, FileAnnouncement):
            return
        if announcement.node_id == self._here:
            WeightOwner(self._directory).release(announcement.version)
            return
        owner = owner_on(announcement.node_id, self._directory)
        async with asyncio.timeout(self._timeout_s):
            await owner.release.remote(announcement.version)

    async def clear(self) -> None:
        """Remove what lies on this node and, as far as they answer, on all others."""
        WeightOwner(self._directory).clear()
        nodes = ray.nodes() if ray.is_initialized() else []
        others = [node["NodeID"] for node in nodes if node["Alive"] and node["NodeID"] != self._here]
        calls = [owner_on(node, self._directory).clear.remote() for node in others]
        if not calls:
            return
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.gather(*calls)
        except (TimeoutError, RayActorError):
            log.warning("weights may stay in %s on another node", self._directory, exc_info=True)


def owner_on(node_id: str, directory: Path) -> Any:
    """The actor on a node that looks after ``directory`` there; started by whoever asks first."""
    return (
        ray.remote(WeightOwner)
        .options(
            name=f"weight_owner/{directory}/{node_id}",
            get_if_exists=True,
            num_cpus=0,
            max_restarts=-1,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False),
        )
        .remote(directory)
    )


def parse_version(text: str) -> PolicyVersion:
    """The version that ``str(version)`` wrote."""
    incarnation, step = text.split(".")
    return PolicyVersion(int(incarnation), int(step))


class SharedMemorySync:
    """Engines read the published file by a method of ``WeightExtension``.

    Args:
        copies: folder for files from other nodes; a folder per pool, so that no file of an earlier one is mistaken.
    """

    def __init__(self, copies: Path) -> None:
        self.copies = copies

    def engine_options(self) -> dict[str, Any]:
        """The extension that can read a file."""
        return {"worker_extension_cls": EXTENSION}

    async def load(self, engine: AsyncLLM, announcement: FileAnnouncement, timeout_s: float) -> None:
        """See ``WeightSync.load``."""
        path = announcement.path
        if announcement.node_id != ray.get_runtime_context().get_node_id():
            path = await self._local_copy(announcement)
        await load_file(engine, path, str(announcement.version), timeout_s)

    async def _local_copy(self, announcement: FileAnnouncement) -> str:
        """Fetch the file unless another worker of this node has; older copies go."""
        make_weights_directory(self.copies)
        target = self.copies / f"{announcement.version}{_SUFFIX}"
        with open(self.copies / "lock", "w") as lock:  # freed by the end of this block, or of this process
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
            if not target.exists():
                await self._fetch(announcement, target)
                WeightOwner(self.copies).release(announcement.version, spare=False)
        return str(target)

    async def _fetch(self, announcement: FileAnnouncement, target: Path) -> None:
        owner = owner_on(announcement.node_id, self.copies.parent)
        remove_leftovers(self.copies)
        temporary = temporary_name(target)
        with open(temporary, "wb", opener=open_private) as file:
            while chunk := await owner.read.remote(announcement.path, file.tell()):
                file.write(chunk)
        temporary.rename(target)


async def load_file(engine: AsyncLLM, path: str | Path, version: str, timeout_s: float) -> None:
    """Replace all weights of an idle engine, built with ``EXTENSION``, by those of a safetensors file of this node.

    Raises:
        WeightSyncError: see ``WeightSync.load``.
    """
    try:
        await engine.collective_rpc("load_weight_file", timeout=timeout_s, args=(str(path),))
    except Exception as error:  # vLLM passes on whatever happened in the engine as a bare Exception
        raise WeightSyncError(f"version {version} was not loaded: {error}") from error


# NCCL


@dataclass(frozen=True, slots=True)
class NcclAnnouncement:
    """The learner sends a version to a group of GPUs that forms for it: membership may differ from sync to sync.

    Attributes:
        version: whose weights they are.
        master_address: host of the learner's rank 0, which is rank 0 of the group.
        master_port: free port there.
        world_size: workers of this sync, and one.
        names: parameters in the order in which they are sent.
        dtype_names: their types, for example ``bfloat16``.
        shapes: their full shapes.
        rank_offset: rank of the worker that reads this.
    """

    version: PolicyVersion
    master_address: str
    master_port: int
    world_size: int
    names: tuple[str, ...]
    dtype_names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    rank_offset: int = 1

    def for_worker(self, index: int) -> Self:
        """The ranks of the group: the sender, then the workers."""
        return replace(self, rank_offset=1 + index)


class NcclSync:
    """Engines receive weights by vLLM's NCCL transfer engine."""

    def engine_options(self) -> dict[str, Any]:
        """The transfer engine; and the extension, for the watch over the engine's process."""
        require_gpu()
        from vllm.config import WeightTransferConfig

        return {"worker_extension_cls": EXTENSION, "weight_transfer_config": WeightTransferConfig(backend="nccl")}

    async def load(self, engine: AsyncLLM, announcement: NcclAnnouncement, timeout_s: float) -> None:
        """See ``WeightSync.load``; the caller's deadline bounds it."""
        from vllm.distributed.weight_transfer.base import WeightTransferInitRequest, WeightTransferUpdateRequest

        group = {
            "master_address": announcement.master_address,
            "master_port": announcement.master_port,
            "rank_offset": announcement.rank_offset,
            "world_size": announcement.world_size,
            "packed": False,
        }
        weights = {
            "names": list(announcement.names),
            "dtype_names": list(announcement.dtype_names),
            "shapes": [list(shape) for shape in announcement.shapes],
        }
        await engine.init_weight_transfer_engine(WeightTransferInitRequest(init_info=group))
        await engine.start_weight_update()
        await engine.update_weights(WeightTransferUpdateRequest(update_info=weights))
        await engine.finish_weight_update()
        await engine.shutdown_weight_transfer_engine()


def send_weights(state: Mapping[str, Tensor], announcement: NcclAnnouncement) -> None:
    """The learner's side: rank 0 of the group sends ``state`` (on its GPU), in the order of the announcement.

    Blocks until every worker of the group has joined and received; run it beside ``RolloutPool.sync``.
    """
    require_gpu()
    import torch
    from vllm.distributed.weight_transfer.nccl_common import trainer_init

    group = trainer_init(
        {
            "master_address": announcement.master_address,
            "master_port": announcement.master_port,
            "world_size": announcement.world_size,
        }
    )
    for name in announcement.names:
        group.broadcast(state[name].contiguous(), src=0, stream=torch.cuda.current_stream())
    torch.cuda.current_stream().synchronize()
    group.destroy()


def require_gpu() -> None:
    """Refuse NCCL where it cannot work.

    Raises:
        WeightSyncError: no GPU is visible to this process.
    """
    import torch

    if not torch.cuda.is_available():
        where = os.environ.get("CUDA_VISIBLE_DEVICES", "not set")
        raise WeightSyncError(
            "rollout.weight_sync is nccl, but this process sees no GPU "
            f"(CUDA_VISIBLE_DEVICES: {where}); set rollout.gpus_per_worker, or weight_sync: shared_memory"
        )
