"""The fields under Advanced, generated from `APP_FIELDS`."""

from __future__ import annotations

from typing import Any, Literal, get_origin

import gradio as gr

from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.request.records import TraceRequest
from causal_tracer.request.sites import KINDS, SITES, LayerKind
from causal_tracer.web.page.fields import ADVANCED_FIELDS, is_optional
from causal_tracer.web.service.asking import APP_CORRUPTIONS, APP_FIELDS

# The help of the records is too long for the page.
_HINTS = {
    "samples": "Each map is their mean.",
    "noise": "Empty: automatic. 0: none.",
    "corruption": f"The first {sum(named.takes_level for named in CORRUPTIONS.values())} take the level.",
    "seed": "Same seed, same noise.",
}
_PLACEHOLDERS = {"noise": "automatic", "end_layer": "all layers", "batch_size": "the app's own"}
_LABELS = {
    "corruption": {
        CORRUPTIONS[name].label: name
        for name in sorted(APP_CORRUPTIONS, key=lambda name: not CORRUPTIONS[name].takes_level)
    }
}
_WIDTHS = {"corruption": 220}


def advanced_fields() -> tuple[dict[str, Any], gr.HTML]:
    """Lay out the fields; return them by name, with the line that shows the automatic noise level."""
    boxes = [name for name in ADVANCED_FIELDS if APP_FIELDS[name].type is bool]
    of_request = [name for name in ADVANCED_FIELDS if APP_FIELDS[name].record is TraceRequest and name not in boxes]
    others = [name for name in ADVANCED_FIELDS if name not in {*of_request, *boxes}]
    with gr.Accordion("Advanced", open=False, elem_id="ct-advanced"):
        fields = _row(of_request)
        noise_level = gr.HTML("", elem_id="ct-noise-level")
        with gr.Row():
            windows = {f"window_{kind}": _window(kind) for kind in KINDS}
        fields |= _row(others)
        fields |= {name: _component(name) for name in boxes}
    return {**fields, **windows}, noise_level


def _row(names: list[str]) -> dict[str, Any]:
    with gr.Row():
        return {name: _component(name) for name in names}


def _window(kind: LayerKind) -> gr.Number:
    return gr.Number(
        SITES[kind].window,
        label=f"Window: {SITES[kind].title}",
        info="Layers restored together.",
        precision=0,
        min_width=130,
        elem_id=f"ct-window-{kind}",
    )


def _component(name: str) -> Any:
    """Return the component for a field's type."""
    field = APP_FIELDS[name]
    common: dict[str, Any] = {"label": field.title, "info": _HINTS.get(name), "elem_id": f"ct-{name.replace('_', '-')}"}
    sized: dict[str, Any] = {**common, "min_width": _WIDTHS.get(name, 130)}
    if field.type is bool:
        return gr.Checkbox(field.default, **common)
    if get_origin(field.type) is Literal:
        choices = _LABELS.get(name) or {value: value for value in field.type.__args__}
        return gr.Dropdown(list(choices.items()), value=field.default, filterable=False, **sized)
    if field.type is int:
        return gr.Number(field.default, precision=0, **sized)
    # Optional numbers too: Gradio's number field hands on 0 when it is empty.
    empty = _PLACEHOLDERS.get(name, "none") if is_optional(name) else ""
    return gr.Textbox("", placeholder=empty, max_lines=1, **sized)
