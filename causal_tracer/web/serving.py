"""The complete app, page and endpoints, and how it is served: the arguments of Gradio's `launch`, and middleware."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr
from gradio import http_server
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from causal_tracer.web.api.endpoints import add_endpoints
from causal_tracer.web.api.health import health_route
from causal_tracer.web.api.refused_calls import call_errors
from causal_tracer.web.front_end import assets_route, preload_tag
from causal_tracer.web.page.layout import build_page
from causal_tracer.web.page.theme import CSS, app_theme
from causal_tracer.web.service.tracing import TraceService

# The gzip level: higher ones take longer and save little more.
_LEVEL = 5


def build_demo(service: TraceService) -> gr.Blocks:
    """Build the app of a service: the page, the endpoints, and the queue of requests."""
    demo = build_page(service)
    with demo:
        add_endpoints(service)
    workers = service.settings.workers
    demo.queue(max_size=2 * workers, default_concurrency_limit=workers)
    return demo


def page_options(service: TraceService) -> dict[str, Any]:
    """Return the arguments of `launch` that do not depend on where the page is served."""
    return {
        "theme": app_theme(),
        "css": CSS,
        "head": preload_tag(),
        "footer_links": ["api"],
        "ssr_mode": False,
        # Otherwise Gradio requests its own page first, and on a busy machine gives up after three seconds.
        "_frontend": False,
        "app_kwargs": app_kwargs(service),
    }


def app_kwargs(service: TraceService) -> dict[str, Any]:
    """Return the arguments of the web application that Gradio creates."""
    return {
        "routes": [health_route(service), *assets_route()],
        "middleware": [Middleware(CompressedPage)],
        "exception_handlers": call_errors(),
    }


@contextmanager
def without_hot_reload() -> Iterator[None]:
    """Launch an app inside this context without Gradio's hot-reload server.

    On a Space, Gradio always starts that server, which can replace the app's code and adds two seconds to a cold start.
    If a Gradio version has it under another name, it is left on.
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
    """Replace Gradio's watcher of the app's code."""


class CompressedPage:
    """ASGI middleware that sends the page itself as gzip, if the client accepts it. Gradio compresses other files only.

    The page holds everything that is shown at first; gzip reduces it to an eighth of its size.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._compressed = GZipMiddleware(app, compresslevel=_LEVEL)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, through gzip if it is for the page."""
        page = scope["type"] == "http" and scope["path"] in ("", "/")
        await (self._compressed if page else self._app)(scope, receive, send)
