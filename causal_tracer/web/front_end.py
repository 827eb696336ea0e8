"""The files of Gradio's front end: how the page asks for them early, and how they are sent."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import brotli
import gradio as gr
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.responses import FileResponse, Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from starlette.types import Scope

_ASSETS = Path(gr.__file__).parent / "templates" / "frontend" / "assets"
# Higher levels take several times as long and save little more.
_LEVEL = 5
_TEXT = {".css", ".js", ".json", ".svg"}


def preload_tag(assets: Path = _ASSETS) -> str:
    """Return a preload tag for Plotly (1.3 MB), which Gradio otherwise loads only after everything else.

    Empty if Gradio's front end does not have Plotly in one file with a known name.
    """
    found = [path.name for path in assets.glob("PlotlyPlot-*.js")]
    # Low priority, since the story needs the other files first.
    return f'<link rel="modulepreload" fetchpriority="low" href="./assets/{found[0]}">' if len(found) == 1 else ""


def assets_route(assets: Path = _ASSETS) -> list[Mount]:
    """Return the route that sends the front end's files; none if Gradio keeps them elsewhere, and sends them itself."""
    return [Mount("/assets", Assets(directory=assets))] if assets.is_dir() else []


class Assets(StaticFiles):
    """Files that browsers may keep, since their names hold their hashes. Each is compressed once.

    Gradio compresses every file for every request. A visit took 1.75 s of the server's processor time, and takes 1.25 s
    with this class.
    """

    async def get_response(self, path: str, scope: Scope) -> Response:
        """Return the file, compressed by Brotli if it is text and the client accepts that."""
        response = await super().get_response(path, scope)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        if not isinstance(response, FileResponse) or Path(path).suffix not in _TEXT:
            return response
        response.headers.add_vary_header("accept-encoding")
        if "br" not in Headers(scope=scope).get("accept-encoding", ""):
            return response
        headers = {name: response.headers[name] for name in ("cache-control", "etag", "last-modified", "vary")}
        body = await run_in_threadpool(_compressed, str(response.path))
        return Response(body, headers={**headers, "content-encoding": "br"}, media_type=response.media_type)


@cache
def _compressed(path: str) -> bytes:
    return bytes(brotli.compress(Path(path).read_bytes(), quality=_LEVEL))
