"""What happens when something is pressed. Generators, so that a closed page or Stop ends the work at the next yield."""

from __future__ import annotations

import time
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import gradio as gr
import plotly.graph_objects as go

from causal_tracer.errors import CausalTracerError, SettingsError
from causal_tracer.flow import HiddenFlow
from causal_tracer.layers import LayerKind
from causal_tracer.plots import plot_hidden_flow_heatmap
from causal_tracer.web.service import RunUpdate, TraceInput, TraceService
from causal_tracer.web.summary import (
    details_html,
    message_html,
    model_words,
    numbers_html,
    progress_words,
    status_html,
)

# A browser redraws the whole map each time.
REDRAW_SECONDS = 0.5


@dataclass(frozen=True)
class View:
    """What a run changes on the page; None leaves a part as it is.

    Attributes:
        message: The error beside the fields, as HTML; empty where all is well.
        status: The line beside the Run button, as HTML.
        figure: The map.
        numbers: What stands above the map, as HTML.
        details: What stands below it, as HTML.
        running: Whether Run is off and Stop is on.
    """

    message: str | None = None
    status: str | None = None
    figure: go.Figure | None = None
    numbers: str | None = None
    details: str | None = None
    running: bool = True

    def outputs(self) -> tuple[Any, ...]:
        """The values of message, status, map, numbers, details, Run and Stop."""
        parts = (self.message, self.status, self.figure, self.numbers, self.details)
        shown = tuple(gr.skip() if part is None else part for part in parts)
        return (*shown, gr.Button(interactive=not self.running), gr.Button(interactive=self.running))


def app_figure(flow: HiddenFlow, *, filling: bool = False) -> go.Figure:
    """The map as the app shows it: without a title, and not in the way of a finger that scrolls the page.

    While it fills in, the scale reaches to the clean run, so that colours do not change with each new cell.
    """
    figure = plot_hidden_flow_heatmap(flow, title="", show=False)
    if filling:
        figure.update_traces(zmax=max(flow.high_score, figure.data[0].zmax))
    figure.update_xaxes(fixedrange=True)
    figure.update_yaxes(fixedrange=True, ticklabelstandoff=5)
    return figure


def run_map(
    service: TraceService,
    kind: LayerKind,
    prompt: str,
    subject: str,
    samples: float | None,
    window: float | None,
    noise: str,
    seed: float | None,
    subject_tokens_only: bool,
) -> Generator[tuple[Any, ...]]:
    """Trace what the fields ask for, and show the map as it fills in."""
    yield View(message="", status=status_html("Starting.")).outputs()
    try:
        asked = TraceInput(
            prompt=prompt,
            subject=subject,
            kind=kind,
            samples=samples,
            window=window,
            noise=noise_level(noise),
            seed=seed,
            subject_tokens_only=subject_tokens_only,
        )
        for update in thinned(service.trace(asked), REDRAW_SECONDS):
            yield _view(update).outputs()
    except CausalTracerError as error:
        status = status_html("Nothing was computed: see the message above.", state="ct-failed")
        yield View(message=message_html(str(error)), status=status, running=False).outputs()


def noise_level(text: str) -> float | None:
    """The number in the noise field; empty is automatic.

    A text field, since Gradio's number field hands on 0 when it is empty, and 0 is a noise level too.

    Raises:
        SettingsError: It is no number.
    """
    if not text.strip():
        return None
    try:
        return float(text)
    except ValueError as error:
        raise SettingsError(
            f"The noise level {text!r} is no number. Give one such as 0.5, or leave it empty."
        ) from error


def model_line(service: TraceService) -> tuple[str, gr.Timer]:
    """How far the model is, and whether to ask again."""
    status = service.status()
    line = status_html(model_words(status), state=f"ct-{status.state}")
    return line, gr.Timer(active=not status.settled)


def thinned(updates: Generator[RunUpdate], seconds: float) -> Generator[RunUpdate]:
    """The updates, but not more often than people or programs want them: first and last always."""
    shown: RunUpdate | None = None
    latest: RunUpdate | None = None
    shown_at = 0.0
    try:
        for latest in updates:
            # The first cells should not wait.
            news = shown is None or latest.waiting != shown.waiting or (shown.done == 0) != (latest.done == 0)
            if news or time.monotonic() - shown_at >= seconds:
                yield latest
                shown, shown_at = latest, time.monotonic()
        if latest is not None and latest is not shown:
            yield latest
    finally:
        updates.close()


def _view(update: RunUpdate) -> View:
    status = status_html(progress_words(update))
    if update.flow is None:
        return View(status=status)
    filling = update.done < update.total
    return View(
        status=status,
        figure=app_figure(update.flow, filling=filling),
        numbers=numbers_html(update.flow),
        details=details_html(update.flow),
        running=filling,
    )
