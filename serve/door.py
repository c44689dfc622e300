"""What clients talk to: keys, model names, and errors in OpenAI's form. The rest is passed on to the model's server."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from serve.asgi import Head

MAX_BODY_BYTES = 8 * 2**20
_CARD_TIMEOUT_S = 10.0
logger = logging.getLogger("ray.serve")


class Servers(Protocol):
    """The models' servers, wherever they run."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the models."""

    async def card(self, name: str) -> dict[str, Any]:
        """The entry of a model in the list."""

    def answer(self, name: str, path: str, body: bytes) -> AsyncIterator[Head | bytes]:
        """See ``PolicyServer.answer``; closing the iterator ends the work.

        Raises:
            ServerBusy: it has too much to do.
            Exception: the server was lost.
        """


class ServerBusy(RuntimeError):
    """A model's server has as many requests waiting as it may have."""


class ApiError(Exception):
    """Becomes an error in OpenAI's form.

    Args:
        status: HTTP status.
        message: what is wrong and what to change.
        kind: OpenAI's ``type``.
        code: OpenAI's ``code``.
        param: the field of the request at fault.
    """

    def __init__(self, status: int, message: str, kind: str, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.content = {"error": {"message": message, "type": kind, "param": param, "code": code}}


def key_digest(key: str) -> str:
    """What is kept of an API key: servers and their configuration never hold the key itself."""
    return hashlib.sha256(key.encode()).hexdigest()


def make_app(servers: Servers, key_digests: Sequence[str], stop: Sequence[str] = ()) -> FastAPI:
    """The application that clients see.

    Args:
        servers: who answers.
        key_digests: of the API keys that open the door (``key_digest``); none: open, but for this machine only.
        stop: strings that end an answer in a chat, and stay in it, where the request does not say.
    """

    def authorise(request: Request) -> None:
        if key_digests:
            _require_key(request, key_digests)
        elif not is_loopback(request.client.host if request.client else ""):
            message = "this server has no API keys, so it answers its own machine only; start it with --api-key"
            raise ApiError(403, message, "permission_error")

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    router = APIRouter(prefix="/v1", dependencies=[Depends(authorise)])

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """Every model that is in service, with the version that would answer now."""
        cards = await asyncio.gather(*(_card(servers, name) for name in servers.names), return_exceptions=True)
        listed = [card for card in cards if not isinstance(card, BaseException)]
        if not listed and isinstance(cards[0], ApiError):
            raise cards[0]
        return {"object": "list", "data": listed}

    @router.get("/models/{name}")
    async def model(name: str) -> dict[str, Any]:
        """One model."""
        _require_model(servers, name)
        return await _card(servers, name)

    @router.post("/completions")
    @router.post("/chat/completions")
    async def answer(request: Request) -> Response:
        """Pass the request on to the server of its model."""
        content = _parse(await _body(request))
        name = _require_model(servers, content.get("model"))
        # As in rollouts and evaluations: the text is what was said. The end token is left out all the same.
        content.setdefault("skip_special_tokens", False)
        if stop and request.url.path.endswith("/chat/completions") and content.get("stop") is None:
            content |= {"stop": list(stop), "include_stop_str_in_output": True}
        pieces = servers.answer(name, request.url.path, json.dumps(content).encode())
        return await _respond(name, pieces)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the door stands; open to everybody, says nothing else."""
        return {"status": "ok"}

    app.include_router(router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    return app


def _require_key(request: Request, key_digests: Sequence[str]) -> None:
    scheme, _, key = request.headers.get("authorization", "").partition(" ")
    given = key_digest(key.strip())
    # Every digest is compared, each in constant time: how long it takes says nothing about the keys.
    if scheme.lower() != "bearer" or not sum(hmac.compare_digest(given, known) for known in key_digests):
        what = "this API key is not known here" if scheme else "no API key was given"
        message = f"{what}; send one as the header `Authorization: Bearer KEY`"
        raise ApiError(401, message, "authentication_error", "invalid_api_key")


def is_loopback(host: str) -> bool:
    """Whether an address or host name is this machine's own."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


async def _body(request: Request) -> bytes:
    body = b""
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BODY_BYTES:
            raise ApiError(413, f"the request is larger than {MAX_BODY_BYTES} bytes; split it", "invalid_request_error")
    return body


def _parse(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is no valid JSON: {error}", "invalid_request_error") from error
    if not isinstance(content, dict):
        message = f"the body has to be a JSON object, not {type(content).__name__}"
        raise ApiError(400, message, "invalid_request_error")
    return content


def _require_model(servers: Servers, name: object) -> str:
    served = ", ".join(servers.names)
    if not isinstance(name, str) or not name:
        message = f"`model` has to name a model; served are {served}"
        raise ApiError(400, message, "invalid_request_error", None, "model")
    if name not in servers.names:
        message = f"no model is called {name!r} here; served are {served}"
        raise ApiError(404, message, "invalid_request_error", "model_not_found", "model")
    return name


async def _card(servers: Servers, name: str) -> dict[str, Any]:
    try:
        async with asyncio.timeout(_CARD_TIMEOUT_S):
            return await servers.card(name)
    except Exception as error:
        raise _unavailable(name, error) from error


async def _respond(name: str, pieces: AsyncIterator[Head | bytes]) -> Response:
    """A response as soon as its head is known; an answer that is not streamed comes whole or as an error."""
    try:
        head = await anext(pieces)
        assert isinstance(head, Head)
        body = _bodies(pieces)
        if head.headers.get("content-type", "").startswith("text/event-stream"):
            return StreamingResponse(body, head.status, head.headers)
        return Response(b"".join([piece async for piece in body]), head.status, head.headers)
    except ServerBusy as error:
        message = f"{name} has as many requests waiting as it may have; try again later"
        raise ApiError(429, message, "rate_limit_error", "server_busy") from error
    except Exception as error:
        raise _unavailable(name, error) from error


async def _bodies(pieces: AsyncIterator[Head | bytes]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        assert isinstance(piece, bytes)
        yield piece


def _unavailable(name: str, error: Exception) -> ApiError:
    logger.warning(f"{name} did not answer: {type(error).__name__}: {error}")
    message = f"{name} is out of service for a moment and being replaced; try again"
    return ApiError(503, message, "service_unavailable_error", "model_unavailable")


def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    headers = {"www-authenticate": "Bearer"} if error.status == 401 else {}
    return JSONResponse(error.content, error.status, headers)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    """A path or a method that is not served."""
    assert isinstance(error, HTTPException)
    routes = "GET /v1/models, POST /v1/completions and POST /v1/chat/completions"
    message = f"{request.method} {request.url.path} is not served; there is {routes}"
    return _api_error(request, ApiError(error.status_code, message, "invalid_request_error"))
