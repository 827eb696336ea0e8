"""The introduction that the page opens with: one stored result in four steps, as HTML that needs no model.

The same picture, token x layer, is shown four times: all activations clean, those after the noise corrupted, one of
them restored, and the map of restoring each in turn. `static/story.js` switches between the steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from itertools import count

from causal_tracer.errors import SettingsError
from causal_tracer.metrics.descriptions import METRIC_DESCRIPTIONS
from causal_tracer.request.sites import SITES
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import axis_labels, control_of, display_token, map_title, metric_label, metric_of
from causal_tracer.web.page.texts import LEAD


@dataclass(frozen=True)
class Step:
    """One step: its name, its text, and the probability that it ends with, with a label."""

    name: str
    words: str
    probability: float
    label: str


def story_steps(flow: HiddenFlow) -> tuple[Step, ...]:
    """Return the four steps of a result of hidden states, in order; their texts are safe HTML.

    Raises:
        SettingsError: The result has another metric than the probability, another direction, or a control: the texts
            would not be true of it.
    """
    plain = flow.settings.direction == "restore" and not control_of(flow.settings)
    if metric_of(flow) != METRIC_DESCRIPTIONS["probability"] or not plain:
        raise SettingsError(
            f"The steps describe the answer's probability in restored runs, without controls, and this result has "
            f"{metric_label(flow)}: {map_title(flow)}. Give another result."
        )
    measured = escape(metric_label(flow))
    answer = f"<b>{_shown(flow.answer)}</b>"
    subject = f"“{escape(flow.subject)}”"
    position, layer = restored_cell(flow)
    token = f"“{_shown(flow.input_tokens[position])}”"
    restored = float(flow.scores[position, layer])
    return (
        Step(
            "The clean run",
            f"A language model reads the prompt and says {answer}. Where in the model is this fact?",
            flow.high_score,
            measured,
        ),
        Step(
            "The corrupted run",
            f"Noise is added to the embeddings of the subject, {subject}. The answer is lost{_top_words(flow)}.",
            flow.low_score,
            measured,
        ),
        Step(
            "One restored run",
            f"The same noise, but one activation is put back to its clean value: {token}, layer {layer}. "
            "The answer comes back.",
            restored,
            measured,
        ),
        Step(
            "The whole map",
            "Each cell is one restored run. The stronger its colour, the more of the answer comes back: at the "
            "subject's last token in early layers, and at the prompt's last token in late layers.",
            flow.peaks(1)[0].score,
            f"Strongest: {measured}",
        ),
    )


def _top_words(flow: HiddenFlow) -> str:
    """Return a clause with the most probable words of the corrupted run; empty if its top tokens are not words."""
    if flow.top_tokens is None:
        return ""
    words = [token for token in flow.top_tokens.corrupted if any(map(str.isalpha, token.text))][:2]
    if not words:
        return ""
    told = " or ".join(f"<b>{_shown(token.text)}</b>" for token in words)
    top = flow.top_tokens.corrupted[0].probability
    return f": words such as {told} are now the most probable, none with more than {top:.2f}"


def restored_cell(flow: HiddenFlow) -> tuple[int, int]:
    """Return the cell that the third step restores: the best layer of the subject's last token."""
    position = flow.subject_range[1] - 1
    return position, int(flow.scores[position].nan_to_num(0.0).argmax())


def story_html(flow: HiddenFlow) -> str:
    """Return the introduction, for a result of hidden states."""
    steps = story_steps(flow)
    first = ' aria-current="step"'
    tabs = "".join(
        f'<li><button type="button" data-go="{at}"{first if at == 1 else ""}>{at} {step.name}</button></li>'
        for at, step in enumerate(steps, start=1)
    )
    articles = "".join(map(_article, count(1), steps))
    layers = int(flow.scores.shape[1])
    return (
        '<details class="ct-story" data-step="1">'
        f"<summary>How it works <span>{escape(LEAD)}</span></summary>"
        f'<ol class="ct-steps">{tabs}</ol>'
        f'<div class="ct-stage"><div class="ct-words" aria-live="polite">{articles}</div>'
        f'<div class="ct-picture" role="img" aria-label="{escape(_picture_label(flow))}">'
        f'<div class="ct-grid" style="--layers:{layers}">{"".join(_grid(flow))}</div></div></div>'
        '<div class="ct-nav"><button type="button" data-move="-1" disabled>← Back</button>'
        '<button type="button" data-move="1" class="ct-next">Next →</button>'
        '<span class="ct-keys">or the arrow keys</span>'
        '<button type="button" data-tool>Trace a prompt of your own ↓</button></div></details>'
    )


def _article(number: int, step: Step) -> str:
    hidden = "" if number == 1 else " hidden"
    shown = f"{step.probability:.{2 if step.probability >= 0.01 else 3}f}"
    return (
        f'<article data-for="{number}"{hidden}><h2>{step.name}</h2><p>{step.words}</p>'
        f'<p class="ct-says">{step.label} <strong>{shown}</strong></p>'
        f'<div class="ct-meter" aria-hidden="true"><i style="width:{max(step.probability, 0.004):.1%}"></i></div>'
        "</article>"
    )


def _grid(flow: HiddenFlow) -> Iterator[str]:
    """Yield rows of a label and a cell per layer, then the layer axis."""
    layers = int(flow.scores.shape[1])
    subject_start = flow.subject_range[0]
    restored = restored_cell(flow)
    span = max(flow.high_score - flow.low_score, 1e-6)
    last = len(flow.input_tokens) - 1
    best_last = int(flow.scores[last].nan_to_num(0.0).argmax())
    for position, label in enumerate(axis_labels(flow)):
        mark = " ct-subject" if label.endswith("*") else ""
        yield f'<span class="ct-token{mark}" dir="auto">{escape(label)}</span>'
        for layer in range(layers):
            share = (float(flow.scores[position, layer]) - flow.low_score) / span
            classes = "".join(
                (
                    " ct-noisy" if position >= subject_start else "",
                    " ct-told" if (position, layer) == restored else "",
                    " ct-peak" if (position, layer) in (restored, (last, best_last)) else "",
                )
            )
            yield f'<i class="ct-cell{classes}" style="--c:{_color(share)}"></i>'
    yield '<span class="ct-token ct-axis">layer</span>'
    for layer in range(layers):
        yield f'<span class="ct-axis">{layer if layer % 5 == 0 or layer == layers - 1 else ""}</span>'


def _color(share: float) -> str:
    if math.isnan(share):
        return "transparent"
    scale = SITES["hidden"].color_scale
    strongest = len(scale) - 1
    return scale[min(strongest, max(0, round(share * strongest)))]


def _picture_label(flow: HiddenFlow) -> str:
    position, layer = restored_cell(flow)
    tokens, layers = flow.scores.shape
    return (
        f"The prompt's {tokens} tokens down, the model's {layers} layers across. Restoring layer {layer} at "
        f"{display_token(flow.input_tokens[position])} gives {metric_label(flow)} = "
        f"{float(flow.scores[position, layer]):.2f}."
    )


def _shown(token: str) -> str:
    return escape(display_token(token))
