"""A result as files to keep, and files back as results."""

from __future__ import annotations

import hashlib
import html
import json
import math
from pathlib import Path
from typing import Any

from causal_tracer.errors import ExportError, ResultFormatError
from causal_tracer.results.analysis import COLUMNS, rows
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.words import map_title, metric_label

FORMATS = ("json", "csv", "html", "png", "svg")

_LARGEST_UPLOAD = 64 * 2**20
# What makes a spreadsheet take a text for a formula, also in the wide forms of East Asian keyboards.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body {{ font-family: system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; }}
dl {{ display: flex; flex-wrap: wrap; gap: 0 2rem; }} dt {{ color: #555; }} dd {{ margin: 0; }}</style>
</head><body><h1>{title}</h1>
{numbers}
{figure}
{details}
</body></html>
"""


def download(flow: HiddenFlow, format: str, folder: Path) -> Path:
    """Write a result into a folder, and say where.

    Args:
        flow: The result.
        format: One of `FORMATS`: "json" opens again with identical numbers, "csv" has a row for each cell, "html" is a
            page that needs no network, "png" and "svg" are pictures.
        folder: Where to write it; made if it is not there.

    Raises:
        ExportError: The format is not known, or there is no browser to draw a picture.
    """
    if format not in FORMATS:
        raise ExportError(f"format={format!r} is not known. Choose one of {', '.join(FORMATS)}.")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{file_stem(flow)}.{format}"
    if format == "json":
        flow.save(path)
    elif format == "csv":
        path.write_text(csv_text(flow), encoding="utf-8", newline="")
    elif format == "html":
        path.write_text(html_page(flow), encoding="utf-8")
    else:
        from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap, save_figure

        save_figure(plot_hidden_flow_heatmap(flow, show=False), path)
    return path


def file_stem(flow: HiddenFlow) -> str:
    """A file name for a result, the same for the same numbers. Nothing that somebody typed is part of it."""
    text = json.dumps(flow.to_dict(), sort_keys=True)
    return f"causal-trace-{flow.kind}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def csv_text(flow: HiddenFlow) -> str:
    """One row for every cell; empty where it was not computed. No token passes for a spreadsheet's formula."""
    import csv
    import io

    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(COLUMNS)
    for row in rows(flow):
        writer.writerow([_csv_cell(value) for value in row])
    return file.getvalue()


def html_page(flow: HiddenFlow) -> str:
    """The map with its numbers and how it was made, as one page that fetches nothing."""
    from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap
    from causal_tracer.web.page.summary import details_html, doubts_html, numbers_html

    figure = plot_hidden_flow_heatmap(flow, title="", show=False)
    return _PAGE.format(
        title=html.escape(f"{map_title(flow)}: {metric_label(flow)}"),
        numbers=numbers_html(flow),
        figure=figure.to_html(full_html=False, include_plotlyjs=True, config={"displaylogo": False}),
        details=doubts_html(flow) + details_html(flow),
    )


def open_result(path: Path) -> HiddenFlow:
    """A result that somebody brings along.

    Raises:
        ResultFormatError: The file is too large, cannot be read, or is no result.
    """
    try:
        size = path.stat().st_size
        if size > _LARGEST_UPLOAD:
            raise ResultFormatError(
                f"The file has {size / 2**20:.0f} MiB, and this app opens at most {_LARGEST_UPLOAD // 2**20} MiB."
            )
        data = json.loads(path.read_bytes())
    except OSError as error:
        raise ResultFormatError(f"The file could not be read ({error.strerror}).") from error
    except ResultFormatError:
        raise
    except (ValueError, RecursionError) as error:
        raise ResultFormatError("The file is not JSON. Give one that the app or HiddenFlow.save wrote.") from error
    flow = HiddenFlow.from_dict(data)
    if not (math.isfinite(flow.low_score) and math.isfinite(flow.high_score)):
        raise ResultFormatError("The file's clean or corrupted score is no number, so there is nothing to show.")
    return flow


def _csv_cell(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value
