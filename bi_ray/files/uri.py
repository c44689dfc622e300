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
    """The URI that somebody gave where a path is wanted, whose double slash ``Path`` has made a
    single one; or None.
    """
    match = re.fullmatch(r"([A-Za-z][A-Za-z0-9+.-]+):/+(.*)", str(path), re.DOTALL)
    return f"{match[1]}://{match[2]}" if match else None


def public_name(uri: str) -> str:
    """A URI as it may be shown: without its query and credentials."""
    scheme, _, rest = uri.partition("://")
    shown = re.split(r"[?#]", rest[len(credentials_of(uri)) :].removeprefix("@"))[0]
    return f"{scheme}://{shown or '***'}".rstrip("/")


def credentials_of(uri: str) -> str:
    """What stands before the host or bucket, ``KEY:SECRET``; empty if nothing does.

    A secret may have a ``/``, ``?`` or ``#`` that should have been escaped; it is all of it here
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
    """Whether the credentials of a URI, if it has any, end before its first ``/``, ``?`` or ``#``."""
    credentials = credentials_of(uri)
    if not credentials:
        return True
    return f"{credentials}@" in uri and not re.search(r"[/?#]", credentials)


def hide_secrets(text: str, uri: str) -> str:
    """A message about ``uri`` without its credentials, the values in its query, and those in the
    environment.
    """
    text = text.replace(uri, public_name(uri))
    credentials = credentials_of(uri)
    secrets = [credentials, unquote(credentials), *re.split(r"[:/?#@]", credentials)]
    secrets += [unquote(secret) for secret in secrets]
    for name, value in parse_qsl(urlsplit(uri).query if parses(uri) else ""):
        if name not in _HARMLESS:
            secrets.append(value)
    secrets += [os.environ.get(name, "") for name in _SECRET_VARIABLES]
    for secret in sorted(set(secrets), key=len, reverse=True):
        if len(secret) >= _LEAST_CHARACTERS:
            text = text.replace(secret, "***")
    return text


def hide_credentials(text: str) -> str:
    """A text with every URI in it as ``public_name`` shows it."""
    return _ANY_URI.sub(lambda found: public_name(found[0]), text)
