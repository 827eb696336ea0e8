"""The endpoints' answers: figures, results, progress and errors."""

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from causal_tracer.errors import CausalTracerError
from causal_tracer.web.service.figures import app_figure
from causal_tracer.web.service.updates import RunUpdate

Json = dict[str, Any]

_logger = logging.getLogger(__name__)


def map_and_result(update: RunUpdate) -> tuple[Json, Json]:
    """Return a map as a Plotly figure in JSON, and the result; the figure is empty while the run waits."""
    figure: Json = {}
    if update.flow is not None:
        figure = json.loads(app_figure(update.flow).to_json())
    return figure, result(update)


def result(update: RunUpdate) -> Json:
    """Return the answer of /trace: the map's fields, or several maps by name, and the progress."""
    maps = {name: flow.to_dict() for name, flow in update.flows.items()}
    found = next(iter(maps.values())) if len(maps) == 1 else maps
    return {**found, "progress": _progress(update)}


def _progress(update: RunUpdate) -> Json:
    return {
        "done": update.done,
        "total": update.total,
        "seconds": round(update.seconds, 3),
        "cached": update.cached,
        "waiting": update.waiting,
        "position": update.position,
    }


@contextmanager
def for_clients() -> Iterator[None]:
    """Turn exceptions into errors for clients: the app's own with their message, any other without internals."""
    try:
        yield
    except CausalTracerError as error:
        raise gr.Error(str(error), print_exception=False) from error
    except gr.Error:
        raise
    except Exception as error:
        _logger.exception("A request failed.")
        raise gr.Error(
            "Something went wrong in the app itself. The server's log has the details.", print_exception=False
        ) from error
