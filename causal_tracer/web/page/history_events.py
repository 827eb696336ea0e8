"""Event handlers of the history: a run ends, a card is clicked, changed, compared or shared, a file is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import gradio as gr

from causal_tracer.errors import CausalTracerError, ResultLostError, SettingsError
from causal_tracer.request.records import StoredRequest
from causal_tracer.web.page.cards import strip_html
from causal_tracer.web.page.compare import MOST_FIGURES, Comparison, compare_runs
from causal_tracer.web.page.downloads import open_result
from causal_tracer.web.page.fields import FIELD_NAMES, field_values, picked_by
from causal_tracer.web.page.handlers import KEPT, address_of, result_link, together
from causal_tracer.web.page.history import MOST_LINKED, History, read_history, runs_link
from causal_tracer.web.page.run_card import LONGEST_NAME, Card, card_of, printable
from causal_tracer.web.page.summary import message_html, status_html
from causal_tracer.web.page.views import TabView, maps_view
from causal_tracer.web.service.asking import Fields
from causal_tracer.web.service.field_checks import check_fields
from causal_tracer.web.service.figures import Flows
from causal_tracer.web.service.links import asked_fields
from causal_tracer.web.service.tracing import TraceService

_FAILED = "ct-failed"


@dataclass(frozen=True)
class HistoryEvents:
    """Event handlers of the history. Each takes the browser's list as text, and returns the strip with the new list.

    A class, since Gradio gives events and requests only to methods with type hints.

    Attributes:
        service: The models and the results.
        tabs: The sites of each tab's maps, by the tab's name.
    """

    service: TraceService
    tabs: Mapping[str, tuple[str, ...]]

    def strip(self, history: History, **more: Any) -> str:
        """Return the strip of a history; further arguments as in `strip_html`."""
        return strip_html(history, self._keeps, **more)

    def load(self, request: gr.Request, kept: str) -> str:
        """Return the strip of a page that is opened: its cards, and those of a link to several runs."""
        history, linked = read_history(kept), request.query_params.get("runs", "")
        if not linked:
            return self.strip(history)
        return self._linked(history, linked)

    def redraw(self, kept: str) -> str:
        """Return the strip after a change in another window, or after an undo."""
        return self.strip(read_history(kept))

    def ended(self, status: str, flows: Flows | None, kept: str) -> str:
        """Add the card of a run that has ended, unless the run failed; `status` is the line beside Run."""
        if not flows or _FAILED in status:
            unchanged: str = gr.skip()
            return unchanged
        try:
            card = self._card(tuple(flows.values()))
        except CausalTracerError as error:
            history = read_history(kept)
            return self.strip(replace(history, problems=(*history.problems, f"This run gets no card: {error}")))
        return self.strip(read_history(kept).added(card), current=card.key)

    def edit(self, event: gr.EventData, kept: str) -> str:
        """Pin, unpin, name or delete a card."""
        history = read_history(kept)
        key, do, name = (getattr(event, part, "") for part in ("key", "do", "name"))
        card = history.find(str(key))
        if card is None:
            return self.strip(history)
        what = card.name or card.title
        if do == "delete":
            return self.strip(history.changed(card.key, None), said=f"Deleted “{what}”.", undo=True)
        if do == "pin":
            return self.strip(history.changed(card.key, replace(card, pinned=not card.pinned)))
        return self.strip(history.changed(card.key, replace(card, name=printable(str(name), LONGEST_NAME))))

    def open(self, request: gr.Request, event: gr.SelectData, kept: str) -> tuple[Any, ...]:
        """Open a clicked card: show its result in its tab and its request in the fields; run it again if it is lost.

        Returns:
            The values of all tabs and of the fields, the choices, the tab to show, the strip, and the tab to run.
        """
        history = read_history(kept)
        card = history.find(str(event.value))
        try:
            if card is None:
                raise ResultLostError("This card is no longer in the browser's list.")
            flows, tab = self._flows(card), self._tab(card.kinds)
            fields = self._fields(card, lost=flows is None)
            history, card = (history, card) if flows else self._asked_anew(history, card, fields)
        except CausalTracerError as error:
            history = replace(history, problems=(*history.problems, str(error)))
            return (*self.views("", TabView()), *self._no_fields(), gr.skip(), self.strip(history), "")
        values = self._no_fields() if fields is None else (*field_values(fields), picked_by(fields))
        if flows is None:
            shown, again = TabView(status=status_html("This result is computed again.")), tab
        else:
            shown, again = self._view(tab, flows, "Opened from the history.", KEPT, request), ""
            history = history.added(self._filled(card, flows))
        views = self.views(tab, shown)
        return (*views, *values, gr.Tabs(selected=tab), self.strip(history, current=card.key), again)

    def open_file(self, request: gr.Request, path: str, kept: str) -> tuple[Any, ...]:
        """Open an uploaded result; return the values of all tabs, the tab to show, the strip, and a message."""
        history = read_history(kept)
        try:
            flow = open_result(Path(path))
            tab = self._tab((flow.kind,))
        except CausalTracerError as error:
            return (*self.views("", TabView()), gr.skip(), gr.skip(), message_html(str(error)))
        words, current = "", ""
        try:
            card = card_of((flow,), opened=self.service.kept.keep_file(flow))
            history, current = history.added(card), card.key
        except CausalTracerError as error:
            words = message_html(warned=[f"The file gets no card in the history: {error}"])
        shown = self._view(tab, {flow.kind: flow}, "Opened from a file.", "opened from a file", request)
        return (*self.views(tab, shown), gr.Tabs(selected=tab), self.strip(history, current=current), words)

    def compare(self, event: gr.EventData, kept: str) -> tuple[Any, ...]:
        """Compare the chosen cards; return the tab to show, then `comparison_values`."""
        return (gr.Tabs(selected="compare"), *comparison_values(self._comparison(read_history(kept), event)))

    def share(self, request: gr.Request, event: gr.EventData, kept: str) -> str:
        """Return the strip with a link to the chosen cards."""
        history = read_history(kept)
        cards = self._chosen(history, event)
        try:
            link = runs_link(cards, address_of(request))
        except CausalTracerError as error:
            return self.strip(replace(history, problems=(*history.problems, str(error))))
        runs = "this run" if len(cards) == 1 else f"these {len(cards)} runs"
        return self.strip(history, said=f"A link to {runs}:", link=link)

    def _linked(self, history: History, text: str) -> str:
        found = read_history(text, MOST_LINKED, "the link")
        for card in found.cards:
            flows = self._flows(card)
            history = history.added(card if flows is None else self._filled(card, flows))
        history = replace(history, problems=(*history.problems, *found.problems))
        count = len(found.cards)
        said = f"The link has added {count} {'run' if count == 1 else 'runs'}. Click one to open it." if count else ""
        return self.strip(history, chosen=[card.key for card in found.cards], said=said)

    def _comparison(self, history: History, event: gr.EventData) -> Comparison:
        cards = self._chosen(history, event)
        try:
            found = [(card, self._flows(card)) for card in cards]
            if lost := [card.name or card.title for card, flows in found if flows is None]:
                raise ResultLostError(
                    f"The results of {len(lost)} chosen runs are not kept ({', '.join(lost)}). Click their cards to "
                    "compute them, then compare."
                )
            return compare_runs([flows for _, flows in found if flows is not None])
        except CausalTracerError as error:
            return Comparison(message_html(str(error)))

    def _chosen(self, history: History, event: gr.EventData) -> list[Card]:
        keys = getattr(event, "keys", None)
        return [card for card in history.cards if isinstance(keys, list) and card.key in keys]

    def _card(self, flows: Sequence[Any]) -> Card:
        return card_of(flows, self.service.status(flows[0].settings.model).model)

    def _filled(self, card: Card, flows: Flows) -> Card:
        """Return a card completed from its result: a card that a link has added has no answer, number or thumbnail."""
        if card.number:
            return card
        return replace(card_of(tuple(flows.values()), card.model, card.asked, card.opened), name=card.name)

    def _keeps(self, card: Card) -> bool | None:
        kept = self.service.kept
        return kept.has_file(card.opened) if card.opened else kept.has(card.model, card.asked)

    def _flows(self, card: Card) -> Any:
        kept = self.service.kept
        if not card.opened:
            found = kept.flows(card.model, card.asked)
        else:
            found = None if (flow := kept.file(card.opened)) is None else (flow,)
        return None if found is None else dict(zip(card.kinds, found, strict=True))

    def _fields(self, card: Card, *, lost: bool) -> Fields | None:
        """Return the fields of a card; None leaves the page's fields unchanged, if they cannot describe the result.

        Raises:
            CausalTracerError: The result is lost, and the fields cannot describe it, so it cannot be computed again.
        """
        if card.opened:
            if lost:
                raise ResultLostError("The opened file is no longer kept. Open it again.")
            return None
        try:
            model = self.service.status(card.model).model
            asked = together([asked_fields(each, model, each.request.noise) for each in card.asked])
            return {**asked, "model": model}
        except SettingsError:
            if lost:
                raise
            return None

    def _asked_anew(self, history: History, card: Card, fields: Fields | None) -> tuple[History, Card]:
        """Return the history and the card with the request that the app will run, so that its run fills this card.

        Raises:
            CausalTracerError: The request is over one of the app's limits.
        """
        checked = check_fields(fields or {}, self.service.settings)
        asked = tuple(StoredRequest(checked.request, spec, checked.options) for spec in checked.specs.values())
        anew = replace(card, asked=asked)
        if anew.key == card.key:
            return history, card
        return history.changed(card.key, None if history.find(anew.key) else anew), anew

    def _tab(self, kinds: tuple[str, ...]) -> str:
        """Return the tab that shows maps of these sites.

        Raises:
            SettingsError: There is none.
        """
        for name, its in self.tabs.items():
            if its == kinds:
                return name
        raise SettingsError(f"This app has no tab for maps of {' and '.join(kinds)}.")

    def _view(self, tab: str, flows: Any, words: str, origin: str, request: gr.Request) -> TabView:
        link = result_link(self.service, flows, request)
        return maps_view(tab, flows, status=status_html(words), origin=origin, link=link)

    def views(self, shown: str, view: TabView) -> tuple[Any, ...]:
        """Return the values of all tabs of maps: a view of one tab, and the others unchanged."""
        parts = ((view if name == shown else TabView()).outputs(len(kinds)) for name, kinds in self.tabs.items())
        return tuple(chain.from_iterable(parts))

    def _no_fields(self) -> tuple[Any, ...]:
        return (gr.skip(),) * (len(FIELD_NAMES) + 1)


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
