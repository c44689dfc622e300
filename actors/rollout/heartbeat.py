"""The heartbeat of a pool: finds workers that died in silence, and that no worker is left."""

from __future__ import annotations

import asyncio
import logging

from actors.rollout.background import start_watched
from actors.rollout.handle import WorkerLost, describe
from actors.rollout.member import Member
from actors.rollout.membership import Membership
from actors.rollout.worker_state import Clock, WorkerState
from bi_ray.config.rollout import RolloutConfig

log = logging.getLogger(__name__)


class Heartbeat:
    """Pings the workers in service.

    Args:
        membership: the workers.
        config: deadlines.
        clock: time in seconds.
    """

    def __init__(self, membership: Membership, config: RolloutConfig, clock: Clock) -> None:
        self._membership = membership
        self._config = config
        self._clock = clock
        self._in_service_at = 0.0  # when there last was a worker in service
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Beat from now on, until ``stop``; if that ever fails, the queue does."""
        self._in_service_at = self._clock()
        self._task = start_watched(
            self._beat_forever(), "heartbeat of the rollout pool", self._fail_queue
        )

    def stop(self) -> None:
        """Beat no more."""
        if self._task is not None:
            self._task.cancel()

    def _fail_queue(self, error: BaseException) -> None:
        """Without a heartbeat nobody would find dead workers: let the run end."""
        self._membership.queue.fail(
            f"the heartbeat of the rollout pool ended: {describe(error)}; see the log"
        )

    async def _beat_forever(self) -> None:
        while True:
            await asyncio.sleep(self._config.heartbeat_s)
            try:
                await self.beat()
            except Exception:  # the next beat may do better
                log.exception("a heartbeat of the rollout pool failed")

    async def beat(self) -> None:
        """Ping the workers in service once, and act on silence and on there being no worker."""
        in_service = [member for member in self._membership.members if member.is_in_service]
        await asyncio.gather(*(self._ping(member) for member in in_service))
        self._membership.queue.dispatch()
        self._act_on_absence()

    async def _ping(self, member: Member) -> None:
        handle = member.handle
        if handle is None:  # it ended since the round began
            return
        # Shorter than what makes a worker SUSPECT: a silent one must not hold up the round for the
        # others.
        limit_s = self._config.suspect_after_s / 2
        try:
            async with asyncio.timeout(limit_s):
                await handle.ping()
        except WorkerLost as error:
            if member.is_served_by(handle):
                self._membership.lose(member, "lost", error)
        except Exception as error:  # late, or cut off for now: silence will have its effect
            log.warning(
                "rollout worker %d does not answer: %s",
                member.number,
                describe(error),
                exc_info=True,
                extra={"worker": member.number},
            )
        else:
            if member.is_served_by(handle):
                member.health.heartbeat()
        self._act_on_silence(member)

    def _act_on_silence(self, member: Member) -> None:
        if not member.is_in_service:
            return
        member.health.tick()
        if member.state is WorkerState.DEAD:
            silence = WorkerLost(f"silent for {self._config.dead_after_s:g} s")
            self._membership.count("silent", member, silence)
            member.end(silence)
            self._membership.replace(member)

    def _act_on_absence(self) -> None:
        """After ``no_engine_timeout_s`` without any engine, fail the groups that wait for one."""
        now = self._clock()
        if any(member.is_in_service for member in self._membership.members):
            self._in_service_at = now
            return
        limit_s = self._config.no_engine_timeout_s
        if now - self._in_service_at > limit_s:
            reason = self._membership.start_fault or "no reason is known yet"
            self._membership.queue.fail(
                f"no rollout engine for {limit_s:g} s (rollout.no_engine_timeout_s); "
                f"the last one did not start: {reason}"
            )
