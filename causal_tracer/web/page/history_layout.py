"""The history of runs on the page: the strip of cards, and how it is wired."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr

from causal_tracer.web.page.assets import static_text
from causal_tracer.web.page.history import History
from causal_tracer.web.page.history_events import HistoryEvents
from causal_tracer.web.page.inputs_layout import AT_ONCE, PAGE_EVENT, Inputs
from causal_tracer.web.page.stopping import RunButtons
from causal_tracer.web.page.strip import strip_html
from causal_tracer.web.service.tracing import TraceService

# A lost result is computed by a press on its tab's Run, which appears shortly after the tab is shown.
RUN_AGAIN = """tab => {
  const press = tries => {
    const run = document.querySelector(`#ct-run-${tab}`);
    if (run && !run.disabled) run.click();
    else if (tries) requestAnimationFrame(() => press(tries - 1));
  };
  if (tab) press(600);
}"""


@dataclass(frozen=True, eq=False)
class HistoryStrip:
    """The strip of cards, which is wired before it is laid out.

    Attributes:
        events: The event handlers.
        cards: The strip. Its HTML holds the browser's list, which `static/history.js` stores.
        kept: The input of events that receives the browser's list (`from_browser`).
        again: Holds the name of the tab whose Run computes a lost result.
    """

    events: HistoryEvents
    cards: gr.HTML
    kept: gr.Textbox
    again: gr.Textbox

    def follow(self, running: Any, finished: gr.State, shown: gr.State) -> None:
        """Wire a tab, so that each of its finished runs gets a card.

        Args:
            running: The event of the run.
            finished: Holds the maps of the run when it is done.
            shown: Holds the maps that the tab shows.
        """
        inputs = [finished, shown, self.kept]
        running.success(self.events.ended, inputs=inputs, outputs=[self.cards], js=from_browser(3), **AT_ONCE)

    def follow_patches(self, running: Any, finished: gr.State) -> None:
        """Wire the tab Patch, so that each finished run gets a card; `finished` holds that card."""
        inputs = [finished, self.kept]
        running.success(self.events.patched, inputs=inputs, outputs=[self.cards], js=from_browser(2), **AT_ONCE)

    def lay_out(self) -> None:
        """Render the strip at the current place of the layout."""
        self.cards.render()  # type: ignore[no-untyped-call]


def history_strip(service: TraceService, tabs: Mapping[str, tuple[str, ...]]) -> HistoryStrip:
    """Return the strip of an app; `tabs` has the sites of each tab's maps, by the tab's name."""
    empty = strip_html(History(), lambda card: None)
    script = static_text("history.js")
    cards = gr.HTML(empty, elem_id="ct-history", js_on_load=script, render=False)
    kept, again = (gr.Textbox("", visible=False) for _ in range(2))
    runs = {"compare": RunButtons(), **{name: RunButtons(len(kinds)) for name, kinds in tabs.items()}}
    return HistoryStrip(HistoryEvents(service, tabs, runs), cards, kept, again)


def from_browser(inputs: int) -> str:
    """Return the script that replaces the last of this number of inputs by the browser's list."""
    return static_text("history_kept.js").replace("INPUTS", str(inputs))


def wire_history(
    demo: gr.Blocks,
    strip: HistoryStrip,
    inputs: Inputs,
    outputs: list[Any],
    patch: list[Any],
    tabs: gr.Tabs,
    upload: gr.UploadButton,
) -> Any:
    """Wire the strip; return the event that opens a saved result.

    Args:
        demo: The page.
        strip: The strip.
        inputs: The fields.
        outputs: The components of all tabs of maps that change, in their order.
        patch: The base prompt, the site and the pairs to make in the tab Patch.
        tabs: The tabs.
        upload: The button that opens a saved result.
    """
    events, cards, kept = strip.events, strip.cards, strip.kept
    own: dict[str, Any] = {"inputs": [kept], "js": from_browser(1), **AT_ONCE}
    demo.unload(events.forget)
    demo.load(events.load, outputs=[cards], **own)
    cards.input(events.redraw, outputs=[cards], **own)
    cards.edit(events.edit, outputs=[cards], **own)
    cards.copy(events.share, outputs=[cards], **own)
    opened = [*outputs, *inputs.values, inputs.picked, *patch, tabs, cards, strip.again]
    cards.select(events.open, outputs=opened, **own).then(
        None, inputs=[strip.again], js=RUN_AGAIN, api_visibility="private"
    )
    return upload.upload(
        events.open_file,
        inputs=[upload, kept],
        outputs=[*outputs, tabs, cards, inputs.message],
        js=from_browser(2),
        **PAGE_EVENT,
    )
