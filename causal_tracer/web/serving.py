"""The app put together, page and endpoints, and how it is served: what Gradio's `launch` is told and leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gradio as gr
from gradio import http_server
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from causal_tracer.web.api.endpoints import add_endpoints
from causal_tracer.web.api.health import health_route
from causal_tracer.web.api.refused_calls import call_errors
from causal_tracer.web.page.layout import build_page
from causal_tracer.web.page.theme import CSS, app_theme
from causal_tracer.web.service.tracing import TraceService

# Higher levels take longer and save little more.
_LEVEL = 5
_FRONT_END = Path(gr.__file__).parent / "templates" / "frontend"


def build_demo(service: TraceService) -> gr.Blocks:
    """Build the app of a service: the page, the endpoints, and the queue of requests."""
    demo = build_page(service)
    with demo:
        add_endpoints(service)
    workers = service.settings.workers
    demo.queue(max_size=2 * workers, default_concurrency_limit=workers)
    return demo


def page_options(service: TraceService) -> dict[str, Any]:
    """The arguments of `launch` that make the page what it is, wherever it is served."""
    return {
        "theme": app_theme(),
        "css": CSS,
        "head": page_head(),
        "footer_links": ["api"],
        "ssr_mode": False,
        # Else Gradio asks the page for itself, and on a busy machine gives up after three seconds.
        "_frontend": False,
        "app_kwargs": app_kwargs(service),
    }


def app_kwargs(service: TraceService) -> dict[str, Any]:
    """The arguments of the web application that Gradio makes."""
    return {
        "routes": [health_route(service)],
        "middleware": [Middleware(CompressedPage)],
        "exception_handlers": call_errors(),
    }


def page_head(front_end: Path = _FRONT_END) -> str:
    """Has the browser fetch Plotly, 1.3 MB, while it fetches the rest: Gradio asks for it when all else is there.

    Empty where Gradio's front end does not have it in one file of a known name: then it comes when Gradio asks.
    """
    found = [path.name for path in (front_end / "assets").glob("PlotlyPlot-*.js")]
    # Low, since the story needs the other files first.
    return f'<link rel="modulepreload" fetchpriority="low" href="./assets/{found[0]}">' if len(found) == 1 else ""


@contextmanager
def without_hot_reload() -> Iterator[None]:
    """While an app is launched: have no server with it through which its code can be exchanged.

    On a Space Gradio starts one, and has no switch for it. What that imports takes two seconds of a cold start. Where
    Gradio calls it by another name, it is left as it is.
    """
    names = vars(http_server)
    watch = names.get("watchfn_spaces")
    if watch is None:
        yield
        return
    names["watchfn_spaces"] = _nothing_to_watch
    try:
        yield
    finally:
        names["watchfn_spaces"] = watch


def _nothing_to_watch(_reloader: Any) -> None:
    """Stand in for what exchanges code."""


class CompressedPage:
    """ASGI middleware: the page itself goes out as gzip, to whoever takes it. Gradio compresses its other files only.

    The page holds all that is shown at first, and becomes an eighth of its size.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._compressed = GZipMiddleware(app, compresslevel=_LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on."""
        page = scope["type"] == "http" and scope["path"] in ("", "/")
        await (self._compressed if page else self._app)(scope, receive, send)
