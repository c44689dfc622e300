"""The interface of every way in which weights reach the engines.

A learner publishes a version, the driver announces it to the workers (``Announcement``), each
worker loads it into its engine (``WeightSync``), and once all of them have it the driver lets go of
what is older (``PublishedWeights``). The pool knows these three and no implementation.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

from bi_ray.policy.version import PolicyVersion

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


class WeightSyncError(RuntimeError):
    """Weights could not be published or loaded; the message says what to change."""


class Announcement(Protocol):
    """Tells workers that a version exists, and how to get it. Plain data, a few hundred bytes."""

    @property
    def version(self) -> PolicyVersion:
        """The announced version."""

    def for_worker(self, index: int) -> Self:
        """The announcement for one worker: number ``index`` of those that take part in a sync."""


class WeightSync(Protocol):
    """A worker's side: brings announced weights into its engine."""

    def engine_options(self) -> dict[str, Any]:
        """Arguments that the engine must be built with.

        Raises:
            WeightSyncError: this machine cannot sync weights this way.
        """

    async def load(self, engine: AsyncLLM, announcement: Any, timeout_s: float) -> None:
        """Replace all weights of a paused engine.

        Raises:
            WeightSyncError: it failed. The engine's weights are unknown, so nobody may use it.
        """


class PublishedWeights(Protocol):
    """The driver's side: removes published weights that no engine needs any more."""

    async def release(self, announcement: Announcement) -> None:
        """Remove what is older than this version: every engine has it, or is past it."""

    async def clear(self) -> None:
        """Remove everything: no engine will ask again."""
