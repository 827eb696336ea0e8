"""The fields of the experiment: corruption, metric and patch, and the others under More.

They are generated from `APP_FIELDS`: types, defaults and titles come from the records.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args, get_origin

import gradio as gr

from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.request.map_spec import ABLATIONS
from causal_tracer.request.sites import SITES
from causal_tracer.web.page.fields import ANOTHER_SUBJECT, OTHER_FIELDS, SECOND_PROMPT, is_optional
from causal_tracer.web.service.app_fields import APP_CORRUPTIONS, APP_FIELDS

_WINDOWS = ", ".join(f"{site.window} for {site.label}" for site in SITES.values())
# The help of the records is too long for the page.
_HINTS = {
    "samples": "Each map is the mean over them.",
    "noise": "Empty: automatic. 0: none.",
    "seed": "Same seed, same noise.",
    "window": f"Layers patched together. Empty: {_WINDOWS}.",
    "token": "For heads and knockouts. Empty: the last token.",
    "severed": "Hold these outputs of the restored token at their corrupted values.",
    "elsewhere": "A control: corrupt equally many tokens, starting here, instead of the subject. Empty: the subject.",
    "second_prompt": "Run instead of the corrupted prompt.",
    "second_subject": "Replaces the subject. With a second prompt: that prompt's subject (empty: guessed).",
    "mean_prompts": "One per line. Empty: the prompt's own tokens.",
    "foil": "The answer to compare with.",
}
_LABELS = {
    "noise": "Noise level",
    "corruption": "Corrupt by",
    "metric": "Metric",
    "second_subject": "Another subject",
    "severed": "Sever",
    "elsewhere": "Corrupt elsewhere, from token",
    "token": "At token",
    "foil": "Other answer",
}
_PLACEHOLDERS = {
    "noise": "automatic", "end_layer": "all layers", "batch_size": "the app's own", "window": "the paper's",
    "token": "the last", "elsewhere": "the subject",
}  # fmt: skip
_CHOICES = {
    "corruption": {
        **{
            CORRUPTIONS[name].label: name
            for name in sorted(APP_CORRUPTIONS, key=lambda name: not CORRUPTIONS[name].takes_level)
        },
        ANOTHER_SUBJECT: ANOTHER_SUBJECT,
        SECOND_PROMPT: SECOND_PROMPT,
    },
    "patch": {
        "restore (clean)": "restore",
        "corrupt": "corrupt",
        "set to zero": "zero",
        "set to a mean": "mean",
    },
}
_OUTSIDE_MORE = ("corruption", "second_prompt", "second_subject", "metric", "patch", "foil", "mean_prompts")
_SEVERAL_LINES = ("second_prompt", "mean_prompts")


def experiment_fields() -> tuple[dict[str, Any], gr.HTML]:
    """Lay out the fields; return them by name, with the line that shows the automatic noise level."""
    fields = {name: _component(name, visible=name == "corruption") for name in _OUTSIDE_MORE[:3]}
    with gr.Row():
        fields |= {name: _component(name) for name in _OUTSIDE_MORE[3:5]}
    fields |= {name: _component(name, visible=False) for name in _OUTSIDE_MORE[5:]}
    rest = [name for name in OTHER_FIELDS if name not in fields]
    boxes = [name for name in rest if APP_FIELDS[name].type is bool]
    with gr.Accordion("More", open=False, elem_id="ct-more"):
        noise_level = gr.HTML("", elem_id="ct-noise-level")
        for pair in _pairs([name for name in rest if name not in boxes]):
            with gr.Row():
                fields |= {name: _component(name) for name in pair}
        fields |= {name: _component(name) for name in boxes}
    return fields, noise_level


def visible_fields(corruption: str, metric: str, patch: str) -> tuple[Any, ...]:
    """Return updates that show only the fields that the choices need.

    The fields, in order: corruption, second prompt, another subject, other answer, prompts of a mean.
    """
    # Zero and mean are patched into the clean run, where nothing is corrupted.
    corrupted = patch not in ABLATIONS
    second = corrupted and corruption == SECOND_PROMPT
    another = corrupted and corruption in (SECOND_PROMPT, ANOTHER_SUBJECT)
    needed = (corrupted, second, another, metric == "logit difference", patch == "mean")
    return tuple(gr.update(visible=each) for each in needed)


def _pairs(names: list[str]) -> Iterable[list[str]]:
    return (names[place : place + 2] for place in range(0, len(names), 2))


def _component(name: str, *, visible: bool = True) -> Any:
    """Return the component for a field's type."""
    field = APP_FIELDS[name]
    common: dict[str, Any] = {
        "label": _LABELS.get(name, field.title),
        "info": _HINTS.get(name),
        "elem_id": f"ct-{name.replace('_', '-')}",
    }
    if field.type is bool:
        return gr.Checkbox(field.default, **common)
    sized: dict[str, Any] = {**common, "min_width": 130, "visible": visible}
    if get_origin(field.type) is Literal:
        choices = _CHOICES.get(name) or {value: value for value in get_args(field.type)}
        return gr.Dropdown(list(choices.items()), value=field.default, filterable=False, **sized)
    if field.type is int:
        return gr.Number(field.default, precision=0, **sized)
    # Optional numbers too: Gradio's number field gives 0 when it is empty.
    empty = _PLACEHOLDERS.get(name, "none") if is_optional(name) else ""
    return gr.Textbox("", placeholder=empty, max_lines=4 if name in _SEVERAL_LINES else 1, **sized)
