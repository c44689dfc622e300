"""The policy that the engines hold: brings weights to them, and knows the file they come from."""

from __future__ import annotations

from pathlib import Path

from actors.rollout.pool import RolloutPool
from actors.weights.shared_memory import announce
from bi_ray.policy.version import PolicyVersion


class EnginePolicy:
    """The weights of all engines of a pool.

    Args:
        pool: the engines; keeps their version.
        weights: the file that they were started with.

    Attributes:
        weights: the file that the engines have their weights from.
    """

    def __init__(self, pool: RolloutPool, weights: Path) -> None:
        self.weights = weights
        self._pool = pool

    @property
    def version(self) -> PolicyVersion:
        """The newest version that was announced to the engines."""
        return self._pool.version

    async def take(self, version: PolicyVersion, weights: Path, in_flight: bool = False) -> None:
        """Bring published weights to the engines.

        Waits for every engine to load them, or to miss ``rollout.sync_timeout_s``.

        Args:
            version: of the weights; no older than the current one.
            weights: a safetensors file that every node sees, or of this node's shared memory.
            in_flight: whether running requests continue under the new weights; else they are
                finished first.

        Raises:
            PoolError: the version is older than the current one, or no engine could load it.
        """
        await self._pool.sync(announce(version, weights), in_flight)
        self.weights = weights

    async def load(self, weights: Path) -> None:
        """Bring a policy from outside RL to the engines, as a new version; waits like ``take``."""
        await self.take(PolicyVersion(self.version.incarnation + 1, 0), weights)
