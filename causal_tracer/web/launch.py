"""Start of the app: command-line arguments, then the page, then the default model in the background."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import fields, replace

from causal_tracer.errors import CausalTracerError
from causal_tracer.web.service.logs import configure
from causal_tracer.web.service.registry import Loader
from causal_tracer.web.service.settings import ServiceSettings, variable
from causal_tracer.web.service.tracing import TraceService

LOOPBACK = "127.0.0.1"
# Threads for events that need no model: chips, details, files.
_OTHER_THREADS = 40

_logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None, load: Loader | None = None) -> int:
    """Serve the app until it is interrupted, then end the process.

    Args:
        argv: The command-line arguments; None takes the process's.
        load: Loads a model; None takes the app's own loader.

    Returns:
        The exit status, if the app could not start.
    """
    options = _parser().parse_args(argv)
    try:
        settings = ServiceSettings.from_environment()
        if options.model:
            settings = replace(settings, models=tuple(options.model))
        configure(settings)
        service = TraceService(settings, load=load)
    except CausalTracerError as error:
        _logger.error("%s", error)
        return 2
    # Gradio reads this variable when it is imported.
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from causal_tracer.web.serving import build_demo, page_options, without_hot_reload

    demo = build_demo(service)
    try:
        with without_hot_reload():
            demo.launch(
                server_name=options.host,
                server_port=options.port,
                max_threads=settings.workers + _OTHER_THREADS,
                state_session_capacity=settings.max_sessions,
                mcp_server=settings.mcp,
                prevent_thread_lock=True,
                **page_options(service),
            )
    except OSError as error:
        _logger.error("The app could not start at %s: %s", options.host, error)
        return 1
    # After the page, whose start loading a model would slow down.
    service.start_loading()
    demo.block_thread()
    # A thread in the middle of a computation cannot be interrupted, and an interpreter that shuts down under it aborts.
    # A half-written conversion is found and removed by the next conversion.
    logging.shutdown()
    sys.stdout.flush()
    os._exit(0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Causal tracing in the browser: where does a language model keep a fact?",
        epilog="Also set by the environment: " + ", ".join(variable(item.name) for item in fields(ServiceSettings)),
    )
    parser.add_argument(
        "--host",
        default=os.environ.get("GRADIO_SERVER_NAME", LOOPBACK),
        help="address to listen on (default: GRADIO_SERVER_NAME, else this machine only)",
    )
    parser.add_argument(
        "--port", type=int, help="port (default: GRADIO_SERVER_PORT, else the first free one from 7860 on)"
    )
    parser.add_argument(
        "--model",
        action="append",
        help='a model: "embedded", a folder, a .gguf file, or a hub id; repeat the option for several models '
        "(default: CAUSAL_TRACER_MODELS, else embedded)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
