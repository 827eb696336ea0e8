"""Event handlers of the page: typing, clicks, Run. Those that run a model do so through the service."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import gradio as gr

from causal_tracer.errors import CausalTracerError, SettingsError
from causal_tracer.web.page.chips import inspection_html
from causal_tracer.web.page.explore import TITLED
from causal_tracer.web.page.field_notes import NOTED_FIELDS, field_notes, message_of, refusal
from causal_tracer.web.page.fields import (
    FIELD_NAMES,
    Picked,
    answer_picked,
    asked_for,
    field_values,
    picked_by,
    subject_picked,
)
from causal_tracer.web.page.stopping import RunButtons
from causal_tracer.web.page.summary import message_html, model_words, progress_words, status_html
from causal_tracer.web.page.texts import NOT_FINISHED
from causal_tracer.web.page.views import TabView, maps_view
from causal_tracer.web.service.app_fields import Fields
from causal_tracer.web.service.command_lines import trace_command
from causal_tracer.web.service.field_checks import check_fields
from causal_tracer.web.service.figures import Flows
from causal_tracer.web.service.limits import client_of
from causal_tracer.web.service.links import fields_of, page_url
from causal_tracer.web.service.stored import STORED_PROMPT
from causal_tracer.web.service.tracing import TraceService
from causal_tracer.web.service.updates import Cancelled, RunUpdate, stepped, thinned

# A browser redraws the whole map each time.
REDRAW_SECONDS = 0.5
COMPUTED = "computed just now"
KEPT = "computed earlier"


@dataclass(frozen=True)
class MapRun:
    """Handler of one tab's Run. The run ends early when the page is closed or Stop is pressed.

    A class, since Gradio gives its request only to methods with type hints.

    Attributes:
        service: The models.
        tab: One of `explore.MAP_TABS`.
        maps: Number of maps in the tab.
        buttons: The handlers of the tab's Run and Stop.
    """

    service: TraceService
    tab: str
    maps: int
    buttons: RunButtons

    async def run(
        self, request: gr.Request, picked: Picked, write_top_tokens: bool, *values: Any
    ) -> AsyncGenerator[tuple[Any, ...]]:
        """Trace what the fields ask for, and show the maps as they fill in."""
        async with aclosing(stepped(partial(self._views, request, picked, write_top_tokens, values))) as views:
            async for view in views:
                yield view.outputs(self.maps)

    def _views(
        self, request: gr.Request, picked: Picked, write_top_tokens: bool, values: tuple[Any, ...], left: Cancelled
    ) -> Generator[TabView]:
        """Yield the views of the run, or what the tab shows instead after a result was opened in it."""
        with (
            self.buttons.running(request.session_hash) as run,
            closing(self._run_views(request, picked, write_top_tokens, values, left)) as views,
        ):
            for view in views:
                yield run.shown(view)

    def _run_views(
        self, request: gr.Request, picked: Picked, write_top_tokens: bool, values: tuple[Any, ...], left: Cancelled
    ) -> Generator[TabView]:
        yield TabView(status=status_html("Starting."), running=True)
        try:
            asked = asked_for(self.tab, picked, *values)
            inspection = self.service.inspect(asked)
            # Replaces messages of an earlier run.
            yield TabView(message=message_of(inspection))
            if refused := refusal(inspection):
                yield _failed(refused)
                return
            updates = self.service.trace(asked, client_of(request, self.service.settings), left)
            begun = None
            with closing(thinned(updates, REDRAW_SECONDS)) as shown:
                for update in shown:
                    begun = begun or (update if update.done else None)
                    status = status_html(progress_words(update, begun))
                    yield self._view(update, status, write_top_tokens, request)
        except CausalTracerError as error:
            yield replace(_failed(str(error)), message=message_html(str(error)))

    def _view(self, update: RunUpdate, status: str, write_top_tokens: bool, request: gr.Request) -> TabView:
        if not update.flows:
            return TabView(status=status)
        filling, flows = update.done < update.total, cast(Flows, update.flows)
        view = maps_view(
            self.tab,
            flows,
            status=status,
            origin="being computed" if filling else KEPT if update.cached else COMPUTED,
            link=NOT_FINISHED if filling else result_link(self.service, flows, request),
            filling=filling,
            write_top_tokens=write_top_tokens and not filling,
        )
        return view if filling else replace(view, finished=flows)


def _failed(words: str) -> TabView:
    return TabView(status=status_html(f"Nothing was computed. {words}", state="ct-failed"), running=False)


def address_of(request: gr.Request) -> str:
    """Return the page's address; the request's own address is that of Gradio's internal call."""
    return page_url(request.headers.get("referer") or f"http://{request.headers.get('host', '')}/")


def result_link(service: TraceService, flows: Flows, request: gr.Request) -> str:
    """Return the link that reproduces a result, or the reason why there is none."""
    try:
        revision = next(iter(flows.values())).settings.revision
        return service.link(
            together([fields_of(flow) for flow in flows.values()]), address_of(request), revision=revision
        )
    except CausalTracerError as error:
        return str(error)


def together(asked: Sequence[Fields]) -> Fields:
    """Return the fields that request several maps in one run, from the fields of each map."""
    first, *others = asked
    if not others:
        return first
    if any(other["window"] != first["window"] for other in others):
        raise SettingsError("These maps differ in their windows, so the app's fields cannot describe them together.")
    return {**first, "kind": "all"}


@dataclass(frozen=True)
class PageEvents:
    """Event handlers that need the clicked item, or the address with which the page was opened.

    A class, since Gradio gives events and requests only to methods with type hints.
    """

    service: TraceService

    def pick(self, event: gr.SelectData, picked: Picked, *values: Any) -> tuple[Any, ...]:
        """Handle a click on a token or an answer; return the new subject and answer, the choice, and a message."""
        try:
            asked = asked_for("hidden", picked, *values)
            inspection = self.service.inspect(asked)
            if event.value == "answer":
                now = answer_picked(inspection, asked["prompt"], int(event.index), picked)
                return gr.skip(), now.answer, now, gr.skip()
            first, last = event.index
            now = subject_picked(inspection, asked["prompt"], int(first), int(last), picked)
        except CausalTracerError as error:
            return gr.skip(), gr.skip(), gr.skip(), message_html(str(error))
        return now.subject, gr.skip(), now, gr.skip()

    def open_link(self, request: gr.Request) -> tuple[Any, ...]:
        """Read the page's address; return the fields' values, the choices, the tab to open, and a message."""
        parsed = self.service.open_link(dict(request.query_params))
        if not parsed.given:
            return (gr.skip(),) * (len(FIELD_NAMES) + 3)
        asked = {**parsed.fields, "model": parsed.fields.get("model") or self.service.models[0]}
        if not asked.get("prompt"):
            asked |= {"prompt": STORED_PROMPT, "subject": ""}
        picked, tab = picked_by(asked), gr.Tabs(selected=asked.get("kind", "hidden"))
        return (*field_values(asked), picked, tab, message_html(warned=parsed.problems))


def inspect_fields(service: TraceService, picked: Picked, *values: Any) -> tuple[str, ...]:
    """Return chips and answers for the fields' values, the message below the fields, and the note below each field."""
    try:
        inspection = service.inspect(asked_for("hidden", picked, *values))
    except CausalTracerError as error:
        return gr.skip(), message_html(str(error)), *(gr.skip() for _ in NOTED_FIELDS)
    return inspection_html(inspection), message_of(inspection), *field_notes(inspection)


def model_line(service: TraceService, model: str) -> tuple[str, str, gr.Timer]:
    """Start loading a model; return its status, its automatic noise level, and the timer that asks again."""
    service.start_loading(model)
    status = service.status(model)
    line = status_html(model_words(status), state=f"ct-{status.state}")
    noise = "" if status.noise is None else f"Automatic noise level of this model: <b>{status.noise:.4g}</b>."
    return line, f'<p class="ct-hint">{noise}</p>', gr.Timer(active=not status.settled)


def chat_box(service: TraceService, model: str, chat: bool) -> gr.Checkbox:
    """Show the chat checkbox if the model has a chat template, or if the box is ticked."""
    return gr.Checkbox(visible=chat or service.status(model).chat)


def selected_tab(event: gr.SelectData) -> str:
    """Return the name of the tab that was selected."""
    return TITLED[str(event.value)]


def program_lines(service: TraceService, tab: str, picked: Picked, *values: Any) -> tuple[str, str]:
    """Return the Python lines and the command that compute what the fields ask for."""
    try:
        asked = asked_for(tab, picked, *values)
        checked, loading = check_fields(asked, service.settings), service.loading(asked["model"])
        return service.python_lines(asked), trace_command(checked, *loading)
    except CausalTracerError as error:
        return f"# {error}", f"# {error}"
