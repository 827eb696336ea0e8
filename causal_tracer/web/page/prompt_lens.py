"""The logit lens of a newly typed prompt, shown instead of the map of an earlier prompt until Run is pressed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from functools import partial
from html import escape
from typing import Any

import gradio as gr

from causal_tracer.errors import CausalTracerError, TraceCancelled
from causal_tracer.request.records import Text
from causal_tracer.web.page import explore
from causal_tracer.web.page.fields import Picked, asked_for
from causal_tracer.web.page.inputs_layout import AT_ONCE, IDLE_SECONDS, Inputs
from causal_tracer.web.page.lens_grid import grid_html, legend_html
from causal_tracer.web.page.lens_tab import NOTED, NewestLens, lens_key, lens_queue, lens_request
from causal_tracer.web.page.tab_layout import MapTab
from causal_tracer.web.service.figures import Flows
from causal_tracer.web.service.limits import client_of
from causal_tracer.web.service.stored import STORED_PROMPT
from causal_tracer.web.service.tracing import TraceService
from causal_tracer.web.service.updates import Cancelled, stepped

ABOUT = "Logit lens: the most probable next token after each token and layer. Run replaces it by the map."
# Passes the name of the tab whose Run button is visible; empty if a tab without maps is open.
_OPEN_TAB = """(tab, ...rest) => [
  [...document.querySelectorAll('[id^="ct-run-"]')].find(run => run.offsetParent)?.id.slice('ct-run-'.length) ?? '',
  ...rest,
]"""


@dataclass(frozen=True)
class Seen:
    """The prompts at the last check: that of the fields, and those that belong to each tab's map.

    Attributes:
        prompt: The prompt in the fields.
        beside: By tab, the prompt of its map, and the prompt in the fields when the map came. The two differ for an
            opened file, which leaves the fields unchanged.
    """

    prompt: Text = STORED_PROMPT
    beside: Mapping[str, tuple[Text, Text]] = field(default_factory=dict)


@dataclass(frozen=True)
class PlacedLens:
    """The lens of a prompt as HTML, with the tab and prompt that it was read for; empty if the maps are shown."""

    wanted: str = ""
    tab: str = ""
    prompt: Text = ""
    html: str = ""


@dataclass(frozen=True)
class PromptLensEvents:
    """The event handlers. A class, since Gradio gives its request only to methods with type hints.

    Attributes:
        service: The models.
        tabs: The tabs of maps.
    """

    service: TraceService
    tabs: tuple[str, ...] = explore.MAP_TABS

    def wanted(self, tab: str, newest: NewestLens, seen: Seen, *states: Any) -> tuple[Any, Any]:
        """Return the key of the lens to show in a tab (empty to show its map), and the prompts of this check.

        Args:
            tab: The open tab; empty for one without maps.
            newest: Gets the key, so that the read of another lens ends.
            seen: The prompts at the last check.
            states: The results of all tabs, the clicked choices, then the fields' values.
        """
        flows, picked, values = states[: len(self.tabs)], states[len(self.tabs)], states[len(self.tabs) + 1 :]
        try:
            asked = asked_for("hidden", picked, *values)
            prompt = lens_request(asked, self.service.settings).prompt
        except CausalTracerError:
            # The page reports the error below the fields.
            return gr.skip(), gr.skip()
        if tab not in self.tabs:
            return gr.skip(), replace(seen, prompt=prompt)
        shown = _prompt_of(flows[self.tabs.index(tab)] or explore.stored_flows(tab))
        of_map, beside = seen.beside.get(tab, (STORED_PROMPT, STORED_PROMPT))
        if shown != of_map:
            # A new map. If the prompt has not changed since, the map came while this prompt was in the fields.
            beside = prompt if prompt == seen.prompt else shown
        seen = Seen(prompt, {**seen.beside, tab: (shown, beside)})
        if prompt in (shown, beside):
            newest.key = ""
            return "", seen
        if self.service.status(asked["model"]).state != "ready":
            return gr.skip(), seen
        newest.key = f"{tab} {lens_key(asked)}"
        return newest.key, seen

    def selected(self, event: gr.SelectData, *states: Any) -> tuple[Any, Any]:
        """Return what `wanted` returns for the tab that was selected."""
        return self.wanted(explore.TITLED[str(event.value)], *states)

    def clear(self, wanted: str) -> tuple[Any, ...]:
        """Show the maps again at once if no lens is wanted, without waiting for a lens that is being read."""
        return ("" if not wanted else gr.skip(),) * len(self.tabs)

    async def read(
        self, request: gr.Request, wanted: str, newest: NewestLens, picked: Picked, *values: Any
    ) -> AsyncGenerator[PlacedLens]:
        """Read the lens."""
        async with aclosing(stepped(partial(self._read, request, wanted, newest, picked, values))) as steps:
            async for step in steps:
                yield step

    def _read(
        self,
        request: gr.Request,
        wanted: str,
        newest: NewestLens,
        picked: Picked,
        values: Sequence[Any],
        left: Cancelled,
    ) -> Generator[PlacedLens]:
        tab = wanted.partition(" ")[0]
        if not tab:
            yield PlacedLens()
            return
        try:
            asked = asked_for("hidden", picked, *values)
            client = client_of(request, self.service.settings)
            asks = lens_request(asked, self.service.settings)
            lens = self.service.lens(asks, asked["model"], client, cancelled=newest.unless(wanted, left))
            model = self.service.status(asked["model"]).title
        except TraceCancelled:
            # The next lens is wanted already. `place` leaves the page as it is.
            yield gr.skip()
            return
        except CausalTracerError:
            # A model without a lens keeps its map; the tab Lens says why.
            yield PlacedLens()
            return
        about = f'<p class="ct-hint">{ABOUT} <span class="ct-made">{escape(model)}</span></p>'
        html = about + legend_html(lens) + grid_html(lens, f"prompt-{tab}", title="Prompt")
        yield PlacedLens(f"{tab} {lens_key(asked)}", tab, asks.prompt, html)

    def place(self, placed: PlacedLens, wanted: str, *flows: Flows | None) -> tuple[str, ...]:
        """Return the HTML shown instead of each tab's map: the lens, unless a map of its prompt has come meanwhile.

        A lens of an outdated prompt changes nothing, since the next lens is being read.
        """
        nothing = ("",) * len(self.tabs)
        if not placed.tab or not wanted:
            return nothing
        if placed.wanted != wanted:
            return (gr.skip(),) * len(self.tabs)
        if self._has_its_map(placed, flows):
            return nothing
        return tuple(placed.html if name == placed.tab else "" for name in self.tabs)

    def _has_its_map(self, placed: PlacedLens, flows: Sequence[Flows | None]) -> bool:
        """Return whether the lens's tab shows a map of the lens's prompt."""
        return _prompt_of(flows[self.tabs.index(placed.tab)] or explore.stored_flows(placed.tab)) == placed.prompt


def _prompt_of(flows: Flows) -> Text:
    """Return the prompt of a tab's maps."""
    flow = next(iter(flows.values()))
    try:
        return flow.stored_request().request.prompt
    except CausalTracerError:
        return flow.prompt


def wire_prompt_lens(service: TraceService, inputs: Inputs, changed: Sequence[Any], tabs: Sequence[MapTab]) -> None:
    """Wire the lens, so that it is shown instead of the maps when the prompt changes.

    Args:
        service: The models.
        inputs: The fields.
        changed: The events after which another lens, or none, may be due: the fields were inspected, or a saved result
            was opened.
        tabs: The tabs of maps, in the order of `explore.MAP_TABS`.
    """
    events = PromptLensEvents(service)
    wanted, seen, tab = gr.State(""), gr.State(Seen(), time_to_live=IDLE_SECONDS), gr.Textbox("", visible=False)
    newest = gr.State(NewestLens(), time_to_live=IDLE_SECONDS)
    states = [newest, seen, *(each.flows for each in tabs), inputs.picked, *inputs.values]
    noted: dict[str, Any] = {"outputs": [wanted, seen], "trigger_mode": "multiple", **NOTED}
    for event in changed:
        event.then(events.wanted, inputs=[tab, *states], js=_OPEN_TAB, **noted)
    gr.on([each.page.select for each in tabs], events.selected, inputs=states, **noted)
    lenses = [each.lens for each in tabs]
    placed = gr.State(PlacedLens(), time_to_live=IDLE_SECONDS)
    wanted.change(events.clear, inputs=[wanted], outputs=lenses, trigger_mode="multiple", **AT_ONCE)
    asked = [wanted, newest, inputs.picked, *inputs.values]
    reading = wanted.change(events.read, inputs=asked, outputs=[placed], **lens_queue(service))
    # Shown by a separate event, which gets the current maps: a late lens must not cover a newer map. It may still get
    # them just before a run ends, and reach the page just after. So it is repeated after each run, in turn.
    for then in (reading.success, *(each.running.then for each in tabs)):
        then(
            events.place,
            inputs=[placed, wanted, *(each.flows for each in tabs)],
            outputs=lenses,
            trigger_mode="multiple",
            **NOTED,
        )
    # A run does not wait for a lens that it will cover.
    gr.on([each.run.click for each in tabs], None, cancels=[reading], api_visibility="private")
