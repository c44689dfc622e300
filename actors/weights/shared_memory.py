"""Weights through files in shared memory.

Rank 0 of the learners writes one file per version (``bi_ray.policy.published``). The engines of
that node read it where it is; every other node fetches it once, through a ``WeightOwner`` on the
publishing node. What an engine does with its running requests meanwhile is the worker's matter
(``RolloutWorker.sync``): it is paused when weights are loaded.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import ray
from ray.exceptions import RayActorError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from actors.weights.base import Announcement, WeightSyncError
from bi_ray.files.atomic import remove_leftovers, write_whole
from bi_ray.files.private import PrivacyError
from bi_ray.policy.published import (
    WeightOwner,
    make_weights_directory,
    published_file,
    weights_directory,
)
from bi_ray.policy.version import PolicyVersion

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM

EXTENSION = "actors.rollout.engine_extension.WeightExtension"  # of an engine that can read a file
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FileAnnouncement:
    """The weights of a version are in a file.

    Attributes:
        version: the announced version.
        node_id: Ray node that has the file.
        path: absolute path of the safetensors file on that node.
    """

    version: PolicyVersion
    node_id: str
    path: str

    def for_worker(self, index: int) -> Self:
        """The same for every worker."""
        return self


def announce(version: PolicyVersion, path: Path, node_id: str | None = None) -> FileAnnouncement:
    """Announce the weights in the file ``path`` of node ``node_id``; None: of this node."""
    if node_id is None:
        node_id = ray.get_runtime_context().get_node_id()
    return FileAnnouncement(version, node_id, str(path.absolute()))


class RunWeightFiles:
    """The ``PublishedWeights`` of one run; other nodes are asked through their owners.

    Args:
        run_id: names the run's folder on every node.
        here: Ray node of this process.
        timeout_s: how long other nodes may take.
    """

    def __init__(self, run_id: str, here: str, timeout_s: float) -> None:
        self._directory = weights_directory(run_id)
        self._here = here
        self._timeout_s = timeout_s

    async def release(self, announcement: Announcement) -> None:
        """See ``PublishedWeights``.

        Raises:
            TimeoutError, RayActorError: the node that has the files does not answer.
        """
        if not isinstance(announcement, FileAnnouncement):
            return
        if announcement.node_id == self._here:
            WeightOwner(self._directory).release(announcement.version)
            return
        owner = owner_on(announcement.node_id, self._directory)
        async with asyncio.timeout(self._timeout_s):
            await owner.release.remote(announcement.version)

    async def clear(self) -> None:
        """Remove everything on this node and, as far as they answer, on all others."""
        WeightOwner(self._directory).clear()
        others = [node for node in _living_nodes() if node != self._here]
        if not others:
            return
        calls = [owner_on(node, self._directory).clear.remote() for node in others]
        try:
            async with asyncio.timeout(self._timeout_s):
                await asyncio.gather(*calls)
        except (TimeoutError, RayActorError):
            log.warning("weights may stay in %s on another node", self._directory, exc_info=True)


def _living_nodes() -> list[str]:
    if not ray.is_initialized():
        return []
    return [node["NodeID"] for node in ray.nodes() if node["Alive"]]


def owner_on(node_id: str, directory: Path) -> Any:
    """The actor that looks after ``directory`` on a node; the first who asks starts it."""
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
    """The ``WeightSync`` of workers whose engines read files.

    Args:
        copies: folder for files from other nodes, from ``new_copies_directory``; the same for all
            workers of a pool.
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
            path = await self._fetched(announcement)
        await load_file(engine, path, str(announcement.version), timeout_s)

    async def _fetched(self, announcement: FileAnnouncement) -> str:
        """The file's copy on this node.

        Raises:
            WeightSyncError: it cannot be fetched.
        """
        try:
            return await self._local_copy(announcement)
        except (OSError, PrivacyError, RayError) as error:
            cause = error.cause if isinstance(error, RayTaskError) else error
            raise WeightSyncError(
                f"version {announcement.version} was not fetched from node "
                f"{announcement.node_id}: {cause}"
            ) from error

    async def _local_copy(self, announcement: FileAnnouncement) -> str:
        """Fetch the file, unless another worker of this node has, and remove older copies."""
        make_weights_directory(self.copies)
        target = published_file(self.copies, announcement.version)
        # The lock is freed by the end of this block, or of this process.
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
    """Replace all weights of a paused engine by those of a safetensors file of this node.

    Args:
        engine: built with ``EXTENSION``.
        path: the file.
        version: of its weights, for messages.
        timeout_s: how long it may take.

    Raises:
        WeightSyncError: see ``WeightSync.load``.
    """
    try:
        await engine.collective_rpc("load_weight_file", timeout=timeout_s, args=(str(path),))
    except Exception as error:  # vLLM passes on whatever happened in the engine as a bare Exception
        raise WeightSyncError(f"version {version} was not loaded: {error}") from error
