"""Event handlers of the history: a run ends, a card is clicked, changed, compared or shared, a file is opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import gradio as gr

from causal_tracer.errors import BusyError, CausalTracerError, ResultLostError, SettingsError
from causal_tracer.web.page.card import LONGEST_NAME, Card, printable
from causal_tracer.web.page.card_results import CardResults
from causal_tracer.web.page.downloads import open_result
from causal_tracer.web.page.fields import FIELD_NAMES, field_values, picked_by
from causal_tracer.web.page.handlers import KEPT, address_of, result_link
from causal_tracer.web.page.history import MOST_LINKED, History, read_history, runs_link
from causal_tracer.web.page.map_card import MapCard, map_card_of
from causal_tracer.web.page.patch_card import PatchCard
from causal_tracer.web.page.stopping import RunButtons
from causal_tracer.web.page.strip import strip_html
from causal_tracer.web.page.summary import message_html, status_html
from causal_tracer.web.page.views import TabView, maps_view
from causal_tracer.web.service.figures import Flows
from causal_tracer.web.service.links import typed_text
from causal_tracer.web.service.tracing import TraceService

_BUSY = (
    "This result is no longer kept, and another run is in progress in its tab. Stop that run or wait until it is done, "
    "then click the card again."
)
_NO_FIELDS: tuple[Any, ...] = (gr.skip(),) * (len(FIELD_NAMES) + 1)
_NO_PATCH: tuple[Any, ...] = (gr.skip(),) * 3


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

    @property
    def results(self) -> CardResults:
        """The results of the cards' runs."""
        return CardResults(self.service)

    def strip(self, history: History, **more: Any) -> str:
        """Return the strip of a history; further arguments as in `strip_html`."""
        return strip_html(history, self.results.keeps, **more)

    def forget(self, request: gr.Request) -> None:
        """Drop the runs of a page that was closed."""
        for buttons in self.runs.values():
            buttons.forget(request.session_hash)

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
            card = self.results.card_of(tuple(finished.values()))
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

    def patched(self, finished: PatchCard | None, kept: str) -> str:
        """Add the card of a finished patched run; a run that failed or has no pairs gets none."""
        if finished is None:
            unchanged: str = gr.skip()
            return unchanged
        card = self.results.with_revision(finished)
        return self.strip(read_history(kept).added(card), current=card.key)

    def open(self, request: gr.Request, event: gr.SelectData, kept: str) -> tuple[Any, ...]:
        """Open a clicked card: show its result in its tab and its request in the fields; run it again if it is lost.

        Returns:
            The values of all tabs of maps and of the fields, the choices, the base prompt, site and pairs of the tab
            Patch, the tab to show, the strip, and the tab to run.
        """
        history = read_history(kept)
        card = history.find(str(event.value))
        try:
            if isinstance(card, PatchCard):
                return self._open_patch(history, card)
            if not isinstance(card, MapCard):
                raise ResultLostError("This card is no longer in the browser's list.")
            return self._open_maps(history, card, request)
        except CausalTracerError as error:
            history = replace(history, problems=(*history.problems, str(error)))
            unchanged = (*_NO_FIELDS, *_NO_PATCH, gr.skip())
            return (*self.views("", TabView()), *unchanged, self.strip(history), "")

    def _open_maps(self, history: History, card: MapCard, request: gr.Request) -> tuple[Any, ...]:
        flows, tab = self.results.flows(card), self._tab(card.kinds)
        fields = self.results.fields(card, lost=flows is None)
        if flows is None:
            if tab in self.runs and self.runs[tab].in_progress(request.session_hash):
                raise BusyError(_BUSY)
            anew = self.results.asked_anew(card, fields)
            history, card = history.moved(card, anew), anew
            shown, again = TabView(status=status_html("This result is computed again.")), tab
        else:
            shown, again = self._view(tab, flows, "Opened from the history.", KEPT, request), ""
            history = history.added(self.results.filled(card, flows))
        values = _NO_FIELDS if fields is None else (*field_values(fields), picked_by(fields))
        strip = self.strip(history, current=card.key)
        return (*self.views(tab, shown, request), *values, *_NO_PATCH, gr.Tabs(selected=tab), strip, again)

    def _open_patch(self, history: History, card: PatchCard) -> tuple[Any, ...]:
        """Fill in what the tab Patch asks for; a press on its button then reads the prompts and makes the pairs."""
        fields = self.results.patch_fields(card)
        values = zip(FIELD_NAMES, field_values(fields), strict=True)
        # The experiment's fields are not the patched run's.
        own = (value if name in ("model", "prompt", "answer", "chat") else gr.skip() for name, value in values)
        asked = card.asked
        patch = (typed_text(asked.base), asked.site, asked)
        strip = self.strip(history, current=card.key)
        unchanged = self.views("", TabView())
        return (*unchanged, *own, picked_by(fields), *patch, gr.Tabs(selected="patch"), strip, "patch")

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
            card = map_card_of((flow,), opened=self.service.kept.keep_file(flow))
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
            link = runs_link([self.results.with_revision(card) for card in cards], address_of(request))
        except CausalTracerError as error:
            return self.strip(replace(history, problems=(*history.problems, str(error))))
        runs = "this run" if len(cards) == 1 else f"these {len(cards)} runs"
        return self.strip(history, said=f"A link to {runs}:", link=link)

    def _linked(self, history: History, text: str) -> str:
        found = read_history(text, MOST_LINKED, "the link")
        for card in found.cards:
            flows = self.results.flows(card) if isinstance(card, MapCard) else None
            history = history.added(self.results.filled(card, flows) if isinstance(card, MapCard) and flows else card)
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

    def refilled(self, history: History, card: MapCard, flows: Flows) -> History:
        """Return the history with a card filled from its computed result; a card that was deleted stays deleted."""
        if history.find(card.key) is None:
            return history
        anew = self.results.card_of(tuple(flows.values()))
        return history.moved(card, replace(card, asked=anew.asked)).added(anew)

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
