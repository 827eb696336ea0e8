"""The report of a study: one self-contained HTML page with findings, intervals, figures, audit and settings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from causal_tracer.files import write_atomically
from causal_tracer.plots.pages import figure_html, standalone_page, table_html
from causal_tracer.request.sites import SITES
from causal_tracer.study.audit import audit_summary
from causal_tracer.study.figures import comparison_figures, study_figures, title_and_caption
from causal_tracer.study.records import PEAK_ROLES, ROLES, FactRecord
from causal_tracer.study.settings import StudySettings
from causal_tracer.study.statistics import Mean, StudyEffects, best_layer, fact_peaks, selection_half
from causal_tracer.study.stored import StoredStudy, named_effects

if TYPE_CHECKING:
    import plotly.graph_objects as go

_CORRUPTING = " Activations of {low} are put into the clean run, and effects are changes from the clean run."
_LIMITS = """
<ul><li>Causal tracing does not show which layer to edit: localization does not predict where editing works
(<a href="https://arxiv.org/abs/2301.04213">Hase et al. 2023</a>).</li>
<li>Averages hide differences between facts: see the histograms of best layers.</li>
<li>Only facts that the model knows are traced, and the results depend on the noise level.</li>
<li>Intervals show how the averages vary with other relations like these, not with other prompts.</li></ul>
"""


def write_report(folder: Path, compare_with: Sequence[Path] = ()) -> Path:
    """Write report.html into a study's folder.

    Args:
        folder: The study's folder.
        compare_with: Folders of other studies for a comparison.

    Returns:
        The path of the report.

    Raises:
        StudyError: A folder has no study, or a study has no traced fact.
    """
    path = folder / "report.html"
    write_atomically(path, report_page(StoredStudy.open(folder), [StoredStudy.open(other) for other in compare_with]))
    return path


def report_page(study: StoredStudy, compare_with: Sequence[StoredStudy] = ()) -> str:
    """Return a study's report as self-contained HTML."""
    title = f"Causal tracing study: {study.model}"
    manifest = {name: value for name, value in study.manifest.items() if name != "audit"}
    parts = [
        f"<h1>{escape(title)}</h1>{findings_html(study)}",
        f"<h2>Figures</h2>{_figures(study_figures(study.effects), study.effects)}",
        _comparison([study, *compare_with]) if compare_with else "",
        f"<h2>Audit</h2>{_audit(study)}",
        f"<h2>What this does not show</h2>{_LIMITS}",
        f"<h2>Facts left out</h2>{_left_out(study.records)}",
        f"<h2>How it was made</h2><pre>{escape(json.dumps(manifest, indent=1, ensure_ascii=False))}</pre>",
    ]
    return standalone_page(title, "".join(parts))


def findings_html(study: StoredStudy) -> str:
    """Return a study's findings as HTML: number of facts, total effect, and the table of average effects."""
    header, rows = effects_table(study.effects)
    if not rows:
        return _summary(study)
    return (
        f"{_summary(study)}<h2>Average effects</h2>{table_html(header, rows)}"
        "<p>Layers are chosen on one half of the facts, and their effects are read on the other half, so that the "
        "choice of the largest does not bias them. Severed maps are read at the layer where the plain map's effect is "
        "largest. Intervals are 95 %, by a bootstrap that draws whole relations. “Own best” is the mean of the effect "
        "at each fact's own best layer, which is always at least as strong.</p>"
    )


def effects_table(effects: StudyEffects) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of the table of average effects, as text."""
    header = ["map", "token", "layer", "AIE on the other half", "95 % interval", "minus placebo", "own best"]
    rows = []
    for name in effects.maps:
        spec = effects.settings.maps[name]
        if spec.source == "placebo" or not effects.has_role_rows(name):
            continue
        severed = spec.severed is not None
        # A severed map is read at the layer where the plain map's effect is largest.
        whole = spec.kind if severed and spec.kind in effects.maps else None
        for role in PEAK_ROLES[:1] if severed else PEAK_ROLES:
            best = best_layer(effects, name, role, chosen_by=whole)
            if best is None:
                continue
            layer, effect = best
            mean, low, high = _written(effects, effect)
            corrected, minus_placebo = effects.minus_placebo(name), "–"
            if corrected is not None:
                paired = corrected[:, ROLES.index(role), layer]
                minus_placebo = _with_interval(effects, effects.mean(paired, ~selection_half(effects)))
            own = _value(effects, float(np.mean(fact_peaks(effects, name, role)[1])))
            rows.append([name, role, str(layer), mean, f"{low} to {high}", minus_placebo, own])
    return header, rows


def _summary(study: StoredStudy) -> str:
    effects = study.effects
    counts = Counter(record.status for record in study.records)
    engines = Counter(record.engine for record in study.records if record.status == "traced")
    left_out = ", ".join(f"{counts[status]} {status}" for status in ("unknown", "failed") if counts[status])
    label, better = escape(effects.label), "higher" if effects.metric.higher_is_better else "lower"
    clean, corrupted = (_value(effects, float(values.mean())) for values in (effects.high, effects.low))
    settings = study.settings
    in_clean_run = all(spec.in_clean_run for spec in settings.maps.values())
    facts = (
        f"<p><b>{len(effects.facts)} facts</b> of {len(set(effects.relations))} relations"
        f"{'' if in_clean_run else f', {_corruption(settings)}'}{f' ({left_out} left out)' if left_out else ''}. "
        f"Swept by: {escape(', '.join(f'{name} ({count})' for name, count in engines.items()))}.</p>"
    )
    if in_clean_run:
        blocks = all(SITES[spec.kind].blocks for spec in settings.maps.values())
        done = "attention is blocked" if blocks else "activations are set to constants"
        return f"{facts}<p>{label} is {clean} in the clean run, in which {done}.</p>"
    total = _with_interval(effects, effects.mean(effects.total_effect))
    changed, low = "when the subject is corrupted", "the corrupted run"
    if settings.pairs:
        changed, low = "with the other subject in its place", "that run"
    corrupting = _CORRUPTING.format(low=low) if settings.request.direction == "corrupt" else ""
    return (
        f"{facts}<p>Average total effect: <b>{total}</b>: {label} goes from {clean} in the clean run to {corrupted} "
        f"{changed}. All effects on this page are differences of {label}, in which {better} values "
        f"are better.{corrupting}</p>"
    )


def _corruption(settings: StudySettings) -> str:
    """Return how each fact is corrupted."""
    if settings.pairs:
        return "each compared with another subject of its relation"
    return f"{settings.samples} noise sample{'s' if settings.samples > 1 else ''} each"


def _comparison(studies: Sequence[StoredStudy]) -> str:
    named = named_effects(studies)
    rows = []
    for name, effects in named.items():
        found = [
            f"{kind}, {role}: {_written(effects, best[1])[0]} at layer {best[0]}"
            for kind in SITES
            for role in PEAK_ROLES
            if kind in effects.maps
            and effects.has_role_rows(kind)
            and (best := best_layer(effects, kind, role)) is not None
        ]
        total = _with_interval(effects, effects.mean(effects.total_effect))
        rows.append([name, str(len(effects.facts)), total, "; ".join(found)])
    header = ["study", "facts", "ATE", "AIE on the other half, at the best layer"]
    return f"<h2>Comparison</h2>{table_html(header, rows)}{_figures(comparison_figures(named), studies[0].effects)}"


def _audit(study: StoredStudy) -> str:
    rows = [
        [found.map_name, str(found.cells), f"{found.largest:.1e}", f"{found.p99:.1e}"]
        for found in audit_summary(study.records)
    ]
    if not rows:
        return "<p>No cells were computed again by the full sweep.</p>"
    label = escape(study.effects.label)
    return f"<p>Cells drawn by the seed and computed again by the full sweep. Differences of {label}.</p>" + table_html(
        ["map", "cells", "largest difference", "99th percentile"], rows
    )


def _left_out(records: Sequence[FactRecord]) -> str:
    rows = [[r.status, r.fact.prompt, r.fact.attribute, r.cause] for r in records if r.status != "traced"]
    return table_html(["", "prompt", "attribute", "why"], rows) if rows else "<p>None.</p>"


def _figures(figures: Mapping[str, go.Figure], effects: StudyEffects) -> str:
    pieces = []
    for name, figure in figures.items():
        title, caption = map(escape, title_and_caption(name, effects.settings.request.direction))
        pieces.append(f"<h3>{title}</h3><figure>{figure_html(figure)}<figcaption>{caption}</figcaption></figure>")
    return "".join(pieces)


def _with_interval(effects: StudyEffects, mean: Mean) -> str:
    value, low, high = _written(effects, mean)
    return f"{value} ({low} to {high})"


def _written(effects: StudyEffects, mean: Mean) -> tuple[str, str, str]:
    """Return a mean and the ends of its interval as text."""
    return _value(effects, float(mean.mean)), _value(effects, float(mean.low)), _value(effects, float(mean.high))


def _value(effects: StudyEffects, value: float) -> str:
    """Return a value or an effect as text, in per cent if it is a probability."""
    if effects.metric.name == "probability" and not np.isnan(value):
        return f"{100 * value:.1f} %"
    return effects.metric.format_value(value)
