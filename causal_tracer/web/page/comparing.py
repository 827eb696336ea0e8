"""The Compare tab: chosen cards are compared at once, or after their lost results were computed again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, cast

import gradio as gr

from causal_tracer.errors import CausalTracerError
from causal_tracer.web.page.assets import static_text
from causal_tracer.web.page.compare import MOST_FIGURES, Comparison, compare_runs
from causal_tracer.web.page.explore import TAB_TITLES
from causal_tracer.web.page.handlers import REDRAW_SECONDS
from causal_tracer.web.page.history import read_history
from causal_tracer.web.page.history_events import HistoryEvents
from causal_tracer.web.page.history_layout import RUN_AGAIN, HistoryStrip, from_browser
from causal_tracer.web.page.inputs_layout import AT_ONCE, IDLE_SECONDS
from causal_tracer.web.page.run_card import Card
from causal_tracer.web.page.stopping import RunButtons
from causal_tracer.web.page.summary import message_html, progress_words, status_html
from causal_tracer.web.page.tab_layout import MODEL_QUEUE
from causal_tracer.web.page.texts import BROKEN
from causal_tracer.web.page.views import TabView
from causal_tracer.web.service.figures import Flows
from causal_tracer.web.service.limits import client_of
from causal_tracer.web.service.updates import Cancelled, RunUpdate, stepped, thinned

_NOTHING = '<p class="ct-hint">Choose two to four cards below, and press Compare there.</p>'
_SHOWN_PARTS = 3 + 3 * MOST_FIGURES

Computed = tuple[tuple[Card, Flows], ...]
"""Cards whose lost results were computed again, with these results."""


@dataclass(frozen=True)
class CompareEvents:
    """The events of the tab. A class, since Gradio gives events and requests only to methods with type hints.

    Attributes:
        history: The cards and their results.
        buttons: Notes which sessions compute, and which have stopped.
    """

    history: HistoryEvents
    buttons: RunButtons

    def compare(self, request: gr.Request, event: gr.EventData, kept: str) -> tuple[Any, ...]:
        """Compare chosen cards, or begin to compute lost results.

        Returns:
            The tab to show, the cards to compute and compare, the tab to run, Stop, then `comparison_values`.
        """
        cards = self.history.chosen(read_history(kept), event)
        # A run for an earlier comparison goes on, and its result is not shown.
        self.buttons.cover(request.session_hash, TabView())
        lost: list[Card] = []
        try:
            runs = {card.key: self.history.flows(card) for card in cards}
            lost = [card for card in cards if runs[card.key] is None and 2 <= len(cards) <= MOST_FIGURES]
            for card in lost:
                self.history.fields(card, lost=True)
            if lost:
                many = "A chosen result is" if len(lost) == 1 else f"{len(lost)} chosen results are"
                comparison = Comparison(status_html(f"{many} no longer kept, and computed again."))
                self.buttons.begin(request)
            else:
                comparison = compare_runs([flows for flows in runs.values() if flows is not None])
        except CausalTracerError as error:
            lost, comparison = [], Comparison(message_html(str(error)))
        shown = comparison_values(comparison)
        stop = gr.Button(visible=bool(lost), interactive=True)
        return (gr.Tabs(selected="compare"), tuple(cards if lost else ()), "compare" if lost else "", stop, *shown)

    async def compute(self, request: gr.Request, due: tuple[Card, ...]) -> AsyncGenerator[tuple[Any, ...]]:
        """Compute what is lost and compare: yield what was computed so far, Stop, then `comparison_values`."""
        async with aclosing(stepped(partial(self._steps, request, due))) as steps:
            async for step in steps:
                yield step

    def _steps(self, request: gr.Request, due: tuple[Card, ...], left: Cancelled) -> Generator[tuple[Any, ...]]:
        computed: Computed = ()
        runs: list[Any] = []
        begun: RunUpdate | None = None
        rest = (gr.skip(),) * (_SHOWN_PARTS - 1)
        with self.buttons.running(request.session_hash) as run:
            yield computed, gr.skip(), gr.skip(), *rest
            try:
                for number, card in enumerate(due, start=1):
                    flows = self.history.flows(card)
                    if flows is None:
                        about, begun = f"Run {number} of {len(due)}, {card.name or card.title}:", None
                        with closing(self._updates(request, card, left)) as updates:
                            for update in updates:
                                begun = begun or (update if update.done else None)
                                words = status_html(f"{about} {progress_words(update, begun)}")
                                yield computed, gr.skip(), words if run.cover is None else gr.skip(), *rest
                        flows = cast(Flows, update.flows)
                        computed = (*computed, (card, flows))
                    runs.append(flows)
                comparison = compare_runs(runs)
            except CausalTracerError as error:
                comparison = Comparison(message_html(str(error)))
            if run.cover is None:
                yield computed, gr.Button(visible=False), *comparison_values(comparison)
            else:
                yield computed, gr.skip(), gr.skip(), *rest

    def _updates(self, request: gr.Request, card: Card, left: Cancelled) -> Generator[RunUpdate]:
        """Compute the result of a card, as a click on it does."""
        service = self.history.service
        client = client_of(request, service.settings)
        return thinned(service.trace(self.history.fields(card, lost=True), client, left), REDRAW_SECONDS)

    def stop(self, request: gr.Request) -> tuple[Any, Any]:
        """Show that Stop was pressed; Gradio then cancels the run."""
        self.buttons.stop(request)
        return status_html("Stopping."), gr.Button(interactive=False)

    def ended(self, request: gr.Request) -> tuple[Any, ...]:
        """Show that a run has ended early: Stop, then `comparison_values`."""
        stopped = self.buttons.was_stopped(request.session_hash)
        words = status_html("Stopped. Nothing was compared.") if stopped else status_html(BROKEN, state="ct-failed")
        return (gr.Button(visible=False), *comparison_values(Comparison(words)))

    def computed(self, computed: Computed, kept: str) -> str:
        """Put results that were computed again into their cards."""
        history = read_history(kept)
        for card, flows in computed:
            history = self.history.refilled(history, card, flows)
        unchanged: str = gr.skip()
        return self.history.strip(history) if computed else unchanged


def comparison_values(comparison: Comparison) -> tuple[Any, ...]:
    """Return the values of the Compare tab: words, details, tables, then column, heading and plot of each figure."""
    shown = list(comparison.figures) + [None] * (MOST_FIGURES - len(comparison.figures))
    parts = (
        (gr.Column(visible=False), gr.skip(), gr.skip())
        if each is None
        else (gr.Column(visible=True), each[0], each[1])
        for each in shown
    )
    return (comparison.words, comparison.details, comparison.tables, *chain.from_iterable(parts))


def compare_tab(strip: HistoryStrip, tabs: gr.Tabs) -> None:
    """Lay out and wire the tab that compares chosen cards."""
    events = CompareEvents(strip.events, strip.events.runs["compare"])
    figures = []
    with gr.Tab(TAB_TITLES["compare"], id="compare"):
        due, computed = (gr.State((), time_to_live=IDLE_SECONDS) for _ in range(2))
        # Pressed by the script that also runs a lost result in its tab.
        run = gr.Button("Run", visible="hidden", elem_id="ct-run-compare")
        stop = gr.Button("Stop", visible=False, scale=0, min_width=90, elem_id="ct-stop-compare")
        words = gr.HTML(_NOTHING, elem_id="ct-compare-words")
        with gr.Row():
            for number in range(1, MOST_FIGURES + 1):
                with gr.Column(min_width=300, visible=False) as column:
                    heading = gr.HTML("")
                    plot = gr.Plot(
                        label=f"Comparison {number}",
                        show_label=False,
                        elem_id=f"ct-map-compare-{number}",
                        elem_classes="ct-map",
                    )
                figures += [column, heading, plot]
        details = gr.HTML("", elem_id="ct-compare-details")
        table = gr.HTML("", elem_id="ct-table-compare", js_on_load=static_text("table_stays.js"))
    shown = [stop, words, details, table, *figures]
    strip.cards.submit(
        events.compare,
        inputs=[strip.kept],
        outputs=[tabs, due, strip.again, *shown],
        js=from_browser(1),
        **AT_ONCE,
    ).then(None, inputs=[strip.again], js=RUN_AGAIN, api_visibility="private")
    computing = run.click(
        events.compute,
        inputs=[due],
        outputs=[computed, *shown],
        trigger_mode="multiple",
        show_progress="hidden",
        concurrency_id=MODEL_QUEUE,
        concurrency_limit=strip.events.service.settings.workers,
        api_visibility="private",
    )
    filled = {"inputs": [computed, strip.kept], "outputs": [strip.cards], "js": from_browser(2), **AT_ONCE}
    computing.success(events.computed, **filled)
    computing.failure(events.ended, outputs=shown, **AT_ONCE).then(events.computed, **filled)
    stop.click(events.stop, outputs=[words, stop], cancels=[computing], **AT_ONCE)
