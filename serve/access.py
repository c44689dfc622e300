"""Who may use the gateway: API keys, Host and Origin of requests, and limits of their headers."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import ApiError, error_response
from serve.policies import ServeError

API_KEYS_VARIABLE = "BI_RAY_API_KEYS"
MAX_HEADERS = 100
MAX_HEADER_BYTES = 32 * 2**10  # names, values and the path with its query
_HOST = re.compile(r"(?P<name>\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:\d{1,5})?", re.IGNORECASE)
_ORIGIN = re.compile(r"https?://[^/?#@\s]+", re.IGNORECASE)
_OWN_MACHINE_ONLY = (
    "without API keys this server answers its own machine only; start it with --api-key-file"
)
_KEY = re.compile(r"[!-~]([ -~]*[!-~])?")  # what fits into a header: printable ASCII
# What proxies add. A client on the same machine that calls the gateway directly sends none of them.
_FORWARDED = (
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
    "via",
)


@dataclass(frozen=True, slots=True)
class Access:
    """Who is let in.

    Attributes:
        key_digests: of the API keys (``key_digest``). Without any, only this machine is answered.
        allowed_hosts: names in the Host header that are accepted besides loopback ones.
        allowed_origins: web pages that may send requests from a browser, such as
            ``https://app.example.org``.
    """

    key_digests: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    allowed_origins: tuple[str, ...] = ()


def key_digest(key: str) -> str:
    """SHA-256 of an API key: servers and their configuration never hold the key itself."""
    return hashlib.sha256(key.encode()).hexdigest()


def environment_keys() -> list[str]:
    """The API keys in the environment variable, separated by commas.

    Raises:
        ServeError: one cannot be sent in a header.
    """
    parts = os.environ.get(API_KEYS_VARIABLE, "").split(",")
    keys = [part.strip() for part in parts if part.strip()]
    return _checked(keys, API_KEYS_VARIABLE)


def option_keys(keys: Sequence[str]) -> list[str]:
    """The API keys of the command line.

    Raises:
        ServeError: one is empty (an unset shell variable), or cannot be sent in a header.
    """
    return _checked([key.strip() for key in keys], "--api-key")


def file_keys(path: Path) -> list[str]:
    """The API keys in a file, one per line; blank lines and ``#`` comments are skipped.

    Raises:
        ServeError: it cannot be read, others may read it, or it has no key.
    """
    try:
        with open(path, encoding="utf-8") as file:
            mode = os.fstat(file.fileno()).st_mode
            if stat.S_IMODE(mode) & 0o077:
                raise ServeError(
                    f"--api-key-file {path}: other users can read it; run `chmod 600 {path}`"
                )
            lines = [line.strip() for line in file]
    except UnicodeDecodeError as error:
        raise ServeError(f"--api-key-file {path}: it is not a text file") from error
    except OSError as error:
        raise ServeError(f"--api-key-file {path}: {error.strerror}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ServeError(f"--api-key-file {path}: no key in it; write one key per line")
    return _checked(keys, f"--api-key-file {path}")


def _checked(keys: list[str], source: str) -> list[str]:
    for number, key in enumerate(keys, start=1):
        if not key:
            raise ServeError(f"{source}: the key is empty; is a shell variable unset?")
        if not _KEY.fullmatch(key):
            raise ServeError(
                f"{source}: key {number} has characters other than printable ASCII; "
                "choose another one"
            )
    return keys


def check_allowed(hosts: Sequence[str], origins: Sequence[str]) -> None:
    """Refuse hosts and origins that no request can name.

    Raises:
        ServeError: there is one.
    """
    for host in hosts:
        bare = _bare(host)
        as_name, as_ipv6 = host_name(bare), host_name(f"[{bare}]")
        if bare not in (as_name, as_ipv6):
            raise ServeError(
                f"--allowed-host {host}: expected a name without scheme and port, "
                "as in gpu7.example.org"
            )
    for origin in origins:
        if not _ORIGIN.fullmatch(origin):
            raise ServeError(
                f"--allowed-origin {origin}: expected scheme and host, "
                "as in https://app.example.org"
            )


def is_loopback(host: str) -> bool:
    """Whether an address or host name is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


def host_name(header: str) -> str | None:
    """The name in a Host header, in lower case without port and brackets; None: it is invalid."""
    match = _HOST.fullmatch(header)
    return _bare(match["name"]) if match else None


def _bare(host: str) -> str:
    return host.lower().strip("[]")


def authorize(request: Request, access: Access) -> None:
    """Let a request pass if it has a known key or, without any keys, comes from this machine.

    Raises:
        ApiError: 401 or 403.
    """
    if access.key_digests:
        _require_key(request.headers, access.key_digests)
    else:
        _require_own_machine(request)


def _require_own_machine(request: Request) -> None:
    address = request.client.host if request.client else ""
    if not is_loopback(address):
        raise ApiError(403, _OWN_MACHINE_ONLY, "permission_error")
    for name in _FORWARDED:
        if name in request.headers:
            message = f"the request came through a proxy (header {name}); {_OWN_MACHINE_ONLY}"
            raise ApiError(403, message, "permission_error")


def _require_key(headers: Headers, key_digests: Sequence[str]) -> None:
    scheme, _, key = headers.get("authorization", "").partition(" ")
    digest = key_digest(key.strip())
    # Every digest is compared, each in constant time: the time tells nothing about the keys.
    matches = [hmac.compare_digest(digest, known) for known in key_digests]
    if scheme.lower() == "bearer" and any(matches):
        return
    fault = "unknown API key" if scheme else "no API key was given"
    raise ApiError(
        401,
        f"{fault}; send one as the header `Authorization: Bearer KEY`",
        "authentication_error",
        "invalid_api_key",
    )


class HeaderGuard:
    """Refuses requests by their headers alone, before anything else looks at them.

    Args:
        app: gets what is not refused.
        access: who is let in.
    """

    def __init__(self, app: ASGIApp, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The ASGI interface."""
        if scope["type"] == "http":
            try:
                self._check(scope)
            except ApiError as error:
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        require_small(scope)
        require_one_length(headers)
        require_host(headers, self._access)
        require_origin(headers, self._access)


def require_small(scope: Scope) -> None:
    """Limit number and size of a request's headers.

    Raises:
        ApiError: 431.
    """
    path: bytes = scope.get("raw_path") or b""
    size = len(path) + len(scope["query_string"])
    for name, value in scope["headers"]:
        size += len(name) + len(value)
    if len(scope["headers"]) > MAX_HEADERS or size > MAX_HEADER_BYTES:
        message = (
            f"the request has more than {MAX_HEADERS} headers or {MAX_HEADER_BYTES} bytes of them; "
            "send fewer"
        )
        raise ApiError(431, message, closes=True)


def require_one_length(headers: Headers) -> None:
    """Refuse two lengths of one body (request smuggling).

    A proxy in front may have gone by the other one.

    Raises:
        ApiError: 400.
    """
    if "content-length" in headers and "transfer-encoding" in headers:
        raise ApiError(400, "send Content-Length or Transfer-Encoding, not both", closes=True)


def require_host(headers: Headers, access: Access) -> None:
    """Refuse names that a web page can make point to this machine (DNS rebinding).

    Without keys the Host header must be a loopback name or an allowed one. With keys, the key keeps
    such a page out, and every host is accepted unless allowed ones are named.

    Raises:
        ApiError: 400 or 403.
    """
    values = headers.getlist("host")
    name = host_name(values[0]) if len(values) == 1 else None
    if name is None:
        raise ApiError(400, "the request needs one valid Host header")
    if access.key_digests and not access.allowed_hosts:
        return
    if is_loopback(name):
        return
    if name not in map(_bare, access.allowed_hosts):
        message = (
            f"this server is not called {name!r}; use localhost, "
            f"or start it with --allowed-host {name}"
        )
        raise ApiError(403, message, "permission_error")


def require_origin(headers: Headers, access: Access) -> None:
    """Refuse requests that a browser sends for a page of another origin.

    Raises:
        ApiError: 403.
    """
    origin = headers.get("origin")
    if origin is None:
        if headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            raise ApiError(
                403, "requests from web pages of other origins are refused", "permission_error"
            )
        return
    host = headers.get("host", "").lower()
    allowed = [f"http://{host}", f"https://{host}", *map(str.lower, access.allowed_origins)]
    if origin.lower() not in allowed:
        message = (
            f"web pages from {origin!r} may not send requests; "
            "start the server with --allowed-origin ORIGIN"
        )
        raise ApiError(403, message, "permission_error")
