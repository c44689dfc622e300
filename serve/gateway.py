"""The gateway: checks requests and passes them to the server of their model.

Errors have OpenAI's form.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Sequence
from typing import Protocol

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware

from serve.access import Access, HeaderGuard, authorize
from serve.asgi import Head
from serve.errors import INTERNAL_ERROR, ApiError, JsonObject, error_response
from serve.versions import VERSION_HEADER

MAX_BODY_BYTES = 8 * 2**20
MAX_PROMPTS = 1024  # of one request
BODY_TIMEOUT_S = 30.0
_CARD_TIMEOUT_S = 10.0
_ROUTES = "GET /v1/models, POST /v1/completions and POST /v1/chat/completions"
logger = logging.getLogger("ray.serve")


class Servers(Protocol):
    """The models' servers, wherever they run."""

    @property
    def names(self) -> Sequence[str]:
        """Names of the models."""

    async def card(self, name: str) -> JsonObject:
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
        servers: answer the requests.
        access: who is let in.
        stop: strings that end an answer in a chat, and stay in it, if the request names none.
    """
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Liveness probe; needs no key."""
        return {"status": "ok"}

    app.include_router(_v1_routes(servers, access, stop))
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    if access.allowed_origins:
        # browsers ask before they send, and read answers only with these headers
        app.add_middleware(
            CORSMiddleware,
            allow_origins=access.allowed_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["authorization", "content-type"],
            expose_headers=[VERSION_HEADER],
        )
    app.add_middleware(HeaderGuard, access=access)
    return app


def _v1_routes(servers: Servers, access: Access, stop: Sequence[str]) -> APIRouter:
    async def require_access(request: Request) -> None:
        authorize(request, access)

    router = APIRouter(prefix="/v1", dependencies=[Depends(require_access)])

    @router.get("/models")
    async def models() -> JsonObject:
        """Every model in service, with the version that would answer now."""
        return {"object": "list", "data": await _cards(servers)}

    @router.get("/models/{name}")
    async def model(name: str) -> JsonObject:
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
        path = request.url.path
        _set_defaults(content, stop if path.endswith("/chat/completions") else ())
        return await _respond(name, servers.answer(name, path, _encode(content)))

    return router


def _set_defaults(content: JsonObject, stop: Sequence[str]) -> None:
    """Make the text that of rollouts and evaluations: everything but the end token.

    The engine's server leaves the end token out (``drop_end_tokens``).
    """
    content.setdefault("skip_special_tokens", False)
    if stop and content.get("stop") is None:
        content["stop"] = list(stop)
        content["include_stop_str_in_output"] = True


def _require_json(request: Request) -> None:
    """Refuse bodies that a web page may send without asking first: a form, or plain text."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise ApiError(
            415, "send the body with the header `Content-Type: application/json`", closes=True
        )


async def _body(request: Request) -> bytes:
    """The whole body; both its size and its time are limited."""
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


def _parse(body: bytes) -> JsonObject:
    try:
        content = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ApiError(400, f"the body has to be a JSON object, not {type(content).__name__}")
    return content


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON value")


def _encode(content: JsonObject) -> bytes:
    """The request as JSON in UTF-8, which has no lone surrogates and no infinite numbers."""
    try:
        return _json(content)
    except (ValueError, RecursionError) as error:
        field = _field_at_fault(content)
        subject = f"`{field}`" if field else "the request"
        raise ApiError(400, f"{subject} {_encoding_fault(error)}", param=field) from error


def _json(content: JsonObject) -> bytes:
    return json.dumps(content, ensure_ascii=False, allow_nan=False).encode()


def _field_at_fault(content: JsonObject) -> str | None:
    """The first field that cannot be encoded; None if each can by itself."""
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


def _require_few_prompts(content: JsonObject) -> None:
    """Refuse a body that is a million requests."""
    prompt = content.get("prompt")
    if not isinstance(prompt, list) or len(prompt) <= MAX_PROMPTS:
        return
    is_one_prompt = isinstance(prompt[0], int)  # a list of token ids
    if not is_one_prompt:
        message = f"`prompt` has more than {MAX_PROMPTS} prompts; send several requests"
        raise ApiError(400, message, param="prompt")


async def _cards(servers: Servers) -> list[JsonObject]:
    """The entries of all models; one that is being replaced is left out.

    Raises:
        ApiError: all of them are being replaced.
    """
    calls = [_card(servers, name) for name in servers.names]
    cards: list[JsonObject] = []
    unavailable: list[ApiError] = []
    for result in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(result, ApiError):
            unavailable.append(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            cards.append(result)
    if unavailable and not cards:
        raise unavailable[0]
    return cards


async def _card(servers: Servers, name: str) -> JsonObject:
    try:
        async with asyncio.timeout(_CARD_TIMEOUT_S):
            return await servers.card(name)
    except (ServerLost, TimeoutError) as error:
        raise _unavailable(name, error) from error


async def _respond(name: str, pieces: AsyncIterator[Head | bytes]) -> Response:
    """A response as soon as its head is known; without streaming, a whole answer or an error."""
    try:
        head = await anext(pieces)
        assert isinstance(head, Head)
        body = _bodies(pieces)
        if head.headers.get("content-type", "").startswith("text/event-stream"):
            return StreamingResponse(body, head.status, head.headers)
        content = [piece async for piece in body]
        return Response(b"".join(content), head.status, head.headers)
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
    message = f"{request.method} {request.url.path} is not served; there is {_ROUTES}"
    return error_response(ApiError(error.status_code, message))


def _internal_error(request: Request, error: Exception) -> JSONResponse:
    """An error of this program; Starlette raises it again after the answer."""
    logger.error(f"{request.method} {request.url.path} failed", exc_info=error)
    return error_response(ApiError(500, INTERNAL_ERROR, "server_error"))
