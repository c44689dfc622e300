"""The verifier as a stateless Ray actor that restarts by itself, and a client that outlives it."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from bi_ray.config.run import RunConfig
from bi_ray.tasks.registry import build_task
from bi_ray.verification.verdicts import DataFailure, Verdict, VerificationItem, Verifier

_ATTEMPTS = 5  # to score one sample over which the actor dies
_PAUSE_S = 0.2  # between two calls to an actor that is coming back

log = logging.getLogger(__name__)


class VerifierUnavailable(RuntimeError):
    """The verifier did not come back in time: an infrastructure failure."""


class VerifierClient:
    """Starts a verifier and calls it, with deadlines; lives inside an async actor.

    Args:
        config: the run: its task, reward function, format reward and time limits.
    """

    def __init__(self, config: RunConfig) -> None:
        self.config = config.verifier
        task = build_task(config.task, config.seeds.data)
        # It reserves no CPU: it works while the engines wait.
        actor = ray.remote(Verifier).options(num_cpus=0, max_restarts=-1, max_task_retries=0)
        self.handle: Any = actor.remote(task, config.verifier, config.rl.format_reward)
        self._one_call = asyncio.Lock()  # what ends the process over one batch must not hit another

    def close(self) -> None:
        """End the actor."""
        ray.kill(self.handle)

    async def ready(self) -> int:
        """Wait for the actor, for twice ``verifier.start_timeout_s``.

        Returns:
            the identifier of its process.

        Raises:
            VerifierUnavailable: it is not there in time, or its constructor failed.
        """
        limit_s = 2 * self.config.start_timeout_s  # the actor, and the process in which it judges
        deadline = time.monotonic() + limit_s
        fault: Exception = TimeoutError("no reply")
        while (left_s := deadline - time.monotonic()) > 0:
            try:
                return await self._within(left_s, self.handle.ready.remote())
            except TimeoutError as error:
                fault = error
            except RayActorError as error:
                if error.actor_init_failed:
                    raise VerifierUnavailable(
                        f"the verifier does not start: {_last_line(error)}"
                    ) from error
                fault = error
            await asyncio.sleep(_PAUSE_S)
        raise VerifierUnavailable(
            f"the verifier did not start within {limit_s:g} s (twice verifier.start_timeout_s): "
            f"{_last_line(fault)}"
        ) from fault

    async def score(self, items: Sequence[VerificationItem]) -> list[Verdict | DataFailure]:
        """A verdict or a data failure per item, in order.

        Items go to the actor in blocks that fit into ``batch_timeout_s`` even if each item takes
        ``sample_timeout_s``: the actor ends what a response makes hang, so only a fault of the
        machine makes a block late or kills the actor. Then that block is scored again, one item at
        a time.

        Waits for earlier calls, then for the actor; every call to it has a deadline.

        Raises:
            VerifierUnavailable: see ``ready``; or it dies over and over.
        """
        size = max(1, int(self.config.batch_timeout_s / self.config.sample_timeout_s))
        outcomes: list[Verdict | DataFailure] = []
        async with self._one_call:
            for first in range(0, len(items), size):
                outcomes += await self._score_block(items[first : first + size])
        return outcomes

    async def _score_block(self, items: Sequence[VerificationItem]) -> list[Verdict | DataFailure]:
        limit_s = 2 * self.config.start_timeout_s + self.config.batch_timeout_s
        try:
            return await self._within(limit_s, self.handle.score.remote(list(items)))
        except TimeoutError:
            log.warning(
                "verifier: %d samples took over %g s; judging them one by one",
                len(items),
                limit_s,
                exc_info=True,
            )
            await self._restart()
        except RayActorError:
            log.warning(
                "verifier: its actor died on %d samples; judging them one by one",
                len(items),
                exc_info=True,
            )
            await self.ready()
        return [await self._score_alone(item) for item in items]

    async def _score_alone(self, item: VerificationItem) -> Verdict | DataFailure:
        # Longer than the actor's own limits: a new process, its first call, and this one.
        limit_s = 3 * self.config.start_timeout_s + self.config.sample_timeout_s
        for _ in range(_ATTEMPTS):
            try:
                outcomes = await self._within(limit_s, self.handle.score.remote([item]))
                return outcomes[0]
            except TimeoutError:
                log.warning("verifier: one sample took over %g s", limit_s, exc_info=True)
                await self._restart()
            except RayActorError:
                log.warning("verifier: its actor died on one sample", exc_info=True)
                await self.ready()
        raise VerifierUnavailable(
            f"the verifier died, or did not answer, {_ATTEMPTS} times on one sample"
        )

    async def _restart(self) -> None:
        ray.kill(self.handle, no_restart=False)
        await self.ready()

    @staticmethod
    async def _within(seconds: float, reference: Any) -> Any:
        try:
            return await asyncio.wait_for(asyncio.wrap_future(reference.future()), seconds)
        except RayTaskError as error:
            raise VerifierUnavailable(f"the verifier failed: {error.cause}") from error


def _last_line(error: Exception) -> str:
    """What went wrong, without the traceback that Ray puts before it."""
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
