"""The files of a reproduction: a page with figures and verdict, and JSON files with the verdict and the averages."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from causal_tracer.errors import ExportError
from causal_tracer.files import write_atomically
from causal_tracer.plots.pages import figure_html, standalone_page, table_html
from causal_tracer.reproduce.verdict import Verdict
from causal_tracer.results import saved_form
from causal_tracer.study.records import without_nan
from causal_tracer.study.statistics import Mean

if TYPE_CHECKING:
    import plotly.graph_objects as go


def write_verdict(
    folder: Path, title: str, verdict: Verdict, figures: Mapping[str, go.Figure], made: Mapping[str, Any]
) -> None:
    """Write figure.html and verdict.json into a folder.

    Args:
        folder: The folder, created if missing.
        title: The page's title.
        verdict: The verdict.
        figures: The figures by caption.
        made: The settings behind the numbers, as JSON types.

    Raises:
        ExportError: A file could not be written.
    """
    drawn = "".join(
        f"<figure>{figure_html(figure)}<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, figure in figures.items()
    )
    table = table_html(*verdict.table()) if verdict.checks else ""
    page = f"<h1>{escape(title)}</h1><p><strong>{escape(verdict.line)}</strong></p>{drawn}{table}"
    try:
        write_atomically(folder / "figure.html", standalone_page(title, page))
    except OSError as error:
        raise ExportError(f"The figure could not be written into {str(folder)!r}: {error}") from error
    saved_form.save({"title": title, **verdict.to_dict(), "made": dict(made)}, folder / "verdict.json")


def write_means(path: Path, rows: Mapping[str, tuple[str, ...]], means: Mapping[str, Mean]) -> None:
    """Write means over facts with their intervals as JSON; null stands for NaN.

    Args:
        path: The file.
        rows: The row names of each map; empty for a curve.
        means: The means of each map [rows, layers] or curve [layers], by the same names.

    Raises:
        ExportError: The file could not be written.
    """
    data = {
        name: {"rows": list(rows[name]), **{end: without_nan(getattr(mean, end)) for end in ("mean", "low", "high")}}
        for name, mean in means.items()
    }
    saved_form.save(data, path)
