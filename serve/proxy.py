"""Limits for Ray Serve's HTTP proxy, which only the process at the socket can enforce.

Ray Serve lets nobody set uvicorn's limits for headers and slow clients. But it calls a function in
the proxy before it listens: the one whose import path is in the environment variable
``RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH``.
"""

from __future__ import annotations

from asyncio import Transport
from asyncio.events import TimerHandle

import uvicorn.config
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from serve.errors import ApiError, error_response

CALLBACK = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.proxy:middlewares"}
HEADERS_TIMEOUT_S = 20.0
# Between two requests; longer than the 60 s after which proxies in front give up a connection.
KEEP_ALIVE_S = 75
# Ray Serve reads these headers: with them a client could switch off the time limit of its request,
# or make the proxy fail to decode one.
_OF_SERVE = (
    "x-request-timeout-seconds",
    "x-request-disconnect-disabled",
    "x-request-id",
    "x-session-id",
    "serve-multiplexed-model-id",
    "traceparent",
    "tracestate",
)
_OF_SERVE_BYTES = frozenset(name.encode() for name in _OF_SERVE)


def middlewares() -> list[Middleware]:
    """The function that Ray Serve calls: it sets ``LimitedProtocol``, and adds ``ProxyGuard``."""
    uvicorn.config.HTTP_PROTOCOLS["auto"] = (
        f"{LimitedProtocol.__module__}:{LimitedProtocol.__qualname__}"
    )
    return [Middleware(ProxyGuard)]


class LimitedProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose next request does not come in time.

    h11 itself refuses headers of more than 64 KiB. Bodies have a time limit where they are read;
    the rest of a body that was refused before its end has the same time as headers.
    """

    _deadline: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._stop_watching()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Start the clock when a request is awaited, and stop it when one is being answered."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_watching()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEADERS_TIMEOUT_S, self.transport.close)

    def _stop_watching(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class ProxyGuard:
    """Hides what Ray Serve adds to the application: its list of routes, and headers that steer it.

    Args:
        app: the proxy.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["path"] == "/-/routes":
            error = ApiError(404, "/-/routes is not served")
            await error_response(error)(scope, receive, send)
            return
        scope["headers"] = [pair for pair in scope["headers"] if not _is_of_serve(pair[0])]
        await self._app(scope, receive, send)


def _is_of_serve(name: bytes) -> bool:
    return name.lower().replace(b"_", b"-") in _OF_SERVE_BYTES
