"""Writing figures to files: HTML without further packages, images by Kaleido."""

from __future__ import annotations

from importlib.util import find_spec
from os import PathLike
from pathlib import Path

import plotly.graph_objects as go

from causal_tracer.arguments import file_path, instance, real_number
from causal_tracer.errors import ExportError
from causal_tracer.files import write_atomically
from causal_tracer.plots.pages import figure_html, standalone_page


def save_figure(figure: go.Figure, path: str | PathLike[str], *, scale: float = 2.0) -> Path:
    """Write a figure as HTML, PNG, SVG or PDF, by the file's ending.

    The HTML is self-contained and opens offline. Kaleido draws the images and needs Chrome or Chromium.

    Args:
        figure: The figure.
        path: The file. Missing folders are created.
        scale: How many times as large the picture is: PNG in pixels, SVG and PDF in length.

    Returns:
        The path of the file.

    Raises:
        SettingsError: An argument has the wrong type.
        ExportError: The ending is not one of these, the file cannot be written, or Kaleido or Chrome is missing.
    """
    path = file_path(path)
    instance("figure", figure, go.Figure)
    scale = real_number("scale", scale)
    ending = path.suffix.lower().removeprefix(".")
    if ending not in ("html", "png", "svg", "pdf"):
        raise ExportError(f"A figure's file must end in .html, .png, .svg or .pdf (given: {path.name!r}).")
    try:
        if ending == "html":
            write_atomically(path, standalone_page("Causal tracing", figure_html(figure)))
        else:
            write_atomically(path, _image(figure, path.name, ending, scale))
    except (OSError, ValueError) as error:
        raise ExportError(f"{str(path)!r} could not be written: {error}") from error
    return path


def require_kaleido(name: str) -> None:
    """Check that images can be drawn.

    Args:
        name: The image's file name, for the message.

    Raises:
        ExportError: Kaleido is not installed.
    """
    if find_spec("kaleido") is None:
        raise ExportError(
            f"Writing {name!r} needs Kaleido, and it is not installed: pip install kaleido. "
            "Or write an .html file, which does not need it."
        )


def _image(figure: go.Figure, name: str, ending: str, scale: float) -> bytes:
    require_kaleido(name)
    from choreographer.errors import BrowserFailedError, ChromeNotFoundError
    from kaleido.errors import ChromeNotFoundError as KaleidoChromeNotFoundError

    try:
        image: bytes = figure.to_image(format=ending, scale=scale)
    except (ChromeNotFoundError, KaleidoChromeNotFoundError, BrowserFailedError, RuntimeError) as error:
        raise ExportError(
            f"Writing {name!r} needs Chrome or Chromium, and Kaleido could not start it ({error}). Install it, "
            "or run plotly_get_chrome, or write an .html file."
        ) from error
    return image
