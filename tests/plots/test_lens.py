"""The figure of a logit lens."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch

from causal_tracer import plot_lens, save_figure
from causal_tracer.errors import SettingsError
from tests.support.lenses import some_lens


def test_each_cell_has_its_top_token() -> None:
    lens = some_lens()
    (heatmap,) = plot_lens(lens, show=False).data
    written = {0: "Seattle", 1: "⏎", 2: "=1+1", 3: "&lt;b&gt;", 4: "a{long}…"}
    assert [list(row) for row in heatmap.text] == [[written[int(cell)] for cell in row] for row in lens.top_ids[..., 0]]
    # Without a colour of its own, text is dark on light cells and light on dark ones.
    assert heatmap.textfont.color is None
    assert heatmap.texttemplate == "%{text}"


@pytest.mark.parametrize(
    ("shade", "field", "label"),
    [
        ("top", "top_probabilities", "P(top token)"),
        ("answer", "answer_probabilities", "P(Seattle)"),
        ("entropy", "entropies", "entropy (nats)"),
    ],
)
def test_the_shade_is_what_is_asked_for(shade: Any, field: str, label: str) -> None:
    lens = some_lens()
    (heatmap,) = plot_lens(lens, shade, show=False).data
    values = getattr(lens, field)
    values = values[..., 0] if values.dim() == 3 else values
    assert torch.equal(torch.tensor(heatmap.z), values)
    assert heatmap.zmin == 0
    assert heatmap.zmax == (float(lens.entropies.max()) if shade == "entropy" else 1)
    assert heatmap.colorbar.title.text == label


def test_hovering_shows_the_top_tokens_the_answer_and_the_entropy() -> None:
    lens = some_lens()
    (heatmap,) = plot_lens(lens, show=False).data
    token, lines = heatmap.customdata[2][1]
    assert token == "⏎"
    assert lines.count("<br>") == 3
    assert f"rank {int(lens.answer_ranks[2, 1])}" in lines
    assert f"entropy {float(lens.entropies[2, 1]):.3g} nats" in lines
    assert "<b>" not in lines


def test_tokens_are_down_and_layers_across() -> None:
    figure = plot_lens(some_lens(), show=False)
    assert list(figure.layout.yaxis.ticktext) == ["&lt;bos&gt;", "the", "⏎", "東", "=x"]
    assert list(figure.layout.xaxis.ticktext) == ["0", "1", "2"]
    assert figure.layout.title.text == "Logit lens of the clean run"
    assert plot_lens(some_lens(), title="", show=False).layout.title.text is None


def test_a_narrow_page_scrolls_the_figure(tmp_path: Path) -> None:
    figure = plot_lens(some_lens(), show=False)
    page = save_figure(figure, tmp_path / "lens.html").read_text("utf-8")
    assert '<div class="wide"><div style="min-width:334px">' in page
    plain = save_figure(go.Figure(), tmp_path / "plain.html").read_text("utf-8")
    assert 'class="wide"' not in plain


@pytest.mark.parametrize(
    "changes",
    [{"lens": 3}, {"shade": "rank"}, {"title": 3}, {"height": 2}, {"height": "x"}, {"show": 3}],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        plot_lens(**{"lens": some_lens(), "show": False, **changes})
