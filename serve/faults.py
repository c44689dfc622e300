"""Whose fault an error is: the request's (400), the engine's (it is replaced) or the program's (500, traceback)."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve.errors import INTERNAL_ERROR
from serve.versions import EngineBroken, MixedVersions

logger = logging.getLogger("ray.serve")
_EVENT = b"data: "


class FaultMiddleware:
    """Answers in the place of an application that failed, with an error that names whose fault it was.

    An answer waits for its first piece of body. A stream whose first event is an error becomes an error itself, with
    its HTTP status.

    Args:
        app: JSON or server-sent events; an exception that it raises, and any status from 500 on, is looked into.
        engine_is_dead: whether the engine behind ``app`` is gone for good.
        fault_of_request: given the path and the body of a request that failed, what is wrong with the request itself;
            None if nothing is.
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
        answer = _HeldAnswer(send)
        error: Exception | None = None
        try:
            await self._app(scope, request.receive, answer.send)
        except Exception as raised:
            error = raised
        if answer.begun:
            if error is not None:
                raise error  # too late for another answer; the client sees that this one is not whole
            return
        if error is None and not answer.error_status:
            return  # the client has left
        status, content = await self._error(scope["path"], request.body, answer, error)
        await _send_json(send, status, content)

    async def _error(
        self, path: str, body: bytes, answer: _HeldAnswer, error: Exception | None
    ) -> tuple[int, dict[str, Any]]:
        """The status and the content that take the place of a failed answer's."""
        if self._engine_is_dead():
            raise EngineBroken("the engine's process ended")
        if error is None and answer.error_status < 500:
            return answer.error_status, answer.error_content
        if error is None and answer.error_status == 501:
            return 400, error_content(RequestFault(_message(answer.error_content)))
        fault = None
        if not isinstance(error, MixedVersions):
            fault = await self._fault_of_request(path, body)
        if fault is not None:
            logger.warning("refused a request: %s", fault.message, exc_info=error)
            return 400, error_content(fault)
        logger.error("a request failed: %s", error or answer.error_content, exc_info=error)
        return 500, {"error": {"message": INTERNAL_ERROR, "type": "server_error", "param": None, "code": None}}


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
    error = {"message": fault.message, "type": "invalid_request_error", "param": fault.field, "code": None}
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
    """Keeps an answer back until its first piece of body shows that it is not an error to look into."""

    def __init__(self, send: Send) -> None:
        self._send = send
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
