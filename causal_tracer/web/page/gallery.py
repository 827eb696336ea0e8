"""The gallery on the page: a button, a dialog of cards, and the handler that shows a chosen card's result."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr

from causal_tracer.errors import CausalTracerError, SettingsError
from causal_tracer.request.sites import KINDS
from causal_tracer.web.page.assets import static_text
from causal_tracer.web.page.fields import FIELD_NAMES, field_values, picked_by
from causal_tracer.web.page.handlers import result_link
from causal_tracer.web.page.history_events import HistoryEvents
from causal_tracer.web.page.inputs_layout import AT_ONCE, Inputs
from causal_tracer.web.page.summary import message_html, status_html
from causal_tracer.web.page.thumbnails import thumbnail_svg
from causal_tracer.web.page.views import TabView, maps_view
from causal_tracer.web.service.gallery import GALLERY, GalleryEntry, gallery_entry, gallery_flows, gallery_pictures
from causal_tracer.web.service.registry import model_title

_LEAD = "Stored results. A click shows one at once and fills in its settings; Run then computes it again."


def gallery_html() -> str:
    """Return the button and the dialog with a card for each entry."""
    pictures = gallery_pictures()
    cards = "".join(_card_html(entry, pictures[entry.name]) for entry in GALLERY)
    return (
        '<button type="button" class="ct-gallery-open" data-gallery aria-haspopup="dialog">Gallery</button>'
        '<dialog class="ct-gallery" aria-labelledby="ct-gallery-title"><div class="ct-gallery-head">'
        f'<h2 id="ct-gallery-title">Gallery</h2><p>{_LEAD}</p><button type="button" data-close>Close</button></div>'
        f"<ol>{cards}</ol></dialog>"
    )


def _card_html(entry: GalleryEntry, picture: tuple[str, ...]) -> str:
    kind = entry.fields["kind"]
    thumb = thumbnail_svg(picture, KINDS if kind == "all" else (kind,))
    return (
        f'<li><button type="button" data-entry="{entry.name}">{thumb}<b>{escape(entry.title)}</b>'
        f'<span dir="auto">{escape(entry.sentence)}</span></button></li>'
    )


@dataclass(frozen=True)
class GalleryEvents:
    """Event handlers of the gallery. A class, since Gradio gives events and requests only to methods with type hints.

    Attributes:
        history: The handlers of the history, which show results in their tabs.
    """

    history: HistoryEvents

    def open(self, request: gr.Request, event: gr.SelectData) -> tuple[Any, ...]:
        """Show the chosen entry.

        Returns:
            The values of all tabs and of the fields, the clicked choices, the tab to show, and a message.
        """
        try:
            entry = gallery_entry(str(event.value))
            flows, tab = gallery_flows(entry), str(entry.fields["kind"])
        except CausalTracerError as error:
            unchanged = (gr.skip(),) * (len(FIELD_NAMES) + 2)
            return (*self.history.views("", TabView()), *unchanged, message_html(warned=[str(error)]))
        values, lacking = self._values(entry)
        status = status_html(f"{entry.sentence}{lacking}")
        link = result_link(self.history.service, flows, request)
        view = maps_view(tab, flows, status=status, origin="a stored result", link=link)
        picked = picked_by(entry.fields)
        return (*self.history.views(tab, view, request), *values, picked, gr.Tabs(selected=tab), message_html())

    def _values(self, entry: GalleryEntry) -> tuple[tuple[Any, ...], str]:
        """Return the fields' values, and a sentence for an app that lacks the entry's model."""
        asked = dict(entry.fields)
        try:
            return field_values({**asked, "model": self.history.service.status(asked["model"]).model}), ""
        except SettingsError:
            values = field_values({**asked, "model": gr.skip()})
            title = model_title(asked["model"])
            return values, f" It was made with {title}, which is not available here: Run uses the chosen model."


def gallery_button() -> gr.HTML:
    """Lay out the button; its cards open in a dialog."""
    return gr.HTML(gallery_html(), elem_id="ct-gallery", js_on_load=static_text("gallery.js"))


def wire_gallery(gallery: gr.HTML, history: HistoryEvents, inputs: Inputs, outputs: list[Any], tabs: gr.Tabs) -> None:
    """Wire the cards, so that a chosen one shows its result.

    Args:
        gallery: The button with its dialog.
        history: The handlers that show results in their tabs.
        inputs: The fields.
        outputs: The components of all tabs of maps that change, in their order.
        tabs: The tabs.
    """
    gallery.select(
        GalleryEvents(history).open,
        outputs=[*outputs, *inputs.values, inputs.picked, tabs, inputs.link_message],
        **AT_ONCE,
    )
