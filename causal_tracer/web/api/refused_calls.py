"""Calls that Gradio turns away before an endpoint sees them: an answer in words, where Gradio has a trace-back."""

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
    """Return handlers of what Gradio raises for endpoints that it does not have, and arguments that they do not have.

    Calls with named arguments (`/call/v2/`) raise a `KeyError` and a `TypeError`, others an error of Gradio's own.
    """
    return dict.fromkeys((FnIndexInferError, KeyError, TypeError), _answer)


async def _answer(request: Request, error: Exception) -> JSONResponse:
    from starlette.responses import JSONResponse

    path = request.url.path
    if isinstance(error, TypeError) and _BY_NAME in path:
        # Gradio goes on with where to click.
        words = f"{str(error).split(' Please click')[0]} /gradio_api/info lists the arguments."
        return JSONResponse({"detail": words}, status_code=422)
    if isinstance(error, KeyError | FnIndexInferError) and _CALL in path:
        words = f"There is no endpoint /{path.rstrip('/').rsplit('/', 1)[1]}. /gradio_api/info lists those there are."
        return JSONResponse({"detail": words}, status_code=404)
    raise error
