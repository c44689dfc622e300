"""Calls an ASGI application inside this process and passes its answer on, piece by piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message


@dataclass(frozen=True, slots=True)
class Head:
    """What comes before the body of an answer.

    Attributes:
        status: HTTP status.
        headers: by name in lower case.
    """

    status: int
    headers: dict[str, str]


async def post(app: ASGIApp, path: str, body: bytes) -> AsyncIterator[Head | bytes]:
    """POST JSON to ``path`` of an application: its head, then pieces of its body as they come.

    The application runs at its own speed, however slowly the pieces are taken: an answer that
    nobody reads holds up no one. Pieces that came meanwhile are joined. Leaving the iteration tells
    the application that its client is gone, and waits for it to end.

    Raises:
        Exception: whatever the application raises, after the pieces that it sent before.
    """
    messages: asyncio.Queue[Message | None] = asyncio.Queue()
    client_gone = asyncio.Event()
    request: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def receive() -> Message:
        nonlocal request
        if request is not None:
            message, request = request, None
            return message
        await client_gone.wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        messages.put_nowait(message)

    async def run() -> None:
        try:
            await app(_scope(path, len(body)), receive, send)
        finally:
            messages.put_nowait(None)

    task = asyncio.create_task(run())
    try:
        while (message := await messages.get()) is not None:
            if message["type"] == "http.response.start":
                yield Head(message["status"], dict(Headers(raw=message["headers"])))
            elif message["type"] == "http.response.body":
                pieces = [message.get("body", b""), *_waiting(messages)]
                if piece := b"".join(pieces):
                    yield piece
        await task
    finally:
        client_gone.set()
        await asyncio.wait([task])


def _waiting(messages: asyncio.Queue[Message | None]) -> list[bytes]:
    """Bodies that have arrived already; the end of the answer stays in the queue."""
    pieces: list[bytes] = []
    while not messages.empty():
        message = messages.get_nowait()
        if message is None:
            messages.put_nowait(None)
            break
        pieces.append(message.get("body", b""))
    return pieces


def _scope(path: str, length: int) -> dict[str, object]:
    return {
        "type": "http",
        # Before 2.4 applications listen for a client that leaves; from 2.4 on they wait for `send`
        # to fail.
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [
            (b"content-type", b"application/json"),
            (b"content-length", str(length).encode()),
        ],
        "client": None,
        "server": None,
    }
