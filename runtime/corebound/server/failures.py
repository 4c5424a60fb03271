"""What a client is told of a request that has no answer."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from corebound.errors import CoreboundError, ModelError, RequestError

_KINDS = {HTTPStatus.INTERNAL_SERVER_ERROR: "server_error", HTTPStatus.SERVICE_UNAVAILABLE: "unavailable"}


def told(error: CoreboundError, index: int, num_prompts: int) -> tuple[HTTPStatus, str, str | None]:
    """Return status, message and hint for an error that has ended prompt `index` of a request."""
    if isinstance(error, RequestError):
        return HTTPStatus.BAD_REQUEST, error.message, error.hint
    if isinstance(error, ModelError):
        # Of this prompt and the model: asking again would not help, and the service goes on.
        where = f"prompt {index}: " if num_prompts > 1 else ""
        return HTTPStatus.INTERNAL_SERVER_ERROR, f"{where}{error.message}", error.hint
    return HTTPStatus.SERVICE_UNAVAILABLE, error.message, error.hint


def error_body(message: str, hint: str | None, status: HTTPStatus) -> dict[str, Any]:
    """Return the object `error` of an answer with that status."""
    kind = _KINDS.get(status, "invalid_request_error")
    return {"message": message, "hint": hint, "type": kind, "code": status.value}
