"""Standalone pages: each holds Plotly once and asks for nothing from outside."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from causal_tracer import save_figure
from causal_tracer.cli.output import Outputs
from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap
from causal_tracer.plots.pages import standalone_page
from causal_tracer.results.flow import HiddenFlow
from tests.support.flows import some_flow

TYPED = "</script><img src=http://x>"


def by_save_figure(flow: HiddenFlow, folder: Path) -> str:
    return save_figure(plot_hidden_flow_heatmap(flow, show=False), folder / "map.html").read_text("utf-8")


def by_command(flow: HiddenFlow, folder: Path) -> str:
    Outputs(html=folder / "maps.html", quiet=True).write({"a": flow, TYPED: flow})
    return (folder / "maps.html").read_text("utf-8")


def by_download(flow: HiddenFlow, folder: Path) -> str:
    pytest.importorskip("gradio")
    from causal_tracer.web.page.downloads import download

    return download(flow, "html", folder).read_text("utf-8")


def by_notebook(flow: HiddenFlow, folder: Path) -> str:
    (page,) = re.findall('srcdoc="([^"]*)"', str(flow._repr_html_()))
    return html.unescape(page)


WRITERS: tuple[Callable[[HiddenFlow, Path], str], ...] = (by_save_figure, by_command, by_download, by_notebook)


@pytest.mark.parametrize("write", WRITERS)
def test_a_page_needs_nothing_from_outside(write: Callable[[HiddenFlow, Path], str], tmp_path: Path) -> None:
    flow = some_flow(input_tokens=[TYPED] * 4, prompt=TYPED, subject=TYPED, answer=TYPED, notes=(TYPED,))
    page = write(flow, tmp_path)
    assert page.count("plotly.js v") == 1
    assert not re.findall(r"<(?:script|link|iframe|img)[^>]*(?:src|href)\s*=", page)
    assert page.startswith("<!DOCTYPE html>")
    assert page.endswith("</body></html>\n")


def test_the_title_is_text() -> None:
    assert f"<title>{html.escape(TYPED)}</title>" in standalone_page(TYPED, "")
