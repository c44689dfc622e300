"""Errors in OpenAI's form."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

JsonObject = dict[str, Any]  # of a request or an answer, as the json module reads it
INTERNAL_ERROR = "internal error; the server's log has the reason"


class ApiError(Exception):
    """An answer to a client, with an error in OpenAI's form.

    Args:
        status: HTTP status.
        message: what is wrong and what to change.
        kind: OpenAI's ``type``.
        code: OpenAI's ``code``.
        param: the field of the request at fault.
        closes: close the connection after the answer, because the request was not read to its end.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        closes: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.closes = closes
        self.content: JsonObject = {
            "error": {"message": message, "type": kind, "param": param, "code": code}
        }


def error_response(error: ApiError) -> JSONResponse:
    """The answer to a client."""
    headers = {}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.closes:
        headers["connection"] = "close"
    return JSONResponse(error.content, error.status, headers)
