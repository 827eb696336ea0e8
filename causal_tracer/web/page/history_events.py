"""Event handlers of the history: a run ends, a card is clicked, changed, compared or shared, a file is opened."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import gradio as gr

from causal_tracer.errors import BusyError, CausalTracerError, ResultLostError, SettingsError
from causal_tracer.request.records import StoredRequest
from causal_tracer.web.page.cards import strip_html
from causal_tracer.web.page.downloads import open_result
from causal_tracer.web.page.fields import FIELD_NAMES, field_values, picked_by
from causal_tracer.web.page.handlers import KEPT, address_of, result_link, together
from causal_tracer.web.page.history import MOST_LINKED, History, read_history, runs_link
from causal_tracer.web.page.run_card import LONGEST_NAME, Card, card_of, printable
from causal_tracer.web.page.stopping import RunButtons
from causal_tracer.web.page.summary import message_html, status_html
from causal_tracer.web.page.views import TabView, maps_view
from causal_tracer.web.service.app_fields import Fields
from causal_tracer.web.service.field_checks import check_fields
from causal_tracer.web.service.figures import Flows
from causal_tracer.web.service.links import asked_fields, linked_revision
from causal_tracer.web.service.tracing import TraceService

_BUSY = (
    "This result is no longer kept, and another run is in progress in its tab. Stop that run or wait until it is done, "
    "then click the card again."
)


@dataclass(frozen=True)
class HistoryEvents:
    """Event handlers of the history. Each takes the browser's list as text, and returns the strip with the new list.

    A class, since Gradio gives events and requests only to methods with type hints.

    Attributes:
        service: The models and the results.
        tabs: The sites of each tab's maps, by the tab's name.
        runs: The handlers of Run and Stop, by the name of a tab of maps or "compare".
    """

    service: TraceService
    tabs: Mapping[str, tuple[str, ...]]
    runs: Mapping[str, RunButtons] = field(default_factory=dict)

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

    def ended(self, finished: Flows | None, shown: Flows | None, kept: str) -> str:
        """Add the card of a finished run; a run that failed gets none.

        Args:
            finished: The maps of the run; empty or None if the run failed.
            shown: The maps that the tab shows: those of the run, or those of a result opened during the run.
            kept: The browser's list.
        """
        if not finished:
            unchanged: str = gr.skip()
            return unchanged
        try:
            card = self._card(tuple(finished.values()))
        except CausalTracerError as error:
            history = read_history(kept)
            return self.strip(replace(history, problems=(*history.problems, f"This run gets no card: {error}")))
        return self.strip(read_history(kept).added(card), current=card.key if shown is finished else "")

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
            flows, tab = self.flows(card), self._tab(card.kinds)
            fields = self.fields(card, lost=flows is None)
            if flows is None and tab in self.runs and self.runs[tab].in_progress(request.session_hash):
                raise BusyError(_BUSY)
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
        views = self.views(tab, shown, request)
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
        return (*self.views(tab, shown, request), gr.Tabs(selected=tab), self.strip(history, current=current), words)

    def share(self, request: gr.Request, event: gr.EventData, kept: str) -> str:
        """Return the strip with a link to the chosen cards."""
        history = read_history(kept)
        cards = self.chosen(history, event)
        try:
            link = runs_link([self._with_revision(card) for card in cards], address_of(request))
        except CausalTracerError as error:
            return self.strip(replace(history, problems=(*history.problems, str(error))))
        runs = "this run" if len(cards) == 1 else f"these {len(cards)} runs"
        return self.strip(history, said=f"A link to {runs}:", link=link)

    def _linked(self, history: History, text: str) -> str:
        found = read_history(text, MOST_LINKED, "the link")
        for card in found.cards:
            flows = self.flows(card)
            history = history.added(card if flows is None else self._filled(card, flows))
        revisions = (self.service.revision_problem(card.model, card.revision) for card in found.cards)
        others = dict.fromkeys(filter(None, revisions))
        history = replace(history, problems=(*history.problems, *found.problems, *others))
        count = len(found.cards)
        said = f"The link has added {count} {'run' if count == 1 else 'runs'}. Click one to open it." if count else ""
        return self.strip(history, chosen=[card.key for card in found.cards], said=said)

    def chosen(self, history: History, event: gr.EventData) -> list[Card]:
        """Return the cards whose keys an event names, in the order of the history."""
        keys = getattr(event, "keys", None)
        return [card for card in history.cards if isinstance(keys, list) and card.key in keys]

    def refilled(self, history: History, card: Card, flows: Flows) -> History:
        """Return the history with a card filled from its computed result; a card that was deleted stays deleted."""
        if history.find(card.key) is None:
            return history
        anew = self._card(tuple(flows.values()))
        if anew.key != card.key:
            history = history.changed(card.key, None if history.find(anew.key) else replace(card, asked=anew.asked))
        return history.added(anew)

    def _card(self, flows: Sequence[Any]) -> Card:
        return card_of(flows, self.service.status(flows[0].settings.model).model)

    def _with_revision(self, card: Card) -> Card:
        """Return a card with the revision that a link to this one run would name."""
        try:
            return replace(card, revision=linked_revision(self.service.revision(card.model, card.revision)))
        except SettingsError:
            # The app does not have this model.
            return card

    def _filled(self, card: Card, flows: Flows) -> Card:
        """Return a card completed from its result: a card that a link has added has no answer, number or thumbnail."""
        if card.number:
            return card
        return replace(card_of(tuple(flows.values()), card.model, card.asked, card.opened), name=card.name)

    def _keeps(self, card: Card) -> bool | None:
        kept = self.service.kept
        return kept.has_file(card.opened) if card.opened else kept.has(card.model, card.asked)

    def flows(self, card: Card) -> Any:
        """Return the maps of a card by site; None if they are no longer kept."""
        kept = self.service.kept
        if not card.opened:
            found = kept.flows(card.model, card.asked)
        else:
            found = None if (flow := kept.file(card.opened)) is None else (flow,)
        return None if found is None else dict(zip(card.kinds, found, strict=True))

    def fields(self, card: Card, *, lost: bool) -> Fields | None:
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

    def views(self, shown: str, view: TabView, request: gr.Request | None = None) -> tuple[Any, ...]:
        """Return the values of all tabs of maps: a view of one tab, and the others unchanged.

        Args:
            shown: The name of the tab with the view.
            view: The view.
            request: The request that opens a result, if the view is of one. A run in progress in the tab then
                continues without changing the view.
        """
        if request is not None and shown in self.runs:
            view = self.runs[shown].show_opened(request.session_hash, view)
        parts = ((view if name == shown else TabView()).outputs(len(kinds)) for name, kinds in self.tabs.items())
        return tuple(chain.from_iterable(parts))

    def _no_fields(self) -> tuple[Any, ...]:
        return (gr.skip(),) * (len(FIELD_NAMES) + 1)
