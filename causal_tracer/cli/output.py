"""The output of the `trace` command: files and printed text."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from causal_tracer.errors import ExportError, SettingsError
from causal_tracer.files import write_atomically
from causal_tracer.request.sites import SITES
from causal_tracer.results.analysis import COLUMNS, acts, effects, rows, share
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.tables import csv_text
from causal_tracer.results.words import (
    axis_labels,
    effect_label,
    low_run,
    metric_label,
    metric_of,
    named_title,
    patched_word,
    runs_line,
)

_PRINT = "-"
_SHADES = "·░▒▓█"
_IMAGES = (".png", ".svg", ".pdf")


@dataclass(frozen=True)
class Outputs:
    """Where maps go.

    Attributes:
        json: A file, or "-" for standard output: one line for each map, as `HiddenFlow.save` writes it.
        csv: A file, or "-": one row for each cell of each map.
        html: A file: all maps on one page.
        image: A file that ends in .png, .svg or .pdf; of several maps each gets its name before the ending.
        quiet: Print only what was asked for.
    """

    json: str | None = None
    csv: str | None = None
    html: Path | None = None
    image: Path | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.json == self.csv == _PRINT:
            raise SettingsError("--json and --csv would both be printed. Give one of them a file.")
        if self.html is not None and self.html.suffix.lower() not in (".html", ".htm"):
            raise SettingsError(f"--html {self.html} does not end in .html. Pictures are written with --image.")
        if self.image is not None and self.image.suffix.lower() not in _IMAGES:
            raise SettingsError(f"--image {self.image} ends in none of {', '.join(_IMAGES)}.")
        # Checked before the trace, not after it.
        for path in (self.json, self.csv, self.html, self.image):
            if path is not None and path != _PRINT and Path(path).is_dir():
                raise SettingsError(f"{path} is a folder. Give the name of a file.")

    def write(self, flows: Mapping[str, HiddenFlow]) -> None:
        """Write maps, by name, to all outputs; without a "-", print what they show.

        Raises:
            ExportError: A file could not be written.
        """
        try:
            if self.json is not None:
                lines = (json.dumps(flow.to_dict(), ensure_ascii=False, allow_nan=False) for flow in flows.values())
                _put(self.json, "".join(f"{line}\n" for line in lines))
            if self.csv is not None:
                cells = ((name, *row) for name, flow in flows.items() for row in rows(flow))
                _put(self.csv, csv_text(("map", *COLUMNS), cells))
            if self.html is not None:
                self._write_page(self.html, flows)
            if self.image is not None:
                self._write_images(self.image, flows)
        except OSError as error:
            raise ExportError(f"A result could not be written: {error}.") from error
        if not self.quiet and _PRINT not in (self.json, self.csv):
            typer.echo("\n\n".join("\n".join(describe(name, flow)) for name, flow in flows.items()))

    def _write_page(self, path: Path, flows: Mapping[str, HiddenFlow]) -> None:
        from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap
        from causal_tracer.plots.pages import figure_html, standalone_page

        figures = [
            plot_hidden_flow_heatmap(flow, show=False, title=named_title(name, flow)) for name, flow in flows.items()
        ]
        write_atomically(path, standalone_page("Causal tracing", "\n".join(map(figure_html, figures))))

    def _write_images(self, path: Path, flows: Mapping[str, HiddenFlow]) -> None:
        from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap, save_figure

        for name, flow in flows.items():
            file = path if len(flows) == 1 else path.with_name(f"{path.stem}-{name}{path.suffix}")
            save_figure(plot_hidden_flow_heatmap(flow, show=False, title=named_title(name, flow)), file)


def _put(place: str, text: str) -> None:
    if place == _PRINT:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomically(Path(place), text)


def describe(name: str, flow: HiddenFlow) -> Iterable[str]:
    """Yield lines that describe a map: title, clean and corrupted score, the map in shades, its peaks."""
    settings, metric = flow.settings, metric_of(flow)
    yield f"{named_title(name, flow)}: {metric_label(flow)}, {settings.model}"
    together = f"{_counted(settings.window, 'layer')} {patched_word(flow)} together"
    how = () if low_run(settings) is None else (settings.corruption, _counted(len(flow.low_sample_scores), "sample"))
    runs = runs_line(flow, lambda score: metric.written(score, fixed=False))
    yield f"  {runs} ({', '.join((*how, together))})"
    if flow.subject_guessed:
        yield f"  The subject was guessed: {flow.subject!r}."
    yield from (f"  {note}" for note in flow.notes)
    yield ""
    yield from _shaded(flow)
    yield ""
    for peak in flow.peaks():
        role = f" ({flow.roles[peak.position]})" if SITES[flow.kind].rows == "tokens" else ""
        effect = f"{effect_label(flow)} {metric.written(peak.effect, sign=True, fixed=False)}"
        share = "" if math.isnan(peak.share) else f", {peak.share:.0%} of the total effect"
        where = f"layer {peak.layer:>2} at {peak.row_name}{role}"
        yield f"  {where}: {metric.written(peak.score, fixed=False)}, {effect}{share}"


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _shaded(flow: HiddenFlow) -> Iterable[str]:
    """Yield the map, row by layer: the darker, the larger the effect's share of the total effect."""
    labels, found = axis_labels(flow), effects(flow)
    width = min(24, max(len(label) for label in labels))
    strongest = flow.peaks(1)[0].effect if low_run(flow.settings) is None and flow.peaks(1) else 0.0
    for label, changes in zip(labels, found.tolist(), strict=True):
        yield f"  {label[:width]:>{width}} {''.join(_shade(flow, effect, strongest) for effect in changes)}"
    layers = flow.scores.shape[1]
    ticks = "".join(f"{layer:<5}" for layer in range(0, layers, 5))
    yield f"  {'layer':>{width}} {ticks.rstrip()}"


def _shade(flow: HiddenFlow, effect: float, strongest: float) -> str:
    if math.isnan(effect):
        return " "
    # Without a corrupted run there is no total effect: the strongest cell takes its place.
    part = effect / strongest if acts(flow, strongest) else share(flow, effect)
    if math.isnan(part):
        # The total effect is zero, of the wrong sign, or infinite.
        return _SHADES[-1 if math.isinf(effect) and acts(flow, effect) else 0]
    return _SHADES[min(len(_SHADES) - 1, max(0, int(part * len(_SHADES))))]
