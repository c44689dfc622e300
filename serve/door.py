"""The gateway: checks requests, finds the server of their model and passes them on; errors have
OpenAI's form.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from serve.access import Access, HeaderGuard, authorize
from serve.asgi import Head
from serve.errors import INTERNAL_ERROR, ApiError, error_response
from serve.versions import VERSION_HEADER

MAX_BODY_BYTES = 8 * 2**20
MAX_PROMPTS = 1024  # of one request
BODY_TIMEOUT_S = 30.0
_CARD_TIMEOUT_S = 10.0
logger = logging.getLogger("ray.serve")


class Servers(Protocol):
    """The models' servers, wherever they run."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the models."""

    async def card(self, name: str) -> dict[str, Any]:
        """The entry of a model in the list.

        Raises:
            ServerLost: see there.
        """

    def answer(self, name: str, path: str, body: bytes) -> AsyncIterator[Head | bytes]:
        """See ``PolicyServer.answer``; closing the iterator ends the work.

        Raises:
            ServerBusy: it has too much to do.
            ServerLost: see there.
        """


class ServerLost(RuntimeError):
    """A model's server is gone and is being replaced."""


class ServerBusy(RuntimeError):
    """A model's server has as many requests waiting as it may have."""


def make_app(servers: Servers, access: Access, stop: Sequence[str] = ()) -> FastAPI:
    """The application that clients see.

    Args:
        servers: who answers.
        access: who is let in.
        stop: strings that end an answer in a chat, and stay in it, where the request does not name
            any.
    """

    async def require_access(request: Request) -> None:
        authorize(request, access)

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    router = APIRouter(prefix="/v1", dependencies=[Depends(require_access)])

    @router.get("/models")
    async def models() -> dict[str, Any]:
        """Every model that is in service, with the version that would answer now."""
        cards = await asyncio.gather(
            *(_card(servers, name) for name in servers.names), return_exceptions=True
        )
        listed = [card for card in cards if not isinstance(card, BaseException)]
        errors = [card for card in cards if isinstance(card, BaseException)]
        for error in errors:
            if not listed or not isinstance(error, ApiError):
                raise error
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
        _require_json(request)
        content = _parse(await _body(request))
        name = _require_model(servers, content.get("model"))
        _require_few_prompts(content)
        # As in rollouts and evaluations: the text is what was said. The end token is left out all
        # the same.
        content.setdefault("skip_special_tokens", False)
        if stop and request.url.path.endswith("/chat/completions") and content.get("stop") is None:
            content |= {"stop": list(stop), "include_stop_str_in_output": True}
        pieces = servers.answer(name, request.url.path, _encode(content))
        return await _respond(name, pieces)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Liveness probe; needs no key."""
        return {"status": "ok"}

    app.include_router(router)
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    # browsers ask before they send, and read answers only with these headers
    if access.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=[VERSION_HEADER],
        )
    app.add_middleware(HeaderGuard, access=access)
    return app


def _require_json(request: Request) -> None:
    """Refuse bodies that a web page may send without asking first: a form, or plain text."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            415, "send the body with the header `Content-Type: application/json`", closes=True
        )


async def _body(request: Request) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for piece in request.stream():
                pieces.append(piece)
                size += len(piece)
                if size > MAX_BODY_BYTES:
                    message = f"the request is larger than {MAX_BODY_BYTES} bytes; split it"
                    raise ApiError(413, message, closes=True)
    except TimeoutError as error:
        message = f"the body did not arrive within {BODY_TIMEOUT_S:g} s"
        raise ApiError(408, message, closes=True) from error
    return b"".join(pieces)


def _parse(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ApiError(400, f"the body has to be a JSON object, not {type(content).__name__}")
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value")


def _encode(content: dict[str, Any]) -> bytes:
    """The request as JSON in UTF-8, which has no place for half a character or an infinite number."""
    try:
        return _json(content)
    except (ValueError, RecursionError) as error:
        field = _field_at_fault(content)
        what = f"`{field}`" if field else "the request"
        raise ApiError(400, f"{what} {_encoding_fault(error)}", param=field) from error


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode()


def _field_at_fault(content: dict[str, Any]) -> str | None:
    """The first field that cannot be encoded; None if all can one by one."""
    for name, value in content.items():
        try:
            _json({name: value})
        except (ValueError, RecursionError):
            return name.encode("utf-8", "replace").decode()
    return None


def _encoding_fault(error: Exception) -> str:
    if isinstance(error, UnicodeEncodeError):
        return "has a lone surrogate, which is half a character; send whole characters"
    if isinstance(error, RecursionError):
        return "is nested too deeply"
    return "has a number beyond the range of 64-bit floats"


def _require_model(servers: Servers, name: object) -> str:
    served = ", ".join(servers.names)
    if not isinstance(name, str) or not name:
        message = f"`model` has to name a model; served are {served}"
        raise ApiError(400, message, param="model")
    if name not in servers.names:
        message = f"no model is called {name!r} here; served are {served}"
        raise ApiError(404, message, code="model_not_found", param="model")
    return name


def _require_few_prompts(content: dict[str, Any]) -> None:
    """Refuse a body that is a million requests; a list of token ids is one prompt."""
    prompt = content.get("prompt")
    if isinstance(prompt, list) and len(prompt) > MAX_PROMPTS and not isinstance(prompt[0], int):
        raise ApiError(
            400,
            f"`prompt` has more than {MAX_PROMPTS} prompts; send several requests",
            param="prompt",
        )


async def _card(servers: Servers, name: str) -> dict[str, Any]:
    try:
        async with asyncio.timeout(_CARD_TIMEOUT_S):
            return await servers.card(name)
    except (ServerLost, TimeoutError) as error:
        raise _unavailable(name, error) from error


async def _respond(name: str, pieces: AsyncIterator[Head | bytes]) -> Response:
    """A response as soon as its head is known; an answer that is not streamed comes whole or as an
    error.
    """
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
    except ServerLost as error:
        raise _unavailable(name, error) from error


async def _bodies(pieces: AsyncIterator[Head | bytes]) -> AsyncIterator[bytes]:
    async for piece in pieces:
        assert isinstance(piece, bytes)
        yield piece


def _unavailable(name: str, error: Exception) -> ApiError:
    logger.warning(f"{name} did not answer: {type(error).__name__}: {error}", exc_info=error)
    message = f"{name} is out of service for a moment and being replaced; try again"
    return ApiError(503, message, "service_unavailable_error", "model_unavailable")


def _api_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return error_response(error)


def _http_error(request: Request, error: Exception) -> JSONResponse:
    """A path or a method that is not served."""
    assert isinstance(error, HTTPException)
    routes = "GET /v1/models, POST /v1/completions and POST /v1/chat/completions"
    message = f"{request.method} {request.url.path} is not served; there is {routes}"
    return error_response(ApiError(error.status_code, message))


def _internal_error(request: Request, error: Exception) -> JSONResponse:
    """An error of this program. Starlette raises it again, and Ray Serve writes it to the log."""
    logger.error(f"{request.method} {request.url.path} failed", exc_info=error)
    return error_response(ApiError(500, INTERNAL_ERROR, "server_error"))
