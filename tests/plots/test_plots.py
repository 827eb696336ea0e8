"""Figures: the numbers, marks and texts they show, and the files made of them."""

from __future__ import annotations

import dataclasses
import itertools
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch

from causal_tracer import HiddenFlow, MapSpec, TraceRequest, plot_hidden_flow_heatmap, save_figure
from causal_tracer.errors import ExportError
from causal_tracer.plots.difference import DIFFERENCE_SCALE, plot_difference_heatmap
from causal_tracer.plots.heatmap import display_token, shared_limits
from causal_tracer.request.sites import KINDS, SITES, LayerKind
from causal_tracer.results.comparison import compare_flows
from tests.support.flows import some_flow
from tests.support.tiny_models import PROMPT, SUBJECT, tiny_tracer

CHROMIUM = Path("/usr/bin/chromium")


def draw(flow: HiddenFlow, **kwargs: Any) -> go.Figure:
    return plot_hidden_flow_heatmap(flow, show=False, **kwargs)


def with_window(flow: HiddenFlow, window: int) -> HiddenFlow:
    return dataclasses.replace(flow, settings=dataclasses.replace(flow.settings, window=window))


def long_flow(layers: int, **changes: Any) -> HiddenFlow:
    samples = torch.rand(3, 4, layers, generator=torch.Generator().manual_seed(1))
    return some_flow(scores=samples.mean(dim=0), sample_scores=samples, **changes)


def test_the_colours_are_the_scores_and_gaps_are_gaps() -> None:
    flow = some_flow()
    (heatmap,) = draw(flow).data
    assert len(heatmap.z) == 4
    for row, scores in zip(heatmap.z, flow.scores.tolist(), strict=True):
        assert row[0] == scores[0]
        assert row[1] is None
    assert heatmap.hoverongaps is False


def test_a_traced_map_is_drawn_as_it_is() -> None:
    flow = tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    (heatmap,) = draw(flow).data
    assert [list(row) for row in heatmap.z] == flow.scores.tolist()


@pytest.mark.parametrize("high", [0.2, 0.7])
def test_the_scale_starts_at_low_score_and_ends_at_the_clean_run_or_the_highest_score(high: float) -> None:
    flow = some_flow(low_score=0.05, high_score=high)
    (heatmap,) = draw(flow).data
    assert heatmap.zmin == 0.05
    assert heatmap.zmax == pytest.approx(max(high, float(flow.scores[:, 0].max())))


def test_a_scale_is_never_empty_or_upside_down() -> None:
    (heatmap,) = draw(some_flow(low_score=0.99999)).data
    assert heatmap.zmin < heatmap.zmax
    nothing = some_flow(scores=torch.full((4, 2), torch.nan), high_score=0.0, low_score=0.5)
    (heatmap,) = draw(nothing).data
    assert heatmap.zmin < heatmap.zmax


def oklab(color: str) -> torch.Tensor:
    """Lightness, green-red, blue-yellow of "#rrggbb" (Ottosson 2020), where distances are what the eye sees."""
    encoded = torch.tensor([int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)], dtype=torch.float64)
    linear = torch.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    cones = torch.tensor(
        [
            [0.4122214708, 0.5363325363, 0.0514459929],
            [0.2119034982, 0.6806995451, 0.1073969566],
            [0.0883024619, 0.2817188376, 0.6299787005],
        ],
        dtype=torch.float64,
    )
    opponent = torch.tensor(
        [
            [0.2104542553, 0.7936177850, -0.0040720468],
            [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660],
        ],
        dtype=torch.float64,
    )
    return opponent @ (cones @ linear).pow(1 / 3)


def steps_of(scale: tuple[str, ...]) -> list[float]:
    colors = [oklab(color) for color in scale]
    return [float((b - a).norm()) for a, b in itertools.pairwise(colors)]


@pytest.mark.parametrize(
    "scale", [*(site.color_scale for site in SITES.values()), DIFFERENCE_SCALE[7:], DIFFERENCE_SCALE[7::-1]]
)
def test_scales_are_even_to_the_eye_and_in_order_by_lightness_alone(scale: tuple[str, ...]) -> None:
    steps = steps_of(scale)
    assert max(steps) < 1.1 * min(steps)
    lightness = [float(oklab(color)[0]) for color in scale]
    assert all(a - b > 0.07 for a, b in itertools.pairwise(lightness)), "colour-blind readers have lightness only"


def test_the_two_arms_of_a_difference_differ_in_blue_against_yellow() -> None:
    # What people with red-green blindness keep.
    for orange, blue in zip(DIFFERENCE_SCALE[:6], DIFFERENCE_SCALE[:8:-1], strict=True):
        assert float(oklab(orange)[2]) > 0.02 > -0.02 > float(oklab(blue)[2])


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_have_their_own_colours(kind: LayerKind) -> None:
    assert [color for _, color in draw(some_flow(kind=kind, low_score=0.0)).data[0].colorscale] == list(
        SITES[kind].color_scale
    )
    blue = go.Figure(go.Heatmap(z=[[1]], colorscale="Blues")).data[0].colorscale
    assert draw(some_flow(kind=kind, low_score=0.0), color="Blues").data[0].colorscale == blue


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_the_subjects_tokens_are_starred_and_no_others() -> None:
    labels = draw(some_flow()).layout.yaxis.ticktext
    assert [label.endswith("*") for label in labels] == [False, False, True, True]


def test_tokens_run_down_and_layers_across() -> None:
    figure = draw(some_flow())
    assert figure.layout.yaxis.autorange == "reversed"
    assert list(figure.layout.yaxis.tickvals) == [0, 1, 2, 3]


def test_repeated_tokens_stay_apart() -> None:
    figure = draw(some_flow(input_tokens=[" the", " the", " the", " the"]))
    assert list(figure.layout.yaxis.tickvals) == [0, 1, 2, 3]
    assert len(figure.layout.yaxis.ticktext) == 4
    assert len(figure.data[0].z) == 4
    assert figure.data[0].y is None
    assert figure.layout.yaxis.type in (None, "linear")


MARKUP = ["<bos>", "<b>bold</b>", "a & b", "</span><script>"]


def test_markup_in_tokens_stands_as_it_is() -> None:
    figure = draw(some_flow(input_tokens=MARKUP))
    labels = list(figure.layout.yaxis.ticktext)
    assert labels == ["&lt;bos&gt;", "&lt;b&gt;bold&lt;/b&gt;", "a &amp; b*", "&lt;/span&gt;&lt;script&gt;*"]
    for row, label in zip(figure.data[0].customdata, labels, strict=True):
        assert {cell[0] for cell in row} == {label.removesuffix("*")}


def test_markup_in_the_answer_the_title_and_the_axis_stands_as_it_is() -> None:
    figure = draw(some_flow(answer="<eos>"), title="<b>t</b>", xlabel="<i>x</i>")
    assert "P(&lt;eos&gt;)" in figure.data[0].colorbar.title.text
    assert "P(&lt;eos&gt;)" in figure.data[0].hovertemplate
    assert figure.layout.title.text == "&lt;b&gt;t&lt;/b&gt;"
    assert figure.layout.xaxis.title.text == "&lt;i&gt;x&lt;/i&gt;"


@pytest.mark.parametrize("answer", ["%{x}", "%{customdata[0]}", "100%{z}"])
def test_an_answer_that_looks_like_a_place_in_the_hover_text_is_none(answer: str) -> None:
    template = draw(some_flow(answer=answer)).data[0].hovertemplate
    places = re.findall(r"%\{[^}]*\}", template)
    assert sorted(places) == sorted(["%{x}", *(f"%{{customdata[{number}]}}" for number in range(4))])


@pytest.mark.parametrize(
    ("token", "shown"), [(" the", "the"), ("\n", "⏎"), ("\t", "⇥"), (" ", "␣"), ("\r\n", "⏎"), ("", "␣")]
)
def test_blanks_can_be_seen(token: str, shown: str) -> None:
    labels = draw(some_flow(input_tokens=[token, "a", "b", "c"])).layout.yaxis.ticktext
    assert labels[0] == shown


@pytest.mark.parametrize("token", ["\u200b", "\x00", "\u200e", "\u00a0", "\x0b"])
def test_no_label_is_invisible(token: str) -> None:
    label = draw(some_flow(input_tokens=[token, "a", "b", "c"])).layout.yaxis.ticktext[0]
    assert any(character.isprintable() and not character.isspace() for character in label)


# Limits, top tokens, differences --------------------------------------------------------------------------------------


def test_maps_can_share_one_scale() -> None:
    low, high = some_flow(low_score=0.01), some_flow(low_score=0.05)
    limits = shared_limits([low, high])
    assert limits.ends == (0.01, 0.7)
    assert limits.base == 0.01
    for flow in (low, high):
        (heatmap,) = draw(flow, limits=limits).data
        assert (heatmap.zmin, heatmap.zmax) == limits.ends


def test_top_tokens_are_written_into_the_cells_when_asked_for() -> None:
    request = TraceRequest(PROMPT, SUBJECT, samples=2, top_tokens=2)
    flow = tiny_tracer("gpt2").trace_maps(request, {"map": MapSpec("hidden")})["map"]
    assert draw(flow).data[0].text is None
    (heatmap,) = draw(flow, write_top_tokens=True).data
    assert heatmap.texttemplate == "%{text}"
    last = len(flow.input_tokens) - 1
    assert heatmap.text[last][2] == display_token(flow.top_tokens.cells(last, 2)[0].text)


def test_a_result_without_top_tokens_is_drawn_without_them() -> None:
    (heatmap,) = draw(some_flow(), write_top_tokens=True).data
    assert {text for row in heatmap.text for text in row} == {""}


def test_a_difference_is_drawn_about_zero() -> None:
    first = long_flow(6)
    second = dataclasses.replace(first, scores=first.scores * 0.5)
    figure = plot_difference_heatmap(compare_flows(first, second), show=False)
    (heatmap,) = figure.data
    assert heatmap.zmin == -heatmap.zmax < 0
    expected = second.indirect_effect - first.indirect_effect
    assert [list(row) for row in heatmap.z] == expected.tolist()
    assert list(figure.layout.yaxis.ticktext) == list(draw(first).layout.yaxis.ticktext)


# Hover and axes -------------------------------------------------------------------------------------------------------


def test_hover_tells_token_layer_probability_effect_and_error() -> None:
    flow = some_flow()
    (heatmap,) = draw(flow).data
    for place in (
        "%{customdata[0]}",
        "layer %{x}",
        "P(Seattle) = %{customdata[3]}",
        "indirect effect %{customdata[2]}",
    ):
        assert place in heatmap.hovertemplate
    token, window, effect, score = heatmap.customdata[2][0]
    assert score == f"{float(flow.scores[2, 0]):.4f}"
    assert token == "東[1/2]"
    assert window == ""
    assert effect == f"{float(flow.indirect_effect[2, 0]):+.4f} ± {float(flow.standard_error[2, 0]):.4f} (s.e.)"


def test_hover_without_a_standard_error_gives_none() -> None:
    flow = tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, samples=1)
    assert "±" not in draw(flow).data[0].customdata[0][0][2]
    assert "nan" not in str(draw(flow).data[0].customdata).lower()


@pytest.mark.parametrize(
    ("window", "expected"),
    [
        (1, ["", "", "", "", "", ""]),
        (2, ["0–0", "0–1", "1–2", "2–3", "3–4", "4–5"]),
        (3, ["0–1", "0–2", "1–3", "2–4", "3–5", "4–5"]),
        (10, ["0–4", "0–5", "0–5", "0–5", "0–5", "0–5"]),
        (4, ["0–1", "0–2", "0–3", "1–4", "2–5", "3–5"]),
    ],
)
def test_hover_tells_the_layers_that_were_restored(window: int, expected: list[str]) -> None:
    cells = draw(with_window(long_flow(6), window)).data[0].customdata[0]
    assert [cell[1] for cell in cells] == [f" (restored {text})" if text else "" for text in expected]


@pytest.mark.parametrize("kind", KINDS)
def test_titles_say_what_was_restored(kind: LayerKind) -> None:
    word = {"hidden": "hidden state", "mlp": "MLP", "attention": "attention"}[kind]
    figure = draw(with_window(some_flow(kind=kind), 10))
    assert word in figure.layout.title.text
    assert word in figure.layout.xaxis.title.text
    assert "10" in figure.layout.xaxis.title.text
    assert "10" not in draw(some_flow(kind=kind)).layout.xaxis.title.text
    assert figure.data[0].colorbar.title.text == "P(Seattle)"


def test_titles_can_be_given_and_hidden() -> None:
    assert draw(some_flow(), title="Mine").layout.title.text == "Mine"
    assert draw(some_flow(), xlabel="My layers").layout.xaxis.title.text == "My layers"
    assert draw(some_flow(), title="").layout.title.text is None
    assert draw(some_flow(), xlabel="").layout.xaxis.title.text in ("", None)


def test_an_empty_title_leaves_no_room_for_one() -> None:
    assert draw(some_flow(), title="").layout.margin.t < draw(some_flow()).layout.margin.t
    assert draw(some_flow(), title="").layout.height < draw(some_flow()).layout.height
    assert draw(some_flow(), height=333).layout.height == 333


@pytest.mark.parametrize(
    ("layers", "interval", "portion", "expected"),
    [
        (48, 5, 0.1, [0, 5, 10, 15, 20, 25, 30, 35, 40]),
        (10, 1, 0.0, list(range(10))),
        (10, 1, 0.5, list(range(5))),
        (10, 3, 0.1, [0, 3, 6]),
        (10, 1, 1.0, [0]),
        (2, 5, 0.1, [0]),
        (1, 5, 0.1, [0]),
    ],
)
def test_layers_are_numbered_at_intervals_and_the_last_ones_not(
    layers: int, interval: int, portion: float, expected: list[int]
) -> None:
    figure = draw(long_flow(layers), tick_interval=interval, skip_final_labels_portion=portion)
    assert list(figure.layout.xaxis.tickvals) == expected
    assert list(figure.layout.xaxis.ticktext) == [str(layer) for layer in expected]


def test_fonts_can_be_given() -> None:
    assert draw(some_flow(), font_family="Times New Roman").layout.font.family == "Times New Roman"
    assert draw(some_flow()).layout.font.family is None


def test_a_figure_is_opened_only_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[go.Figure] = []
    monkeypatch.setattr(go.Figure, "show", lambda self, *_args, **_kwargs: opened.append(self))
    draw(some_flow())
    assert opened == []
    figure = plot_hidden_flow_heatmap(some_flow())
    assert opened == [figure]


def test_a_loaded_result_is_drawn_the_same(tmp_path: Path) -> None:
    some_flow().save(tmp_path / "flow.json")
    assert draw(HiddenFlow.load(tmp_path / "flow.json")).to_json() == draw(some_flow()).to_json()


def test_a_figure_is_plain_json_without_nan() -> None:
    assert "NaN" not in draw(some_flow()).to_json()


# Files ----------------------------------------------------------------------------------------------------------------


def test_html_opens_without_a_network(tmp_path: Path) -> None:
    path = save_figure(draw(some_flow(input_tokens=MARKUP)), tmp_path / "new folder" / "map.html")
    text = path.read_text(encoding="utf-8")
    assert len(text) > 1_000_000, "plotly.js is not in it"
    tags = re.findall(r"<(?:script|link|img|iframe)\b[^>]*>", text)
    assert not [tag for tag in tags if re.search(r"(src|href)\s*=\s*[\"']?(https?:)?//", tag)]
    assert "</span><script>" not in text


@pytest.mark.parametrize("name", ["map.jpg", "map", "map.json", "map.html.gz", ".html"])
def test_endings_that_are_not_known_are_refused_and_nothing_is_written(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"\.html, \.png, \.svg or \.pdf"):
        save_figure(draw(some_flow()), tmp_path / "folder" / name)
    assert not list(tmp_path.rglob("map*"))


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_without_kaleido_images_are_refused_with_the_line_to_write(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("causal_tracer.plots.saving.find_spec", lambda name: None)
    with pytest.raises(ExportError, match=r"pip install kaleido"):
        save_figure(draw(some_flow()), tmp_path / f"map.{ending}")
    with pytest.raises(ExportError, match="Kaleido"):
        draw(some_flow(), savepdf=tmp_path / "map.pdf")
    assert save_figure(draw(some_flow()), tmp_path / "map.html").exists()


def test_without_a_chrome_images_are_refused_with_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("kaleido")
    from choreographer.errors import ChromeNotFoundError

    def no_chrome(*_args: Any, **_kwargs: Any) -> None:
        raise ChromeNotFoundError("none here")

    monkeypatch.setattr(go.Figure, "to_image", no_chrome)
    with pytest.raises(ExportError, match=r"Chrome.*plotly_get_chrome"):
        save_figure(draw(some_flow()), tmp_path / "map.png")


@pytest.mark.nightly
@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no Chromium")
@pytest.mark.parametrize(("ending", "magic"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")])
def test_images_are_written_where_there_is_a_chromium(ending: str, magic: bytes, tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    path = save_figure(draw(some_flow()), tmp_path / "new folder" / f"map.{ending.upper()}")
    assert path.read_bytes().startswith(magic)
    assert path.stat().st_size > 1000


@pytest.mark.nightly
@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no Chromium")
def test_savepdf_writes_the_pdf(tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    draw(some_flow(), savepdf=str(tmp_path / "map.pdf"))
    assert (tmp_path / "map.pdf").read_bytes().startswith(b"%PDF")
