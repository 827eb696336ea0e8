"""The app, running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from causal_tracer.web.service.tracing import TraceService


@contextmanager
def running_app(service: TraceService, **options: Any) -> Iterator[str]:
    """The app of a service, as `launch` starts it; gives its address."""
    from causal_tracer.web.serving import app_kwargs, build_demo

    demo = build_demo(service)
    demo.launch(
        prevent_thread_lock=True,
        server_name="127.0.0.1",
        quiet=True,
        ssr_mode=False,
        max_threads=service.settings.workers + 40,
        app_kwargs=app_kwargs(service),
        **options,
    )
    try:
        yield demo.local_url
    finally:
        demo.close()
