"""Calls that Gradio refuses before an endpoint gets them: answered with a message, where Gradio gives a traceback."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING

from gradio.route_utils import FnIndexInferError

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import JSONResponse

_CALL = "/gradio_api/call/"
_BY_NAME = "/gradio_api/call/v2/"


def call_errors() -> Mapping[type[Exception], Callable[[Request, Exception], Awaitable[JSONResponse]]]:
    """Return the exception handlers for calls of unknown endpoints, and for unknown or missing arguments.

    Calls with named arguments (`/call/v2/`) raise `KeyError` and `TypeError`, other calls `FnIndexInferError`.
    """
    return dict.fromkeys((FnIndexInferError, KeyError, TypeError), _answer)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    from starlette.responses import JSONResponse

    path = request.url.path
    if isinstance(error, TypeError) and _BY_NAME in path:
        # Gradio's message ends with a hint that only applies to its own page.
        words = f"{str(error).split(' Please click')[0]} /gradio_api/info lists the arguments."
        return JSONResponse({"detail": words}, status_code=422)
    if isinstance(error, KeyError | FnIndexInferError) and _CALL in path:
        words = f"There is no endpoint /{path.rstrip('/').rsplit('/', 1)[1]}. /gradio_api/info lists the endpoints."
        return JSONResponse({"detail": words}, status_code=404)
    raise error
