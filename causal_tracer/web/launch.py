"""Start the app: arguments, then the page, then the model behind it."""

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
# For what waits for no model: chips, details, files.
_OTHER_THREADS = 40

_logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None, load: Loader | None = None) -> int:
    """Serve the app until it is interrupted; the process ends with it.

    Args:
        argv: The command line's arguments; None takes the process's.
        load: What loads a model, where that is not the app's own loader.

    Returns:
        The exit status, where the app could not start.
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
    # Gradio reads it when it is imported.
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
    # After the page: reading a model would slow its start.
    service.start_loading()
    demo.block_thread()
    # A thread that is in the middle of a computation cannot be interrupted, and an interpreter that ends beneath it
    # aborts. What a conversion leaves half written is found and removed by the next one.
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
        help='what load_model takes: "embedded", a folder, a .gguf file, or a hub id '
        "(default: CAUSAL_TRACER_MODELS, else embedded)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
