"""Whose fault an error is: the request's (400), the engine's (it is replaced) or the program's
(500, traceback).
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

from serve.errors import INTERNAL_ERROR
from serve.versions import EngineBroken, MixedVersions

logger = logging.getLogger("ray.serve")
_EVENT = b"data: "
_ROOT = Path(__file__).parents[1]
_OWN_CODE = tuple(str(_ROOT / package) + os.sep for package in ("serve", "actors", "bi_ray"))
_STANDARD_LIBRARY = sysconfig.get_path("stdlib") + os.sep
# Errors that this program raised below the application while the answer was made.
_own_errors: ContextVar[list[Exception] | None] = ContextVar("own_errors", default=None)


def is_ours(error: BaseException) -> bool:
    """Whether an error is this program's: raised by its code, or by the standard library where its
    code called it.

    An error of vLLM, or of a library below it, may be due to what the request asks for; one of ours
    is a bug.
    """
    if isinstance(error, BaseExceptionGroup):
        return any(map(is_ours, error.exceptions))
    while error.__cause__ is not None:
        error = error.__cause__
    files = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
    files = [file for file in files if not _is_standard_library(file)]
    return bool(files) and files[-1].startswith(_OWN_CODE)


def _is_standard_library(file: str) -> bool:
    return file.startswith("<frozen") or (
        file.startswith(_STANDARD_LIBRARY) and "site-packages" not in file
    )


@contextmanager
def keeping_own_errors(refusals: type[Exception]) -> Iterator[None]:
    """Let ``FaultMiddleware`` know of errors of ours in the block: vLLM turns many into an answer
    of its own, with 400.

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
    """Answers in the place of an application that failed, with an error that names whose fault it
    was.

    An answer waits for its first piece of body. A stream whose first event is an error becomes an
    error itself, with its HTTP status. An error of this program is a 500, whatever the application
    makes of it.

    Args:
        app: JSON or server-sent events; an exception that it raises, and any status from 500 on, is
            looked into.
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
        except Exception as raised:
            error = raised
            if is_ours(raised):
                own_errors.append(raised)
        if answer.begun:
            if error is not None:
                # too late for another answer; the client sees that this one is not whole
                raise error
            return
        if error is None and not answer.error_status:
            return  # the client has left
        if own_errors:
            error = own_errors[0]
        status, content = await self._error(
            scope["path"], request.body, answer, error, bool(own_errors)
        )
        await _send_json(send, status, content)

    async def _error(
        self, path: str, body: bytes, answer: _HeldAnswer, error: Exception | None, is_own: bool
    ) -> tuple[int, dict[str, Any]]:
        """The status and the content that take the place of a failed answer's."""
        if self._engine_is_dead():
            raise EngineBroken("the engine's process ended")
        if error is None and answer.error_status < 500:
            return answer.error_status, answer.error_content
        if error is None and answer.error_status == 501:
            return 400, error_content(RequestFault(_message(answer.error_content)))
        fault = None
        if not is_own and not isinstance(error, MixedVersions):
            fault = await self._fault_of_request(path, body)
        if fault is not None:
            logger.warning("refused a request: %s", fault.message, exc_info=error)
            return 400, error_content(fault)
        logger.error("a request failed: %s", error or answer.error_content, exc_info=error)
        return 500, {
            "error": {
                "message": INTERNAL_ERROR,
                "type": "server_error",
                "param": None,
                "code": None,
            }
        }


@dataclass(frozen=True, slots=True)
class RequestFault:
    """What is wrong with a request.

    Attributes:
        message: what to change.
        field: name of the field at fault, None if it is not known.
    """

    message: str
    field: str | None = None


def error_content(fault: RequestFault) -> dict[str, Any]:
    """The body of a 400 in OpenAI's form."""
    error = {
        "message": fault.message,
        "type": "invalid_request_error",
        "param": fault.field,
        "code": None,
    }
    return {"error": error}


def _message(content: dict[str, Any]) -> str:
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
    """Keeps an answer back until its first piece of body shows that it is not an error to look
    into.
    """

    def __init__(self, send: Send, own_errors: list[Exception]) -> None:
        self._send = send
        self._own_errors = own_errors
        self._start: Message | None = None
        self.begun = False  # something was sent
        self.error_status = 0
        self.error_content: dict[str, Any] = {}

    async def send(self, message: Message) -> None:
        if self.begun:
            await self._send(message)
        elif message["type"] == "http.response.start":
            self._start = message
        elif not self.error_status and not self._is_error(message.get("body", b"")):
            assert self._start is not None
            self.begun = True
            await self._send(self._start)
            await self._send(message)

    def _is_error(self, body: bytes) -> bool:
        """Whether the answer is an error that is not sent as it is; remembers it then."""
        assert self._start is not None
        status = self._start["status"]
        if self._own_errors:
            self.error_status = 500
            return True
        if body.startswith(_EVENT):
            body = body.removeprefix(_EVENT).partition(b"\n")[0]
        elif status < 500:
            return False
        content = _json_object(body)
        error = content.get("error")
        if status < 500 and not isinstance(error, dict):
            return False
        if status >= 500:
            self.error_status = status
        else:
            self.error_status = _status_of(error)
        self.error_content = content
        return True


def _status_of(error: Any) -> int:
    """The HTTP status in the ``code`` of vLLM's errors."""
    code = error.get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 500


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


async def _send_json(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
