"""Results as files to download, and uploaded files as results."""

from __future__ import annotations

import hashlib
import json
import math
from html import escape
from pathlib import Path

from causal_tracer.errors import ExportError, ResultFormatError
from causal_tracer.files import write_atomically
from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap
from causal_tracer.plots.pages import figure_html, standalone_page
from causal_tracer.plots.saving import save_figure
from causal_tracer.plots.slides import slide_figure
from causal_tracer.results.analysis import COLUMNS, rows
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import map_title, metric_label
from causal_tracer.results.tables import csv_text
from causal_tracer.web.page.summary import details_html, numbers_html, warnings_html
from causal_tracer.web.service.inspection import map_warnings
from causal_tracer.web.service.registry import model_title

FORMATS = ("json", "csv", "html", "png", "svg", "pdf")

_LARGEST_UPLOAD = 64 * 2**20


def download(flow: HiddenFlow, format: str, folder: Path, link: str = "") -> Path:
    """Write a result into a folder, and return the file.

    Args:
        flow: The result.
        format: One of `FORMATS`: "json" opens again with identical numbers, "csv" has a row for each cell, "html" is a
            page that needs no network, "png", "svg" and "pdf" are slides.
        folder: Where to write it; made if needed.
        link: An address that leads to the result, for pages and slides.

    Raises:
        ExportError: The format is not known, or there is no browser to draw a picture.
    """
    if format not in FORMATS:
        raise ExportError(f"format={format!r} is not known. Choose one of {', '.join(FORMATS)}.")
    path = folder / f"{file_stem(flow)}.{format}"
    if format == "json":
        flow.save(path)
    elif format == "csv":
        write_atomically(path, csv_text(COLUMNS, rows(flow)))
    elif format == "html":
        write_atomically(path, html_page(flow, link))
    else:
        title = model_title(flow.settings.model)
        save_figure(slide_figure(flow, link=link, model=title, warnings=map_warnings(flow)), path, scale=1.0)
    return path


def file_stem(flow: HiddenFlow) -> str:
    """Return a file name for a result, the same for the same numbers. It contains no text that a user typed."""
    text = json.dumps(flow.to_dict(), sort_keys=True)
    return f"causal-trace-{flow.kind}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"


def html_page(flow: HiddenFlow, link: str = "") -> str:
    """Return the map with its numbers, how it was made and a link, as one page that needs no network."""
    title = f"{map_title(flow)}: {metric_label(flow)}"
    figure = figure_html(plot_hidden_flow_heatmap(flow, title="", show=False))
    body = numbers_html(flow) + figure + warnings_html(flow) + details_html(flow)
    if link:
        body += f'<p><a href="{escape(link)}">{escape(link)}</a></p>'
    return standalone_page(title, f"<h1>{escape(title)}</h1>{body}")


def open_result(path: Path) -> HiddenFlow:
    """Read an uploaded result.

    Raises:
        ResultFormatError: The file is too large, cannot be read, or is not a result.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST_UPLOAD + 1)
    except OSError as error:
        raise ResultFormatError(f"The file could not be read ({error.strerror}).") from error
    if len(content) > _LARGEST_UPLOAD:
        raise ResultFormatError(f"The file is too large: this app opens at most {_LARGEST_UPLOAD // 2**20} MiB.")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ResultFormatError("The file is not JSON. Open a file that the app or HiddenFlow.save wrote.") from error
    flow = HiddenFlow.from_dict(data)
    if not (math.isfinite(flow.low_score) and math.isfinite(flow.high_score)):
        raise ResultFormatError("The file's clean or corrupted score is not a finite number, so it cannot be shown.")
    return flow
