"""Whose fault an error is: the request's (400), the engine's (it is replaced) or ours (500).

The log has the traceback of every error that is turned into an answer.
"""

from __future__ import annotations

import json
import logging
import os
import sysconfig
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import INTERNAL_ERROR, ApiError, JsonObject
from serve.versions import EngineBroken, MixedVersions

logger = logging.getLogger("ray.serve")
_EVENT = b"data: "
_ROOT = Path(__file__).parents[1]
_OWN_CODE = tuple(str(_ROOT / package) + os.sep for package in ("serve", "actors", "bi_ray"))
_STANDARD_LIBRARY = sysconfig.get_path("stdlib") + os.sep
# Errors that our code raised below the application while the current answer was made.
_own_errors: ContextVar[list[Exception] | None] = ContextVar("own_errors", default=None)


def is_ours(error: BaseException) -> bool:
    """Whether our code raised an error, or called the standard library, which raised it.

    An error of vLLM, or of a library below it, may be due to what the request asks for; one of ours
    is a bug.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_ours, error.exceptions))
    while error.__cause__ is not None:
        error = error.__cause__
    innermost = ""  # file of the last frame outside of the standard library
    for frame, _ in traceback.walk_tb(error.__traceback__):
        file = frame.f_code.co_filename
        if not _is_standard_library(file):
            innermost = file
    return innermost.startswith(_OWN_CODE)


def _is_standard_library(file: str) -> bool:
    if file.startswith("<frozen"):
        return True
    return file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file


@contextmanager
def keeping_own_errors(refusals: type[Exception]) -> Iterator[None]:
    """Report errors of ours in the block to ``FaultMiddleware``.

    vLLM turns many of them into an answer of its own, with 400.

    Args:
        refusals: errors by which our code refuses a request; they are not bugs.
    """
    try:
        yield
    except refusals:
        raise
    except Exception as error:
        errors = _own_errors.get()
        if errors is not None and is_ours(error):
            errors.append(error)
        raise


class FaultMiddleware:
    """Answers in place of an application that failed, with an error that tells whose fault it was.

    An answer waits for its first piece of body. A stream whose first event is an error becomes an
    error itself, with its HTTP status. An error of ours is a 500, whatever the application makes of
    it.

    Args:
        app: answers with JSON or server-sent events; exceptions that it raises, and every status
            from 500 on, are looked into.
        engine_is_dead: whether the engine behind ``app`` is gone for good.
        fault_of_request: given the path and the body of a request that failed, what is wrong with
            the request itself; None if nothing is.
    """

    def __init__(
        self,
        app: ASGIApp,
        engine_is_dead: Callable[[], bool],
        fault_of_request: Callable[[str, bytes], Awaitable[RequestFault | None]],
    ) -> None:
        self._app = app
        self._engine_is_dead = engine_is_dead
        self._fault_of_request = fault_of_request

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface.

        Raises:
            EngineBroken: the engine ended before the answer began.
            Exception: ``app`` raised it in the middle of an answer.
        """
        request = _RecordedRequest(receive)
        own_errors: list[Exception] = []
        _own_errors.set(own_errors)
        answer = _HeldAnswer(send, own_errors)
        error: Exception | None = None
        try:
            await self._app(scope, request.receive, answer.send)
        except Exception as raised:  # a later line raises it again, logs it, or both
            error = raised
            if is_ours(raised):
                own_errors.append(raised)
        if answer.begun:
            if error is not None:
                # too late for another answer; the client sees that this one is not complete
                raise error
            return
        if error is None and not answer.error_status:
            return  # the client has left
        failure = _Failure(answer.error_status, answer.error_content, error)
        if own_errors:
            failure = _Failure(500, answer.error_content, own_errors[0], is_ours=True)
        status, content = await self._answer_to(failure, scope["path"], request.body)
        await _send_json(send, status, content)

    async def _answer_to(self, failure: _Failure, path: str, body: bytes) -> tuple[int, JsonObject]:
        """The status and the content that take the place of a failed answer's.

        Raises:
            EngineBroken: the engine is gone.
        """
        error = failure.error
        if self._engine_is_dead():
            raise EngineBroken("the engine's process ended") from error
        if error is None and failure.status < 500:
            return failure.status, failure.content
        if error is None and failure.status == 501:
            return _refusal(RequestFault(_message(failure.content)))
        if not failure.is_ours and not isinstance(error, MixedVersions):
            fault = await self._fault_of_request(path, body)
            if fault is not None:
                logger.warning("refused a request: %s", fault.message, exc_info=error)
                return _refusal(fault)
        logger.error("a request failed: %s", error or failure.content, exc_info=error)
        return 500, ApiError(500, INTERNAL_ERROR, "server_error").content


@dataclass(frozen=True, slots=True)
class _Failure:
    """How an application failed.

    Attributes:
        status: of its answer, 0 if it sent none.
        content: of its answer.
        error: what was raised, None if nothing was.
        is_ours: the error is a bug of ours.
    """

    status: int
    content: JsonObject
    error: Exception | None
    is_ours: bool = False


@dataclass(frozen=True, slots=True)
class RequestFault:
    """What is wrong with a request.

    Attributes:
        message: what to change.
        field: name of the field at fault, None if it is not known.
    """

    message: str
    field: str | None = None


def _refusal(fault: RequestFault) -> tuple[int, JsonObject]:
    return 400, ApiError(400, fault.message, param=fault.field).content


def _message(content: JsonObject) -> str:
    error = content.get("error")
    return str(error.get("message")) if isinstance(error, dict) else "this is not implemented"


class _RecordedRequest:
    """A request whose body can be read again."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.body = b""

    async def receive(self) -> Message:
        message = await self._receive()
        self.body += message.get("body", b"")
        return message


class _HeldAnswer:
    """Keeps an answer back until its first piece of body shows whether it is an error.

    Args:
        send: gets the answer if it is not an error to look into.
        own_errors: what our code raised so far; with any, the answer is an error.

    Attributes:
        begun: something was sent.
        error_status: HTTP status of the error that was kept back; 0: none was.
        error_content: its JSON.
    """

    def __init__(self, send: Send, own_errors: list[Exception]) -> None:
        self._send = send
        self._own_errors = own_errors
        self._start: Message = {}  # the message that comes before any body
        self.begun = False
        self.error_status = 0
        self.error_content: JsonObject = {}

    async def send(self, message: Message) -> None:
        if self.begun:
            await self._send(message)
        elif message["type"] == "http.response.start":
            self._start = message
        elif not self.error_status and not self._is_error(message.get("body", b"")):
            self.begun = True
            await self._send(self._start)
            await self._send(message)

    def _is_error(self, body: bytes) -> bool:
        """Whether the answer is an error that is not sent as it is; if so, keeps it."""
        if self._own_errors:
            self.error_status = 500
            return True
        status = self._start["status"]
        is_event = body.startswith(_EVENT)
        if status < 500 and not is_event:
            return False
        if is_event:
            body = body.removeprefix(_EVENT).partition(b"\n")[0]
        content = _json_object(body)
        if status < 500:
            error = content.get("error")
            if not isinstance(error, dict):
                return False
            status = _status_of(error)
        self.error_status = status
        self.error_content = content
        return True


def _status_of(error: Any) -> int:
    """The HTTP status in the ``code`` of vLLM's errors."""
    code = error.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _json_object(body: bytes) -> JsonObject:
    """The JSON object in a body; empty if there is none."""
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    return content


async def _send_json(send: Send, status: int, content: JsonObject) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
