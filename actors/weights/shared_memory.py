"""How the learners' weights get into the engines: one interface, two ways, chosen by
``rollout.weight_sync``.

``shared_memory``: rank 0 of the learners writes one safetensors file per version under
``SHARED_MEMORY/<run>/``, a folder of this user alone; engines on that node read it, other nodes
fetch it once each through a ``WeightOwner`` on the publishing node. Files older than what every
engine holds are removed. ``nccl``: vLLM's own transfer engine, GPU to GPU.

An engine drains before it takes new weights (``RolloutWorker.sync``), so neither way sees a running
request.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import ray
from ray.exceptions import RayActorError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.weights.base import EXTENSION, Announcement, WeightSyncError
from bi_ray.files.atomic import remove_leftovers, write_whole
from bi_ray.policy.published import _SUFFIX, WeightOwner, make_weights_directory, weights_directory
from bi_ray.policy.version import PolicyVersion

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

log = logging.getLogger(__name__)


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
    """Announce the weights in the file ``path``, which lies on this node unless ``node_id`` names
    another one.
    """
    return FileAnnouncement(
        version, node_id or ray.get_runtime_context().get_node_id(), str(path.absolute())
    )


class RunWeightFiles:
    """The published weights of one run, seen from the driver's node: other nodes are asked through
    their owners.
    """

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
        others = [
            node["NodeID"] for node in nodes if node["Alive"] and node["NodeID"] != self._here
        ]
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


class SharedMemorySync:
    """Engines read the published file by a method of ``WeightExtension``.

    Args:
        copies: folder for files from other nodes; a folder per pool, so that no file of an earlier
            one is mistaken.
    """

    def __init__(self, copies: Path) -> None:
        self.copies = copies

    def engine_options(self) -> dict[str, Any]:
        """The extension that can read a file."""
        return {"worker_extension_cls": EXTENSION}

    async def load(
        self, engine: AsyncLLM, announcement: FileAnnouncement, timeout_s: float
    ) -> None:
        """See ``WeightSync.load``."""
        path = announcement.path
        if announcement.node_id != ray.get_runtime_context().get_node_id():
            path = await self._local_copy(announcement)
        await load_file(engine, path, str(announcement.version), timeout_s)

    async def _local_copy(self, announcement: FileAnnouncement) -> str:
        """Fetch the file unless another worker of this node has; older copies go."""
        make_weights_directory(self.copies)
        target = self.copies / f"{announcement.version}{_SUFFIX}"
        # freed by the end of this block, or of this process
        with open(self.copies / "lock", "w") as lock:
            await asyncio.to_thread(fcntl.flock, lock, fcntl.LOCK_EX)
            if not target.exists():
                await self._fetch(announcement, target)
                WeightOwner(self.copies).release(announcement.version, spare=False)
        return str(target)

    async def _fetch(self, announcement: FileAnnouncement, target: Path) -> None:
        owner = owner_on(announcement.node_id, self.copies.parent)
        remove_leftovers(self.copies)
        with (
            write_whole(target, durable=False, mode=0o600) as fresh,
            open(fresh, "wb") as file,
        ):
            while chunk := await owner.read.remote(announcement.path, file.tell()):
                file.write(chunk)


async def load_file(engine: AsyncLLM, path: str | Path, version: str, timeout_s: float) -> None:
    """Replace all weights of an idle engine, built with ``EXTENSION``, by those of a safetensors
    file of this node.

    Raises:
        WeightSyncError: see ``WeightSync.load``.
    """
    try:
        await engine.collective_rpc("load_weight_file", timeout=timeout_s, args=(str(path),))
    except Exception as error:  # vLLM passes on whatever happened in the engine as a bare Exception
        raise WeightSyncError(f"version {version} was not loaded: {error}") from error


# NCCL
