"""One self-contained HTML page about a study: what it found, how sure it is, how it was made."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from causal_tracer.results.words import KIND_NAMES
from causal_tracer.study.audit import audit_summary
from causal_tracer.study.figures import comparison_figures, figure_caption, figure_title, study_figures
from causal_tracer.study.journal import write_atomically
from causal_tracer.study.records import ROLES, FactRecord
from causal_tracer.study.statistics import Mean, StudyEffects, best_layer, fact_peaks, on_other_half, study_effects
from causal_tracer.study.store import read_manifest, read_records, study_settings

if TYPE_CHECKING:
    import plotly.graph_objects as go

_ROLES = ("last subject", "last")
_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1b1b1b; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid #ccc; padding: .3rem .8rem .3rem 0; text-align: left;
         font-variant-numeric: tabular-nums; }
pre { background: #f4f4f4; padding: 1rem; overflow-x: auto; font-size: .85rem; } figure { margin: 1rem 0; }
figcaption { color: #555; font-size: .9rem; }
"""


def write_report(study: Path, compare_with: Sequence[Path] = ()) -> Path:
    """Write a study's report.html into its folder, with a comparison to other studies where some are given.

    Raises:
        StudyError: A folder holds no study, or none of its facts was traced.
    """
    page = report_page(study, compare_with)
    path = study / "report.html"
    write_atomically(path, page.encode())
    return path


def report_page(study: Path, compare_with: Sequence[Path] = ()) -> str:
    """A study's report as HTML that needs no other file and no network."""
    settings, manifest, records = study_settings(study), read_manifest(study) or {}, read_records(study)
    effects = study_effects(records, settings.metric)
    seed = settings.seed
    title = f"Causal tracing study: {manifest.get('model', {}).get('model', settings.model)}"
    parts = [f"<h1>{_escape(title)}</h1>", findings_html(effects, records, settings.samples, seed)]
    parts.append("<h2>Figures</h2>" + _figures(study_figures(effects, seed)))
    if compare_with:
        parts.append(_comparison(study, compare_with, seed))
    parts.append("<h2>Audit</h2>" + _audit(records, effects.label))
    parts.append("<h2>What this does not show</h2>" + _LIMITS)
    parts.append("<h2>Facts left out</h2>" + _left_out(records))
    parts.append("<h2>How it was made</h2><pre>" + _escape(_manifest_text(manifest)) + "</pre>")
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{_escape(title)}</title><style>{_STYLE}</style></head><body>{''.join(parts)}</body></html>"
    )


def findings_html(effects: StudyEffects, records: Sequence[FactRecord], samples: int, seed: int) -> str:
    """What a study found: how many facts, the total effect, and the table of average effects, with how to read it."""
    return (
        _summary(effects, records, samples, seed)
        + "<h2>Average effects</h2>"
        + _table(*effects_table(effects, seed))
        + "<p>Layers are chosen on one half of the facts and their effects read on the other half, so that picking the "
        "largest of many does not flatter them; severed maps are read where the whole effect is largest. Intervals are "
        "95 %, by a bootstrap that draws whole relations. “Own best” "
        "is the mean of each fact's best layer: stronger by construction.</p>"
    )


def effects_table(effects: StudyEffects, seed: int = 0) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table of average effects, as text."""
    header = ["map", "token", "layer", "AIE on the other half", "95 % interval", "less placebo", "own best"]
    rows = []
    for name, results in effects.maps.items():
        severed = results.settings.severed is not None
        for role in _ROLES[:1] if severed else _ROLES:
            # What severing costs shows where the whole effect is largest.
            whole = name.split(",")[0]
            best = best_layer(effects, name, role, seed, chosen_by=whole if severed and whole in effects.maps else None)
            if best is None or results.settings.placebo:
                continue
            _, own = fact_peaks(effects, name, role)
            corrected = effects.corrected(name)
            less = "–"
            if corrected is not None:
                paired = corrected[:, ROLES.index(role), best.layer]
                less = _interval_words(effects, on_other_half(effects, paired, seed))
            rows.append(
                [
                    name,
                    role,
                    str(best.layer),
                    _written(effects, best.mean),
                    f"{_written(effects, best.low)} to {_written(effects, best.high)}",
                    less,
                    _written(effects, float(np.mean(own))),
                ]
            )
    return header, rows


def _summary(effects: StudyEffects, records: Sequence[FactRecord], samples: int, seed: int) -> str:
    counts = Counter(record.status for record in records)
    engines = Counter(record.engine for record in records if record.status == "traced")
    ate = _with_interval(effects, effects.total_effect, seed)
    left_out = ", ".join(f"{counts[name]} {name}" for name in ("unknown", "failed") if counts[name])
    return (
        f"<p><b>{len(effects.facts)} facts</b> of {len(set(effects.relations))} relations, {samples} noise samples each"
        + (f" ({left_out} left out)" if left_out else "")
        + f". Swept by: {_escape(', '.join(f'{name} ({count})' for name, count in engines.items()))}."
        + f"</p><p>Average total effect: <b>{ate}</b>: {_escape(effects.label)} goes from "
        f"{_written(effects, float(effects.high.mean()))} in the clean run to "
        f"{_written(effects, float(effects.low.mean()))} when the subject is corrupted. All effects on this page are "
        f"differences of {_escape(effects.label)}, in which {_better(effects)} values are better.</p>"
    )


def _comparison(study: Path, others: Sequence[Path], seed: int) -> str:
    studies = named_studies([study, *others])
    figures = comparison_figures(studies, seed)
    rows = []
    for name, its in studies.items():
        bests = [best_layer(its, kind, role, seed) for kind in KIND_NAMES if kind in its.maps for role in _ROLES]
        found = [
            f"{best.map_name}, {best.role}: {_written(its, best.mean)} at layer {best.layer}" for best in bests if best
        ]
        rows.append([name, str(len(its.facts)), _with_interval(its, its.total_effect, seed), "; ".join(found)])
    return (
        "<h2>Comparison</h2>"
        + _table(["study", "facts", "ATE", "AIE on the other half, at the best layer"], rows)
        + _figures(figures)
    )


def named_studies(folders: Iterable[Path]) -> dict[str, StudyEffects]:
    """The effects of studies by their models' names, with their folders' where two have the same."""
    named: dict[str, StudyEffects] = {}
    for folder in folders:
        effects = study_effects(read_records(folder), study_settings(folder).metric)
        name = str((read_manifest(folder) or {}).get("model", {}).get("model", folder.name))
        named[name if name not in named else f"{name} ({folder.name})"] = effects
    return named


def _audit(records: Sequence[FactRecord], label: str) -> str:
    rows = [
        [found.map_name, str(found.cells), f"{found.largest:.1e}", f"{found.p99:.1e}"]
        for found in audit_summary(records)
    ]
    if not rows:
        return "<p>No cell was computed once more by the full sweep.</p>"
    return f"<p>Cells drawn by the seed and computed once more by the full sweep: {_escape(label)}.</p>" + _table(
        ["map", "cells", "largest difference", "99th percentile"], rows
    )


def _left_out(records: Sequence[FactRecord]) -> str:
    rows = [[r.status, r.fact.prompt, r.fact.attribute, r.cause] for r in records if r.status != "traced"]
    return _table(["", "prompt", "attribute", "why"], rows) if rows else "<p>None.</p>"


_LIMITS = """
<ul><li>Where a fact is found is not where it can be changed: localization does not predict where editing works
(<a href="https://arxiv.org/abs/2301.04213">Hase et al. 2023</a>).</li>
<li>Averages hide facts that differ: see the histograms of best layers.</li>
<li>Only facts that the model knows are traced, and the noise level matters.</li>
<li>Intervals say how the average would move with other relations like these, not with other prompts.</li></ul>
"""


def _figures(figures: Mapping[str, go.Figure]) -> str:
    """Figures as HTML; the first brings Plotly's script along."""
    from plotly.offline import get_plotlyjs

    pieces = [f"<script>{get_plotlyjs()}</script>"]
    for name, figure in figures.items():
        drawn = figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
        heading, caption = _escape(figure_title(name)), _escape(figure_caption(name))
        pieces.append(f"<h3>{heading}</h3><figure>{drawn}<figcaption>{caption}</figcaption></figure>")
    return "".join(pieces)


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    head = "".join(f"<th>{_escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{_escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _with_interval(effects: StudyEffects, values: Any, seed: int) -> str:
    return _interval_words(effects, effects.mean(values, seed))


def _interval_words(effects: StudyEffects, found: Mean) -> str:
    mean, low, high = (_written(effects, float(value)) for value in (found.mean, found.low, found.high))
    return f"{mean} ({low} to {high})"


def _written(effects: StudyEffects, value: float) -> str:
    """A value or an effect: of a probability in per cent."""
    if effects.metric.name == "probability" and not np.isnan(value):
        return f"{100 * value:.1f} %"
    return effects.metric.written(value)


def _better(effects: StudyEffects) -> str:
    return "higher" if effects.metric.higher_is_better else "lower"


def _manifest_text(manifest: Mapping[str, Any]) -> str:
    shown = {name: value for name, value in manifest.items() if name != "audit"}
    return json.dumps(shown, indent=1, ensure_ascii=False)


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
