"""One version per answer: answers and weight updates exclude each other.

Every answer carries its version. It may be many sequences of the engine (``n``, several prompts),
and its header is sent before its first token. So draining the engine is not enough: an answer that
has begun holds the version until all of it is generated.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

VERSION_HEADER = "x-policy-version"
VERSION_FIELD = "policy_version"
# The version that the current answer has announced; the engine's stamps are compared with it.
announced_version: ContextVar[str | None] = ContextVar("announced_version", default=None)
# JSON strings have no line breaks, so this is where an event begins
_EVENT = re.compile(rb"^data: \{", re.MULTILINE)


class EngineBroken(RuntimeError):
    """The engine must not answer any more; another one replaces it."""


class MixedVersions(RuntimeError):
    """Tokens of an answer are not of the version that it has announced: a bug of ours."""


class VersionGate:
    """Lets any number of answers through, or one update.

    Args:
        version: of the weights that the engine holds at first.

    Attributes:
        version: of the weights that the engine holds.
        broken: why the weights are unknown, once an update has failed; else None.
    """

    def __init__(self, version: str) -> None:
        self.version = version
        self.broken: str | None = None
        self._answers = 0
        self._open = asyncio.Event()
        self._open.set()
        self._idle = asyncio.Event()
        self._idle.set()

    @asynccontextmanager
    async def answer(self) -> AsyncIterator[str]:
        """Hold the version for the time of one answer; waits while an update is due.

        Yields:
            The version.

        Raises:
            EngineBroken: an update failed.
        """
        # a loop: the next update may have begun before this task woke up
        while not self._open.is_set():
            await self._open.wait()
        if self.broken:
            raise EngineBroken(self.broken)
        self._answers += 1
        self._idle.clear()
        try:
            yield self.version
        finally:
            self._answers -= 1
            if not self._answers:
                self._idle.set()

    @asynccontextmanager
    async def update(self, version: str, timeout_s: float) -> AsyncIterator[None]:
        """Hold new answers back and let those in progress finish; the block then loads ``version``.

        An error of the block leaves the engine with unknown weights: every answer is refused from
        then on.

        Raises:
            TimeoutError: answers in progress took longer than ``timeout_s``; nothing has changed.
        """
        self._open.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
            try:
                yield
                self.version = version
            except BaseException as error:
                self.broken = f"version {version} was not loaded: {error}"
                raise
        finally:
            self._open.set()


class VersionMiddleware:
    """Runs each request of an ASGI application under the gate, and stamps header and body.

    Args:
        app: answers with JSON or with server-sent events, one whole event or more per message.
        gate: of the engine behind it.
    """

    def __init__(self, app: ASGIApp, gate: VersionGate) -> None:
        self.app = app
        self.gate = gate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        async with self.gate.answer() as version:
            announced_version.set(version)
            await self.app(scope, receive, _Stamp(send, version))


class _Stamp:
    """Passes messages on with the version in them; an error's body is left as it is."""

    def __init__(self, send: Send, version: str) -> None:
        self._send = send
        self._version = version
        self._field = f"{json.dumps(VERSION_FIELD)}: {json.dumps(version)}, ".encode()
        self._stamped = False
        self._events = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(raw=message["headers"])
            headers[VERSION_HEADER] = self._version
            del headers["content-length"]  # the body grows
            self._events = headers.get("content-type", "").startswith("text/event-stream")
            self._stamped = message["status"] != 200
        elif body := message.get("body"):
            message = {**message, "body": self._stamp(body)}
        await self._send(message)

    def _stamp(self, body: bytes) -> bytes:
        if self._events:
            return _EVENT.sub(lambda start: start[0] + self._field, body)
        if self._stamped or not body.startswith(b"{"):
            return body
        self._stamped = True
        return b"{" + self._field + body[1:]
