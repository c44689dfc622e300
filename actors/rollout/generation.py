"""One call of ``RolloutPool.generate``: each group is asked for until it has an answer.

What a worker fails to answer is asked again elsewhere; what a request itself does wrong is not. A
group that takes much longer than those it came with gets a second copy on another worker, and the
first answer counts.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from actors.rollout.group_history import GroupHistory
from actors.rollout.handle import WORKER_FAULTS, RequestError, WorkerHandle, WorkerLost
from actors.rollout.late_groups import LateGroups
from actors.rollout.member import Member
from actors.rollout.membership import Membership
from actors.rollout.worker_state import Clock
from bi_ray.batches.rollout import Group, GroupRequest
from bi_ray.config.rollout import RolloutConfig

FailureKind = Literal["data", "infrastructure"]
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FailedGroup:
    """A request without an answer; never to be taken for a wrong answer.

    Attributes:
        key: of the request.
        kind: ``data``: the request is at fault, also where engine after engine crashed on it;
            ``infrastructure``: workers failed on it too often, or were ended over it.
        reason: one line.
    """

    key: str
    kind: FailureKind
    reason: str


@dataclass(eq=False, slots=True)
class _Copy:
    """One copy of a group.

    Attributes:
        member: who has it; None while it waits for a worker.
        began: when that worker got it, by the pool's clock.
    """

    member: Member | None = None
    began: float = 0.0


_Answers = Mapping[asyncio.Task[Group | FailedGroup], _Copy]


class Generation:
    """The groups of one ``RolloutPool.generate``.

    Args:
        membership: the workers.
        config: deadlines and thresholds.
        clock: time in seconds.
        groups: how many groups there are.
        on_group: called with each group as it is finished.
    """

    def __init__(
        self,
        membership: Membership,
        config: RolloutConfig,
        clock: Clock,
        groups: int,
        on_group: Callable[[Group], None] | None = None,
    ) -> None:
        self._membership = membership
        self._queue = membership.queue
        self._config = config
        self._clock = clock
        self._on_group = on_group
        self._late = LateGroups(groups, config.redispatch_least_s)

    async def answer(self, request: GroupRequest) -> Group | FailedGroup:
        """Sample one group."""
        history, first = GroupHistory(), _Copy()
        task = asyncio.create_task(self._ask(request, first, history))
        copies = {task: first}
        try:
            slow = await self._slow_worker(task, first, history)
            if slow is not None:
                log.info(
                    "group %s takes long on worker %d; another one is asked",
                    request.key,
                    slow.number,
                    extra={"worker": slow.number},
                )
                self._membership.tally.redispatched += 1
                second = _Copy()
                copies[asyncio.create_task(self._ask(request, second, history, slow))] = second
            answer = await _first_group(copies)
        finally:
            for copy in copies:
                copy.cancel()
        self._finish(request, first, answer)
        return answer

    def _finish(self, request: GroupRequest, first: _Copy, answer: Group | FailedGroup) -> None:
        if isinstance(answer, FailedGroup):
            self._membership.tally.failures[answer.kind] += 1
            kind, reason = answer.kind, answer.reason
            log.info("group %s has no answer, %s failure: %s", request.key, kind, reason)
            return
        self._late.finished(self._clock() - first.began)
        if self._on_group is not None:
            self._on_group(answer)

    # A second copy

    async def _slow_worker(
        self, task: asyncio.Task[Group | FailedGroup], copy: _Copy, history: GroupHistory
    ) -> Member | None:
        """Wait until a copy is finished (None), or its worker is late and another one has room."""
        factor = self._config.redispatch_factor
        if factor is None:
            await asyncio.wait({task})
            return None
        while not task.done():
            member = copy.member
            if member is not None and not history.must_be_alone:
                is_late = self._late.is_late(self._clock() - copy.began, factor)
                if is_late and self._queue.other_has_room(member):
                    return member
            await asyncio.wait({task}, timeout=self._config.redispatch_least_s / 10)
        return None

    # Attempts

    async def _ask(
        self,
        request: GroupRequest,
        copy: _Copy,
        history: GroupHistory,
        other_than: Member | None = None,
    ) -> Group | FailedGroup:
        """Ask worker after worker for a group, until it is there or its history gives it up.

        Args:
            request: the group.
            copy: which copy of it; records who has it.
            history: of all copies.
            other_than: ask any worker but this one.
        """
        samples = request.sampling.samples
        avoid: frozenset[int] = frozenset()
        if other_than is not None:
            avoid = frozenset({other_than.number})
        while True:
            reason = history.given_up(self._config.group_attempts)
            if reason is not None:
                kind: FailureKind = "data" if history.is_at_fault else "infrastructure"
                return FailedGroup(request.key, kind, reason)
            copy.member = None
            member = await self._queue.acquire(
                samples, avoid, other_than is not None, history.must_be_alone
            )
            try:
                handle = member.handle
                if handle is None or not member.is_at_work:
                    continue  # it ended before this task had its turn
                copy.member, copy.began = member, self._clock()
                return await self._call(request, member, handle)
            except WORKER_FAULTS as error:
                history.add(member.number, error)
                avoid |= {member.number}
                if member.handle is handle:
                    self._blame(member, error)
            finally:
                self._queue.release(member, samples)

    async def _call(
        self, request: GroupRequest, member: Member, handle: WorkerHandle
    ) -> Group | FailedGroup:
        """One attempt.

        Raises:
            WorkerFailed, TimeoutError: the worker is at fault.
        """
        try:
            async with asyncio.timeout(self._config.generate_timeout_s):
                group: Group = await member.answer(handle.generate(request))
        except RequestError as error:
            return FailedGroup(request.key, "data", str(error))
        except WORKER_FAULTS:
            raise
        except Exception:
            number = member.number
            log.exception(
                "a bug met by group %s on worker %d", request.key, number, extra={"worker": number}
            )
            raise
        member.generated_tokens += sum(len(sample.tokens) for sample in group.samples)
        return group

    def _blame(self, member: Member, error: Exception) -> None:
        """A lost worker is DEAD; any other has to answer a ping before it gets more work."""
        if isinstance(error, WorkerLost) and member.is_in_service:
            self._membership.lose(member, "lost", error)
            return
        self._membership.count("generate", member, error)
        member.health.failed()


async def _first_group(copies: _Answers) -> Group | FailedGroup:
    """The first answer that is a group; the last failure if none is.

    A copy fails only when the group is given up. Another copy that a worker has may still succeed;
    one that waits for a worker is of no use any more, and there may never be a worker for it.
    """
    left = set(copies)
    while True:
        done, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
        answers = [task.result() for task in done]
        for answer in answers:
            if isinstance(answer, Group):
                return answer
        left = {task for task in left if copies[task].member is not None}
        if not left:
            return answers[0]
