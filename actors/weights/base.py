"""One interface for every way in which weights get into the engines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, Self

from bi_ray.policy.version import PolicyVersion

if TYPE_CHECKING:
    from vllm.v1.engine.async_llm import AsyncLLM


EXTENSION = "actors.rollout.engine_extension.WeightExtension"


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
            WeightSyncError: it did not work; the engine's weights are unknown and it must not be
                used any more.
        """
