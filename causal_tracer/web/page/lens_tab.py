"""The tab Lens: the logit lens of the prompt in the fields. While the tab is shown, the lens follows the prompt."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from causal_tracer.errors import CausalTracerError, TraceCancelled
from causal_tracer.request.records import TraceRequest
from causal_tracer.results.labels import probability_label
from causal_tracer.results.lens import LogitLens
from causal_tracer.results.patched import PatchedRun
from causal_tracer.web.page.assets import static_text
from causal_tracer.web.page.download_buttons import download_buttons, wire_downloads
from causal_tracer.web.page.explore import TAB_TITLES
from causal_tracer.web.page.fields import Picked, asked_for
from causal_tracer.web.page.inputs_layout import AT_ONCE, IDLE_SECONDS, PAGE_EVENT, Inputs, follower
from causal_tracer.web.page.lens_grid import NO_LENS_CELL, SHADES, grid_html, legend_html, lens_cell_html
from causal_tracer.web.page.single_run_files import FORMATS, single_run_file
from causal_tracer.web.page.summary import message_html, model_words, status_html
from causal_tracer.web.page.texts import UNEXPECTED_ERROR
from causal_tracer.web.service.app_fields import Fields
from causal_tracer.web.service.field_checks import check_fields
from causal_tracer.web.service.limits import client_of
from causal_tracer.web.service.settings import ServiceSettings
from causal_tracer.web.service.tracing import TraceService
from causal_tracer.web.service.updates import Cancelled, stepped

# Options of events that set a state whose change starts another event. They use the queue, since in Gradio 6.31 a
# state set without it reports no change, and run one at a time, since two would report the same change.
NOTED: dict[str, Any] = {
    "concurrency_id": "noted",
    "concurrency_limit": 1,
    **PAGE_EVENT,
}

_ABOUT = (
    "Logit lens: what would the model say if it ended after this layer? Each cell is the residual stream at one token "
    "and layer, read by the model's final norm and LM head. The last layer is the model's own output."
)
_FOLLOWS = "The lens is read again when the prompt changes."
_GONE = "The app no longer has this lens. Press Read again."
# A lens depends on these fields only: it is not read again when, say, the number of samples changes.
_READ_FIELDS = ("model", "prompt", "chat", "answer", "answer_id", "answer_form")


class NewestLens:
    """The lens that a page wants now, shared by its events: the read of another one ends early.

    Attributes:
        key: As `lens_key` returns it; empty before the first one.
    """

    def __init__(self) -> None:
        self.key = ""

    def unless(self, key: str, left: Cancelled) -> Cancelled:
        """Return whether to end the read of a lens: the page was left, or wants another lens."""
        return lambda: left() or self.key != key


@dataclass(frozen=True, eq=False)
class LensTab:
    """The parts of the tab.

    Attributes:
        page: The tab.
        hint: The words about the lens, whose `input` event follows the fields.
        again: The button that reads the lens again.
        status: The line below the button.
        grid: The lens.
        cell: The clicked cell in detail.
        lens: The lens as a record.
    """

    page: gr.Tab
    hint: gr.HTML
    again: gr.Button
    status: gr.HTML
    grid: gr.HTML
    cell: gr.HTML
    lens: gr.State


@dataclass(frozen=True)
class LensEvents:
    """Events of the tab. A class, since Gradio gives its request only to methods with type hints."""

    service: TraceService

    def due(self, newest: NewestLens, picked: Picked, *values: Any) -> tuple[Any, Any]:
        """Return the key of the lens to read, and the status."""
        try:
            asked = asked_for("hidden", picked, *values)
        except CausalTracerError as error:
            return gr.skip(), failed_html(error)
        status = self.service.status(asked["model"])
        if status.state != "ready":
            return gr.skip(), status_html(model_words(status), state=f"ct-{status.state}")
        newest.key = lens_key(asked)
        return newest.key, gr.skip()

    async def read(
        self, request: gr.Request, newest: NewestLens, picked: Picked, *values: Any
    ) -> AsyncGenerator[tuple[Any, ...]]:
        """Read the lens: yield status, grid, details and lens. The earlier lens stays until the new one is read."""
        async with aclosing(stepped(partial(self._read, request, newest, picked, values))) as steps:
            async for step in steps:
                yield step

    def _read(
        self, request: gr.Request, newest: NewestLens, picked: Picked, values: Sequence[Any], left: Cancelled
    ) -> Generator[tuple[Any, ...]]:
        try:
            asked = asked_for("hidden", picked, *values)
            newest.key = lens_key(asked)
            yield reading_html(self.service, asked["model"]), gr.skip(), gr.skip(), gr.skip()
            client = client_of(request, self.service.settings)
            asks = lens_request(asked, self.service.settings)
            cancelled = newest.unless(lens_key(asked), left)
            lens = self.service.lens(asks, asked["model"], client, cancelled=cancelled)
        except TraceCancelled:
            # Another lens is wanted, or none: the earlier one stays.
            yield status_html(_FOLLOWS), gr.skip(), gr.skip(), gr.skip()
            return
        except CausalTracerError as error:
            yield failed_html(error), "", "", None
            return
        yield _read_words(lens), legend_html(lens) + grid_html(lens, "lens"), NO_LENS_CELL, lens


def lens_request(asked: Fields, settings: ServiceSettings) -> TraceRequest:
    """Return the request of a lens. The experiment's fields are left out, so that an invalid one does not prevent it.

    Raises:
        SettingsError, PromptError: As in `check_fields`.
    """
    return check_fields(_read_fields(asked), settings).request


def lens_key(asked: Fields) -> str:
    """Return a text that identifies the requested lens: equal for equal lenses, different for others."""
    return repr(_read_fields(asked))


def lens_queue(service: TraceService) -> dict[str, Any]:
    """Return the queue options of events that read lenses: a newer event replaces the one that waits."""
    return {
        "trigger_mode": "always_last",
        "concurrency_id": "lens",
        "concurrency_limit": service.settings.workers,
        **PAGE_EVENT,
    }


def _read_fields(asked: Fields) -> dict[str, Any]:
    return {name: asked[name] for name in _READ_FIELDS}


def reading_html(service: TraceService, model: str, doing: str = "Reading") -> str:
    """Return the status of a run that has started, or that waits for another one."""
    waits = service.ahead(model)
    words = f"{doing}…" if not waits else "Waiting for another run on this model."
    return f'<div class="ct-reading">{status_html(words, state="ct-loading")}</div>'


def failed_html(error: CausalTracerError) -> str:
    """Return the status of a run that was refused or failed, with the reason."""
    return status_html("Nothing was read.", state="ct-failed") + message_html(str(error))


def unexpected_error_html() -> str:
    """Return the status of a run that failed with an unexpected error."""
    return status_html(UNEXPECTED_ERROR, state="ct-failed")


def shade_switch(tab: str) -> gr.Radio:
    """Lay out the choice of what the colours in a tab's lenses show. CSS reads it, so it has no event."""
    return gr.Radio(
        list(SHADES), value="top", label="Colour", interactive=True, elem_id=f"ct-shade-{tab}", elem_classes="ct-shade"
    )


def download_row(tab: str, result: gr.State, status: gr.HTML, missing: str) -> None:
    """Lay out the buttons that download a tab's lens or patched run.

    Args:
        tab: The tab's name.
        result: The lens or the patched run.
        status: The line that reports a missing result.
        missing: The message about a missing result.
    """
    wire_downloads([download_buttons(tab, FORMATS)], ResultFile(missing).write, [result], status)


@dataclass(frozen=True)
class ResultFile:
    """Handler of the buttons that download a tab's result. A class, since Gradio gives its event only to methods.

    Attributes:
        missing: The message about a missing result.
    """

    missing: str

    def write(self, event: gr.SelectData, result: LogitLens | PatchedRun | None) -> tuple[str | None, Any]:
        """Return the file of a result, or a message if there is no result or no file could be made."""
        if result is None:
            return None, status_html(self.missing, state="ct-failed")
        try:
            return str(single_run_file(result, str(event.value))), gr.skip()
        except CausalTracerError as error:
            return None, status_html("No file was made.", state="ct-failed") + message_html(str(error))


def lens_tab() -> LensTab:
    """Lay out the tab."""
    with gr.Tab(TAB_TITLES["lens"], id="lens") as page, gr.Column(elem_classes="ct-lens-tab"):
        lens = gr.State(None, time_to_live=IDLE_SECONDS)
        hint = follower(_ABOUT)
        with gr.Row(elem_classes="ct-run", equal_height=True):
            again = gr.Button("Read again", scale=0, min_width=150, elem_id="ct-lens-read")
            status = gr.HTML(status_html(_FOLLOWS), scale=1, min_width=200, elem_id="ct-lens-status")
        shade_switch("lens")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=300):
                grid = gr.HTML("", elem_id="ct-lens-grid", js_on_load=static_text("lens_grid.js"))
            with gr.Column(scale=1, min_width=210):
                cell = gr.HTML("", elem_id="ct-lens-cell")
        download_row("lens", lens, status, "There is no lens to save. Press Read again.")
    return LensTab(page, hint, again, status, grid, cell, lens)


def wire_lens_tab(service: TraceService, inputs: Inputs, tab: LensTab) -> None:
    """Wire the tab, outside the tabs: Gradio reports a change of a state in a hidden tab when nothing has changed.

    Args:
        service: The models.
        inputs: The fields.
        tab: The tab.
    """
    events = LensEvents(service)
    due, newest = gr.State("", time_to_live=IDLE_SECONDS), gr.State(NewestLens(), time_to_live=IDLE_SECONDS)
    asked = [newest, inputs.picked, *inputs.values]
    gr.on(
        [tab.page.select, tab.hint.input],
        events.due,
        inputs=asked,
        outputs=[due, tab.status],
        trigger_mode="multiple",
        **NOTED,
    )
    gr.on(
        [due.change, tab.again.click],
        events.read,
        inputs=asked,
        outputs=[tab.status, tab.grid, tab.cell, tab.lens],
        **lens_queue(service),
    ).failure(unexpected_error_html, outputs=[tab.status], **AT_ONCE)
    tab.grid.select(_cell, inputs=[tab.lens], outputs=[tab.cell], **AT_ONCE)


def _cell(event: gr.SelectData, lens: LogitLens | None) -> str:
    """Return the chosen cell in detail."""
    if lens is None:
        return message_html(_GONE)
    try:
        return lens_cell_html(lens, *event.index)
    except CausalTracerError as error:
        return message_html(str(error))


def _read_words(lens: LogitLens) -> str:
    words = (
        f"{lens.run.capitalize()}. {probability_label(lens.answer)} = {float(lens.answer_probabilities[-1, -1]):.3f}."
    )
    notes = "".join(f'<p class="ct-note">{escape(note)}</p>' for note in lens.notes)
    return status_html(words) + notes
