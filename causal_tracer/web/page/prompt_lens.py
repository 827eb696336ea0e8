"""The logit lens of a newly typed prompt, in the place of a map that is of another prompt until Run is pressed."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any

import gradio as gr

from causal_tracer.errors import CausalTracerError
from causal_tracer.request.records import Text
from causal_tracer.web.page import explore
from causal_tracer.web.page.fields import Picked, asked_for
from causal_tracer.web.page.inputs_layout import AT_ONCE, IDLE_SECONDS, Inputs
from causal_tracer.web.page.lens_grid import grid_html, legend_html
from causal_tracer.web.page.lens_tab import NOTED, lens_key, lens_queue, lens_request
from causal_tracer.web.page.tab_layout import MapTab
from causal_tracer.web.service.figures import Flows
from causal_tracer.web.service.limits import client_of
from causal_tracer.web.service.tracing import TraceService
from causal_tracer.web.service.updates import Cancelled, stepped

ABOUT = (
    '<p class="ct-hint">What the model would say after each token and layer (logit lens). '
    "Run puts the map in its place.</p>"
)
# The tab whose Run button can be seen; empty where a tab without maps is open.
_OPEN_TAB = """(tab, ...rest) => [
  [...document.querySelectorAll('[id^="ct-run-"]')].find(run => run.offsetParent)?.id.slice('ct-run-'.length) ?? '',
  ...rest,
]"""


@dataclass(frozen=True)
class Drawn:
    """The lens of a prompt as HTML, for a tab; empty where the maps stay."""

    tab: str = ""
    prompt: Text = ""
    html: str = ""


@dataclass(frozen=True)
class PromptLensEvents:
    """The events. A class, since Gradio gives its request only to methods with type hints.

    Attributes:
        service: The models.
        tabs: The tabs of maps.
    """

    service: TraceService
    tabs: tuple[str, ...] = explore.MAP_TABS

    def due(self, tab: str, *states: Any) -> Any:
        """Return which lens belongs into a tab: its tab and what is read; empty where the map is of this prompt.

        Args:
            tab: The open tab; empty for one without maps.
            states: The results of all tabs, what was picked, then the fields' values.
        """
        flows, picked, values = states[: len(self.tabs)], states[len(self.tabs)], states[len(self.tabs) + 1 :]
        if tab not in self.tabs:
            return gr.skip()
        try:
            asked = asked_for(tab, picked, *values)
            request = lens_request(asked, self.service.settings)
            if self.service.status(asked["model"]).state != "ready":
                return gr.skip()
        except CausalTracerError:
            # What is wrong with the fields stands beside them.
            return gr.skip()
        return "" if self._has_map(tab, request.prompt, flows) else f"{tab} {lens_key(asked)}"

    async def read(self, request: gr.Request, due: str, picked: Picked, *values: Any) -> AsyncGenerator[Drawn]:
        """Read the lens."""
        async with aclosing(stepped(partial(self._read, request, due, picked, values))) as steps:
            async for step in steps:
                yield step

    def _read(
        self, request: gr.Request, due: str, picked: Picked, values: Sequence[Any], left: Cancelled
    ) -> Generator[Drawn]:
        tab = due.partition(" ")[0]
        if not tab:
            yield Drawn()
            return
        try:
            asked = asked_for(tab, picked, *values)
            client = client_of(request, self.service.settings)
            asks = lens_request(asked, self.service.settings)
            lens = self.service.lens(asks, asked["model"], client, cancelled=left)
        except CausalTracerError:
            # A model without a lens keeps its map; the tab Lens says why.
            yield Drawn()
            return
        yield Drawn(tab, asks.prompt, ABOUT + legend_html(lens) + grid_html(lens, f"prompt-{tab}"))

    def place(self, drawn: Drawn, *flows: Flows | None) -> tuple[str, ...]:
        """Return what stands in the place of each tab's map, unless a run of the lens's prompt has begun since."""
        if not drawn.tab or self._has_map(drawn.tab, drawn.prompt, flows):
            return ("",) * len(self.tabs)
        return tuple(drawn.html if name == drawn.tab else "" for name in self.tabs)

    def _has_map(self, tab: str, prompt: Text, flows: Sequence[Flows | None]) -> bool:
        """Return whether a tab shows a map of this prompt."""
        shown = flows[self.tabs.index(tab)] or explore.stored_flows(tab)
        flow = next(iter(shown.values()))
        try:
            return flow.asked().request.prompt == prompt
        except CausalTracerError:
            return flow.prompt == prompt


def wire_prompt_lens(service: TraceService, inputs: Inputs, inspected: Any, tabs: Sequence[MapTab]) -> None:
    """Let the lens in the place of the maps follow the prompt.

    Args:
        service: The models.
        inputs: The fields.
        inspected: The event of a look at the fields (`input_fields`).
        tabs: The tabs of maps, in the order of `explore.MAP_TABS`.
    """
    events = PromptLensEvents(service)
    due, tab = gr.State(""), gr.Textbox("", visible=False)
    states = [*(each.flows for each in tabs), inputs.picked, *inputs.values]
    noted: dict[str, Any] = {"outputs": [due], "trigger_mode": "multiple", **NOTED}
    inspected.then(events.due, inputs=[tab, *states], js=_OPEN_TAB, **noted)
    for name, each in zip(explore.MAP_TABS, tabs, strict=True):
        each.page.select(partial(events.due, name), inputs=states, **noted)
    drawn = gr.State(Drawn(), time_to_live=IDLE_SECONDS)
    asked = [due, inputs.picked, *inputs.values]
    # Placed by an event of its own, which sees what was run meanwhile: a lens that comes late must not cover the map.
    due.change(events.read, inputs=asked, outputs=[drawn], **lens_queue(service)).then(
        events.place,
        inputs=[drawn, *(each.flows for each in tabs)],
        outputs=[each.lens for each in tabs],
        **AT_ONCE,
    )
