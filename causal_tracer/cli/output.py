"""The output of the commands `trace`, `lens` and `patch`: options, files and printed text."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from causal_tracer.errors import ExportError, SettingsError
from causal_tracer.files import write_atomically
from causal_tracer.request.sites import SITES
from causal_tracer.results.analysis import COLUMNS, effects, has_expected_sign, rows, share
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import (
    axis_labels,
    display_token,
    effect_label,
    low_run_name,
    metric_label,
    metric_of,
    named_title,
    patched_word,
    probability_label,
    runs_line,
)
from causal_tracer.results.lens import COLUMNS as LENS_COLUMNS
from causal_tracer.results.lens import LogitLens
from causal_tracer.results.patched import PatchedRun
from causal_tracer.results.tables import csv_text

if TYPE_CHECKING:
    import plotly.graph_objects as go

_PRINT = "-"
_SHADES = "·░▒▓█"
_IMAGES = (".png", ".svg", ".pdf")
_OUTPUT = "Output"

Json = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE|-",
        help='Write all numbers as JSON, one line for each map. "-" prints them.',
        rich_help_panel=_OUTPUT,
    ),
]
Csv = Annotated[
    str | None,
    typer.Option(
        "--csv",
        metavar="FILE|-",
        help='Write a table with a row for each cell. "-" prints it.',
        rich_help_panel=_OUTPUT,
    ),
]
Html = Annotated[
    Path | None,
    typer.Option("--html", metavar="FILE", help="Write a page that opens offline.", rich_help_panel=_OUTPUT),
]
Image = Annotated[
    Path | None,
    typer.Option(
        "--image",
        metavar="FILE",
        help="Write the figure as .png, .svg or .pdf; of several maps, one file each.",
        rich_help_panel=_OUTPUT,
    ),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print no progress and no map.", rich_help_panel=_OUTPUT)]


@dataclass(frozen=True)
class _Contents:
    """The results of a command in each form that can be written.

    Attributes:
        data: Each result as JSON types.
        header: The columns of the table.
        rows: The rows of the table.
        figures: Draws the figures, by name.
        text: Makes the printed text.
    """

    data: Iterable[dict[str, Any]]
    header: Sequence[str]
    rows: Iterable[Sequence[Any]]
    figures: Callable[[], Mapping[str, go.Figure]]
    text: Callable[[], str]


@dataclass(frozen=True)
class Outputs:
    """The outputs that a command writes its results to.

    Attributes:
        json: A file, or "-" for standard output: one line for each map, as `HiddenFlow.save` writes it.
        csv: A file, or "-" for standard output: one row for each cell of each map.
        html: A file: all maps on one page.
        image: A file that ends in .png, .svg or .pdf. If there are several maps, each gets a file of its own with the
            map's name before the ending.
        quiet: Print nothing but the outputs that are "-".
    """

    json: str | None = None
    csv: str | None = None
    html: Path | None = None
    image: Path | None = None
    quiet: bool = False

    def __post_init__(self) -> None:
        if self.json == self.csv == _PRINT:
            raise SettingsError("--json and --csv cannot both be printed. Give one of them a file.")
        if self.html is not None and self.html.suffix.lower() not in (".html", ".htm"):
            raise SettingsError(f"--html must end in .html (given: {self.html}). To write an image, use --image.")
        if self.image is not None and self.image.suffix.lower() not in _IMAGES:
            raise SettingsError(
                f"--image must end in {', '.join(_IMAGES[:-1])} or {_IMAGES[-1]} (given: {self.image})."
            )
        # Checked here because a trace can take long, and its result would be lost.
        for path in (self.json, self.csv, self.html, self.image):
            if path is not None and path != _PRINT and Path(path).is_dir():
                raise SettingsError(f"{path} is a folder, and results are written to files. Give a file name.")
        if self.image is not None:
            from causal_tracer.plots.saving import require_kaleido

            require_kaleido(self.image.name)

    def write(self, flows: Mapping[str, HiddenFlow]) -> None:
        """Write maps, by name, to all outputs. If no output is "-", also print a description of each map.

        Raises:
            ExportError: A file could not be written.
        """

        def figures() -> dict[str, go.Figure]:
            from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap

            return {
                name: plot_hidden_flow_heatmap(flow, show=False, title=named_title(name, flow))
                for name, flow in flows.items()
            }

        def text() -> str:
            return "\n\n".join("\n".join(describe(name, flow)) for name, flow in flows.items())

        cells = ((name, *row) for name, flow in flows.items() for row in rows(flow))
        data = (flow.to_dict() for flow in flows.values())
        self._write(_Contents(data, ("map", *COLUMNS), cells, figures, text))

    def write_lens(self, lens: LogitLens) -> None:
        """Write a lens to all outputs. If no output is "-", also print its rows at the last token.

        Raises:
            ExportError: A file could not be written.
        """
        self._write_lens(lens, lens.to_dict(), ())

    def write_patched(self, run: PatchedRun) -> None:
        """Write a patched run to all outputs. Its table and figure are those of its lens.

        Raises:
            ExportError: A file could not be written.
        """
        self._write_lens(run.lens, run.to_dict(), (repr(run), ""))

    def _write_lens(self, lens: LogitLens, data: dict[str, Any], before: Sequence[str]) -> None:
        def figures() -> dict[str, go.Figure]:
            from causal_tracer.plots.lens import plot_lens

            return {"lens": plot_lens(lens, show=False)}

        def text() -> str:
            return "\n".join((*before, *describe_lens(lens)))

        self._write(_Contents([data], LENS_COLUMNS, lens.rows(), figures, text))

    def _write(self, contents: _Contents) -> None:
        try:
            if self.json is not None:
                lines = (json.dumps(data, ensure_ascii=False, allow_nan=False) for data in contents.data)
                _put(self.json, "".join(f"{line}\n" for line in lines))
            if self.csv is not None:
                _put(self.csv, csv_text(contents.header, contents.rows))
            if self.html is not None:
                from causal_tracer.plots.pages import figure_html, standalone_page

                body = "\n".join(figure_html(figure) for figure in contents.figures().values())
                write_atomically(self.html, standalone_page("Causal tracing", body))
            if self.image is not None:
                self._write_images(self.image, contents.figures())
        except OSError as error:
            raise ExportError(f"The results could not be written: {error}.") from error
        if not self.quiet and _PRINT not in (self.json, self.csv):
            typer.echo(contents.text())

    def _write_images(self, path: Path, figures: Mapping[str, go.Figure]) -> None:
        from causal_tracer.plots.saving import save_figure

        for name, figure in figures.items():
            save_figure(figure, path if len(figures) == 1 else path.with_name(f"{path.stem}-{name}{path.suffix}"))


def _put(place: str, text: str) -> None:
    if place == _PRINT:
        sys.stdout.write(text)
        sys.stdout.flush()
    else:
        write_atomically(Path(place), text)


def describe(name: str, flow: HiddenFlow) -> Iterable[str]:
    """Yield the lines that describe a map: title, clean and corrupted score, the map in shades, its peaks."""
    settings, metric = flow.settings, metric_of(flow)
    yield f"{named_title(name, flow)}: {metric_label(flow)}, {settings.model}"
    together = f"{_counted(settings.window, 'layer')} {patched_word(flow)} together"
    how = (
        () if low_run_name(settings) is None else (settings.corruption, _counted(len(flow.low_sample_scores), "sample"))
    )
    runs = runs_line(flow, lambda score: metric.format_value(score, fixed=False))
    yield f"  {runs} ({', '.join((*how, together))})"
    if flow.subject_guessed:
        yield f"  The subject was guessed: {flow.subject!r}."
    yield from (f"  {note}" for note in flow.notes)
    yield ""
    yield from _shaded(flow)
    yield ""
    for peak in flow.peaks():
        role = f" ({flow.roles[peak.position]})" if SITES[flow.kind].rows == "tokens" else ""
        effect = f"{effect_label(flow)} {metric.format_value(peak.effect, sign=True, fixed=False)}"
        share = "" if math.isnan(peak.share) else f", {peak.share:.0%} of the total effect"
        where = f"layer {peak.layer:>2} at {peak.row_name}{role}"
        yield f"  {where}: {metric.format_value(peak.score, fixed=False)}, {effect}{share}"


def describe_lens(lens: LogitLens) -> Iterable[str]:
    """Yield the lines that describe a lens: the run and model, and each layer's top token at the last token."""
    yield f"Logit lens of the {lens.run}: {lens.model}"
    yield from (f"  {note}" for note in lens.notes)
    yield f"  after {display_token(lens.input_tokens[-1])!r}; entropy in nats"
    yield ""
    answer = probability_label(lens.answer)
    width = max(len(answer), 9)
    yield f"  layer  {'top token':<16} {'P':>9}  {answer:>{width}} {'rank':>7} {'entropy':>8}"
    for layer in range(lens.entropies.shape[1]):
        best, place = lens.top(-1, layer)[0], (-1, layer)
        yield (
            f"  {layer:>5}  {display_token(best.text)[:16]:<16} {best.probability:>9.4g}  "
            f"{float(lens.answer_probabilities[place]):>{width}.4g} {int(lens.answer_ranks[place]):>7} "
            f"{float(lens.entropies[place]):>8.2f}"
        )


def _counted(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _shaded(flow: HiddenFlow) -> Iterable[str]:
    """Yield the map as lines of shades, rows by layers. A darker shade is a larger share of the total effect."""
    labels, found = axis_labels(flow), effects(flow)
    width = min(24, max(len(label) for label in labels))
    strongest = flow.peaks(1)[0].effect if low_run_name(flow.settings) is None and flow.peaks(1) else 0.0
    for label, changes in zip(labels, found.tolist(), strict=True):
        yield f"  {label[:width]:>{width}} {''.join(_shade(flow, effect, strongest) for effect in changes)}"
    layers = flow.scores.shape[1]
    ticks = "".join(f"{layer:<5}" for layer in range(0, layers, 5))
    yield f"  {'layer':>{width}} {ticks.rstrip()}"


def _shade(flow: HiddenFlow, effect: float, strongest: float) -> str:
    if math.isnan(effect):
        return " "
    # A map without a corrupted run has no total effect, so its strongest cell is the darkest shade.
    part = effect / strongest if has_expected_sign(flow, strongest) else share(flow, effect)
    if math.isnan(part):
        # The total effect is zero, of the wrong sign, or infinite.
        return _SHADES[-1 if math.isinf(effect) and has_expected_sign(flow, effect) else 0]
    return _SHADES[min(len(_SHADES) - 1, max(0, int(part * len(_SHADES))))]
