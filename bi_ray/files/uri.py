"""URIs of runs as they may be shown: without credentials, also where they do not parse."""

from __future__ import annotations

import os
import re
from urllib.parse import parse_qsl, unquote, urlsplit

_BUCKETS = ("s3", "gs", "gcs")  # schemes whose first part is a bucket: it has no port
_HARMLESS = ("scheme", "region", "endpoint_override")  # options in a query that may be shown
_SECRET_VARIABLES = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_LEAST_CHARACTERS = 4  # of a part of the credentials that is worth hiding by itself
_ANY_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"]+")


def uri_in(path: object) -> str | None:
    """The URI that was given where a path is expected; None where it was a path.

    ``Path`` has made a single slash of its double one.
    """
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path), re.DOTALL)
    return f"{match[1]}://{match[2]}" if match else None


def public_name(uri: str) -> str:
    """A URI as it may be shown: without its query and credentials."""
    scheme, _, rest = uri.partition("://")
    shown = re.split(r"[?#]", rest[len(credentials_of(uri)) :].removeprefix("@"))[0]
    return f"{scheme}://{shown or '***'}".rstrip("/")


def credentials_of(uri: str) -> str:
    """The part before the host or bucket, ``KEY:SECRET``; empty if there is none.

    A secret may have a ``/``, ``?`` or ``#`` that should have been escaped; it is whole here
    nevertheless.
    """
    scheme, _, rest = uri.partition("://")
    authority = re.split(r"[/?#]", rest)[0]
    if "@" in authority:
        return authority.rpartition("@")[0]
    has_port = scheme not in _BUCKETS and authority.rpartition(":")[2].isdigit()
    if ":" not in authority or has_port:
        return ""
    return rest.rpartition("@")[0] if "@" in rest else rest


def parses(uri: str) -> bool:
    """Whether the credentials of a URI, if any, end before its first ``/``, ``?`` or ``#``."""
    credentials = credentials_of(uri)
    if not credentials:
        return True
    return f"{credentials}@" in uri and not re.search(r"[/?#]", credentials)


def hide_secrets(text: str, uri: str) -> str:
    """A message about ``uri`` without the secrets in the URI and in the environment."""
    text = text.replace(uri, public_name(uri))
    secrets = _secrets_of(uri)
    secrets |= {os.environ.get(name, "") for name in _SECRET_VARIABLES}
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _LEAST_CHARACTERS:
            text = text.replace(secret, "***")
    return text


def _secrets_of(uri: str) -> set[str]:
    """The credentials of a URI, whole and in parts, and the values in its query."""
    credentials = credentials_of(uri)
    as_written = {credentials, unquote(credentials), *re.split(r"[:/?#@]", credentials)}
    secrets = as_written | {unquote(secret) for secret in as_written}
    if parses(uri):
        for name, value in parse_qsl(urlsplit(uri).query):
            if name not in _HARMLESS:
                secrets.add(value)
    return secrets


def hide_credentials(text: str) -> str:
    """A text with every URI in it as ``public_name`` shows it."""
    return _ANY_URI.sub(lambda match: public_name(match[0]), text)
