"""The Compare tab: it compares chosen cards at once, or after it has computed their lost results again."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import aclosing, closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, cast

import gradio as gr

from causal_tracer.errors import CausalTracerError, SettingsError
from causal_tracer.web.page.assets import static_text
from causal_tracer.web.page.compare import MOST_FIGURES, Comparison, compare_runs
from causal_tracer.web.page.explore import TAB_TITLES
from causal_tracer.web.page.handlers import REDRAW_SECONDS
from causal_tracer.web.page.history import read_history
from causal_tracer.web.page.history_events import HistoryEvents
from causal_tracer.web.page.history_layout import RUN_AGAIN, HistoryStrip, from_browser
from causal_tracer.web.page.inputs_layout import AT_ONCE, IDLE_SECONDS, PAGE_EVENT
from causal_tracer.web.page.map_card import MapCard
from causal_tracer.web.page.patch_card import PatchCard
from causal_tracer.web.page.stopping import RunButtons
from causal_tracer.web.page.summary import message_html, progress_words, status_html
from causal_tracer.web.page.tab_layout import MODEL_QUEUE
from causal_tracer.web.page.texts import UNEXPECTED_ERROR
from causal_tracer.web.page.views import TabView
from causal_tracer.web.service.figures import Flows
from causal_tracer.web.service.limits import client_of
from causal_tracer.web.service.updates import Cancelled, RunUpdate, stepped, thinned

_NOTHING = '<p class="ct-hint">Choose two to four cards below, and press Compare there.</p>'
_SHOWN_PARTS = 3 + 3 * MOST_FIGURES

Computed = tuple[tuple[MapCard, Flows], ...]
"""Cards whose lost results were computed again, each with its result."""


@dataclass(frozen=True)
class CompareEvents:
    """Event handlers of the tab. A class, since Gradio gives events and requests only to methods with type hints.

    Attributes:
        history: The cards and their results.
        buttons: Records which sessions have a run in progress, and which have pressed Stop.
    """

    history: HistoryEvents
    buttons: RunButtons

    def compare(self, request: gr.Request, event: gr.EventData, kept: str) -> tuple[Any, ...]:
        """Compare the chosen cards, or begin to compute their lost results.

        Returns:
            The tab to show, the cards to compare after a run, the tab to run, Stop, then `comparison_values`.
        """
        chosen = self.history.chosen(read_history(kept), event)
        cards = [card for card in chosen if isinstance(card, MapCard)]
        # A run for an earlier comparison continues, but its comparison is not shown.
        self.buttons.show_opened(request.session_hash, TabView())
        lost: list[MapCard] = []
        try:
            if patched := [card for card in chosen if isinstance(card, PatchCard)]:
                what = patched[0].name or patched[0].title
                raise SettingsError(f"Only maps can be compared, and “{what}” is a patched run. Leave out its card.")
            runs = {card.key: self.history.results.flows(card) for card in cards}
            lost = [card for card in cards if runs[card.key] is None and 2 <= len(cards) <= MOST_FIGURES]
            for card in lost:
                self.history.results.fields(card, lost=True)
            if lost:
                many = "1 chosen result is" if len(lost) == 1 else f"{len(lost)} chosen results are"
                words = f"{many} no longer kept, and will be computed again before the comparison."
                comparison = Comparison(status_html(words))
                self.buttons.begin(request)
            else:
                comparison = compare_runs([flows for flows in runs.values() if flows is not None])
        except CausalTracerError as error:
            lost, comparison = [], Comparison(message_html(str(error)))
        shown = comparison_values(comparison)
        stop = gr.Button(visible=bool(lost), interactive=True)
        return (gr.Tabs(selected="compare"), tuple(cards if lost else ()), "compare" if lost else "", stop, *shown)

    async def compute(self, request: gr.Request, cards: tuple[MapCard, ...]) -> AsyncGenerator[tuple[Any, ...]]:
        """Compute lost results and compare; yield the results computed so far, Stop, then `comparison_values`."""
        async with aclosing(stepped(partial(self._steps, request, cards))) as steps:
            async for step in steps:
                yield step

    def _steps(self, request: gr.Request, cards: tuple[MapCard, ...], left: Cancelled) -> Generator[tuple[Any, ...]]:
        computed: Computed = ()
        runs: list[Any] = []
        begun: RunUpdate | None = None
        unchanged = (gr.skip(),) * (_SHOWN_PARTS - 1)
        with self.buttons.running(request.session_hash) as run:
            yield computed, gr.skip(), gr.skip(), *unchanged
            try:
                for number, card in enumerate(cards, start=1):
                    flows = self.history.results.flows(card)
                    if flows is None:
                        name, begun = f"Run {number} of {len(cards)}, {card.name or card.title}", None
                        with closing(self._updates(request, card, left)) as updates:
                            for update in updates:
                                begun = begun or (update if update.done else None)
                                words = status_html(f"{name}: {progress_words(update, begun)}")
                                yield computed, gr.skip(), words if run.opened is None else gr.skip(), *unchanged
                        flows = cast(Flows, update.flows)
                        computed = (*computed, (card, flows))
                    runs.append(flows)
                comparison = compare_runs(runs)
            except CausalTracerError as error:
                comparison = Comparison(message_html(str(error)))
            if run.opened is None:
                yield computed, gr.Button(visible=False), *comparison_values(comparison)
            else:
                yield computed, gr.skip(), gr.skip(), *unchanged

    def _updates(self, request: gr.Request, card: MapCard, left: Cancelled) -> Generator[RunUpdate]:
        """Compute the result of a card, as a click on the card does."""
        service = self.history.service
        client = client_of(request, service.settings)
        return thinned(service.trace(self.history.results.fields(card, lost=True), client, left), REDRAW_SECONDS)

    def stop(self, request: gr.Request) -> tuple[Any, Any]:
        """Show that Stop was pressed. Gradio then cancels the run."""
        self.buttons.stop(request)
        return status_html("Stopping."), gr.Button(interactive=False)

    def ended(self, request: gr.Request) -> tuple[Any, ...]:
        """Show that a run was stopped or has failed; return Stop, then `comparison_values`."""
        stopped = self.buttons.was_stopped(request.session_hash)
        words, state = ("Stopped. Nothing was compared.", "") if stopped else (UNEXPECTED_ERROR, "ct-failed")
        return (gr.Button(visible=False), *comparison_values(Comparison(status_html(words, state=state))))

    def fill_cards(self, computed: Computed, kept: str) -> str:
        """Return the strip with the cards filled from their computed results."""
        history = read_history(kept)
        for card, flows in computed:
            history = self.history.refilled(history, card, flows)
        unchanged: str = gr.skip()
        return self.history.strip(history) if computed else unchanged


def comparison_values(comparison: Comparison) -> tuple[Any, ...]:
    """Return the values of the Compare tab: words, details, tables; then column, heading and plot of each figure."""
    shown = list(comparison.figures) + [None] * (MOST_FIGURES - len(comparison.figures))
    parts = (
        (gr.Column(visible=False), gr.skip(), gr.skip())
        if each is None
        else (gr.Column(visible=True), each[0], each[1])
        for each in shown
    )
    return (comparison.words, comparison.details, comparison.tables, *chain.from_iterable(parts))


def compare_tab(strip: HistoryStrip, tabs: gr.Tabs) -> None:
    """Lay out and wire the tab."""
    events = CompareEvents(strip.events, strip.events.runs["compare"])
    figures = []
    with gr.Tab(TAB_TITLES["compare"], id="compare"):
        to_compare, computed = (gr.State((), time_to_live=IDLE_SECONDS) for _ in range(2))
        # Pressed by the script that also presses Run in the tab of a lost result.
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
        outputs=[tabs, to_compare, strip.again, *shown],
        js=from_browser(1),
        **AT_ONCE,
    ).then(None, inputs=[strip.again], js=RUN_AGAIN, api_visibility="private")
    computing = run.click(
        events.compute,
        inputs=[to_compare],
        outputs=[computed, *shown],
        trigger_mode="multiple",
        concurrency_id=MODEL_QUEUE,
        concurrency_limit=strip.events.service.settings.workers,
        **PAGE_EVENT,
    )
    filled = {"inputs": [computed, strip.kept], "outputs": [strip.cards], "js": from_browser(2), **AT_ONCE}
    computing.success(events.fill_cards, **filled)
    computing.failure(events.ended, outputs=shown, **AT_ONCE).then(events.fill_cards, **filled)
    stop.click(events.stop, outputs=[words, stop], cancels=[computing], **AT_ONCE)
