"""The parts of the tab Patch as HTML: two lenses to choose cells from, the chosen pairs, and the patched run."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import torch

from causal_tracer.results.labels import display_token, probability_label
from causal_tracer.results.lens import LogitLens
from causal_tracer.results.patched import PatchedRun, Place
from causal_tracer.web.page.lens_grid import grid_html, legend_html, most_entropy

Pair = tuple[Place, Place]
"""A cell of the source, and the cell of the base into which its value is patched: (token, layer) each."""

_HINT = (
    "Drag a cell of the source onto a cell of the base, or choose one of each: by click, or with arrow keys and Enter."
)


def lenses_html(source: LogitLens, base: LogitLens) -> str:
    """Return the lenses of both prompts, side by side where there is room."""
    most = most_entropy(source, base)
    grids = "".join(
        f"<div>{grid_html(lens, name, title=name.capitalize(), most=most)}</div>"
        for name, lens in (("source", source), ("base", base))
    )
    hint = f'<p class="ct-hint" role="status" data-hint="{escape(_HINT)}">{escape(_HINT)}</p>'
    return f'{legend_html(source, base)}{hint}<div class="ct-two">{grids}</div>'


def pairs_html(source: LogitLens | None, base: LogitLens | None, pairs: Sequence[Pair]) -> str:
    """Return the chosen pairs, each with a button that removes it; `static/pair_list.js` marks their cells."""
    if source is None or base is None or not pairs:
        return ""
    listed = "".join(
        f'<li data-pair="{_numbers(pair)}"><span>{words}</span>'
        f'<button type="button" data-remove="{number}" aria-label="Remove {words}">✕</button></li>'
        for number, pair in enumerate(pairs)
        for words in [f"{_cell(source, pair[0])} → {_cell(base, pair[1])}"]
    )
    return (
        f'<ul class="ct-pairs" aria-label="Chosen pairs">{listed}'
        '<li><button type="button" data-remove="all">Clear</button></li></ul>'
    )


def patched_html(run: PatchedRun, base: LogitLens) -> str:
    """Return the lens of the patched run, with the causal cone and the changed cells marked."""
    changed = run.lens.top_ids[..., 0] != base.top_ids[..., 0]
    inside = torch.nn.functional.pad(run.cone, (1, 1, 1, 1))
    targets = {tuple(place) for _, place in run.pairs}

    def css(token: int, layer: int) -> str:
        classes = ["ct-changed"] if changed[token, layer] else []
        if (token, layer) in targets:
            classes.append("ct-paired")
        if run.cone[token, layer]:
            around = {"n": (token, layer + 1), "w": (token + 1, layer), "s": (token + 2, layer + 1)}
            classes += ["ct-cone", *(f"ct-{side}" for side, place in around.items() if not inside[place])]
        return " ".join(classes)

    notes = "".join(f'<p class="ct-note">{escape(note)}</p>' for note in run.notes)
    legend = (
        '<p class="ct-hint">Inside the orange line: the causal cone, the only cells that the patch can change. '
        "<b><u>Bold</u></b>: another top token than in the base run. Choose a cell to compare both runs.</p>"
    )
    grid = grid_html(run.lens, "patched", title="Patched run of the base", most=most_entropy(run.lens, base), css=css)
    return f"{notes}{legend}{grid}"


def answers_html(run: PatchedRun) -> str:
    """Return the answers' probabilities in the three runs, as a table."""
    head = "".join(
        f'<th scope="col" dir="auto">{escape(probability_label(answer.text))}</th>' for answer in run.answers
    )
    runs = {
        "source": [answer.source for answer in run.answers],
        "base": [answer.base for answer in run.answers],
        "patched": [answer.patched for answer in run.answers],
    }
    rows = "".join(
        f'<tr><th scope="row">{name}</th>{"".join(f"<td>{value:.4g}</td>" for value in values)}</tr>'
        for name, values in runs.items()
    )
    says = run.top_tokens[0]
    return (
        f"<p>The patched run says <b>{escape(display_token(says.text))}</b> (P = {says.probability:.3f}).</p>"
        f'<div class="ct-scroll"><table class="ct-runs"><thead><tr><th scope="col">run</th>{head}</tr></thead>'
        f"<tbody>{rows}</tbody></table></div>"
    )


def _cell(lens: LogitLens, place: Place) -> str:
    return f"“{escape(display_token(lens.input_tokens[place[0]]))}” layer {place[1]}"


def _numbers(pair: Pair) -> str:
    return ",".join(str(number) for place in pair for number in place)
