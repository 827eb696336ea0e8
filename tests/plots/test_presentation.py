"""Every figure, table and sentence shows the metric, the direction and the control of its map, with the right numbers.

One made-up map for each metric, direction and control goes through every renderer. In each, the cell at token 2 and
layer 1 does all that can be done: it restores the clean run's value, or in direction "corrupt" takes all of it away.
"""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import torch

from causal_tracer import CausalTracer, HiddenFlow, MapSpec, OtherPrompt, SamplesUntil, TraceRequest
from causal_tracer.cli.output import Outputs, describe
from causal_tracer.errors import ResultFormatError, SettingsError
from causal_tracer.metrics.descriptions import METRIC_DESCRIPTIONS, MetricDescription
from causal_tracer.metrics.metric import METRICS, Target
from causal_tracer.plots.difference import plot_difference_heatmap
from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap, shared_limits
from causal_tracer.plots.science import plot_severed_bars
from causal_tracer.request.sites import SITES, SPANS
from causal_tracer.results.analysis import COLUMNS, rows
from causal_tracer.results.comparison import compare_flows
from causal_tracer.results.labels import map_title, metric_label, metric_of
from causal_tracer.results.tables import csv_text
from tests.support.flows import some_flow
from tests.support.tiny_models import OTHER_PROMPT, OTHER_SUBJECT, PROMPT, SUBJECT, tiny_tracer

pytestmark = pytest.mark.slow

PEAK, HALF, WRONG, UNKNOWN = (2, 1), (3, 2), (0, 0), (1, 2)
NEUTRAL = "#fafafa"


@dataclass(frozen=True)
class Case:
    """A metric with plausible values: of the clean run, of the corrupted run, and beyond either."""

    metric: str
    label: str
    clean: float
    corrupted: float
    beyond_clean: float
    beyond_corrupted: float
    better: str
    described: MetricDescription | None = None


CASES = (
    Case("probability", "P(Seattle)", 0.9, 0.05, 0.95, 0.01, "higher"),
    Case("log-probability", "log P(Seattle)", -0.1, -6.0, -0.05, -30.0, "higher"),
    Case("logit", "logit of Seattle", 12.0, 2.0, 13.0, -4.0, "higher"),
    Case("logit difference", "logit of Seattle − logit of Paris", 8.0, -3.0, 9.0, -9.0, "higher"),
    Case("rank", "rank of Seattle", 2.0, 5000.0, 1.0, 262144.0, "lower"),
    Case("KL from clean", "KL from the clean run (nats)", 0.0, 4.0, 0.0, 60.0, "lower"),
    Case("Margin", "Margin", 3.0, 1.0, 4.0, -2.0, "higher"),
    Case("Loss", "Loss", 1.0, 3.0, 0.5, 9.0, "lower"),
    Case(
        "Bits", "bits for Seattle", 1.0, 7.0, 0.5, 9.0, "lower", MetricDescription("Bits", "bits for {answer}", False)
    ),
)
DIRECTIONS = ("restore", "corrupt")
CONTROLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "windows": {"window": 10},
    "severed": {"severed": "attention"},
    "placebo": {"placebo": "Paris is the capital of"},
    "elsewhere": {"elsewhere": 0},
    "second": {"second": "Rome is in", "corruption": "second prompt"},
    "zero": {"ablation": "zero"},
    "mean": {"ablation": "mean over 3 prompts", "corruption": "nothing"},
}
CONTROL_WORDS = {
    "plain": "",
    "windows": "windows of 10 layers",
    "severed": "attention severed",
    "placebo": "from another prompt",
    "elsewhere": "other tokens corrupted",
    "second": "the second prompt",
    "zero": "to zero",
    "mean": "to their mean over 3 prompts",
}
ABLATIONS = ("zero", "mean")
COMBINATIONS = [
    pytest.param(case, direction, control, id=f"{case.metric}-{direction}-{control}")
    for case in CASES
    for direction in DIRECTIONS
    for control in CONTROLS
    # The tracer refuses the others: a placebo is restored, and an ablation is made in the clean run.
    if (direction, control) not in {("corrupt", "placebo"), *(("restore", ablation) for ablation in ABLATIONS)}
]


def made_up(case: Case, direction: str, control: str = "plain", kind: str = "mlp") -> HiddenFlow:
    """A map of 4 tokens and 3 layers whose cells leave things as they are, but for four."""
    base, other = (case.corrupted, case.clean) if direction == "restore" else (case.clean, case.corrupted)
    wrong = case.beyond_corrupted if direction == "restore" else case.beyond_clean
    scores = torch.full((4, 3), base)
    scores[PEAK], scores[HALF], scores[WRONG], scores[UNKNOWN] = other, (base + other) / 2, wrong, math.nan
    spread = torch.tensor([-0.25, 0.0, 0.25])
    flow = some_flow(
        kind=kind,
        scores=scores,
        sample_scores=scores + 0.01 * spread[:, None, None],
        low_score=case.corrupted,
        low_sample_scores=case.corrupted + spread,
        high_score=case.clean,
    )
    changes = {"metric": case.metric, "direction": direction, "foil": " Paris", "metric_description": case.described}
    return replace(flow, settings=replace(flow.settings, **changes, **CONTROLS[control]))


def cell_color(heatmap: go.Heatmap, row: int, column: int) -> tuple[float, str]:
    """Return a cell's place on the colour scale, from 0 to 1, and the colour of the nearest stop."""
    at = (heatmap.z[row][column] - heatmap.zmin) / (heatmap.zmax - heatmap.zmin)
    return at, min(heatmap.colorscale, key=lambda stop: abs(stop[0] - at))[1]


# Numbers --------------------------------------------------------------------------------------------------------------


def test_every_metric_has_its_description() -> None:
    assert set(METRICS) == set(METRIC_DESCRIPTIONS) == {case.metric for case in CASES[:6]}
    for case in CASES:
        assert metric_of(made_up(case, "restore")).higher_is_better == (case.better == "higher")


@pytest.mark.parametrize(("case", "direction", "control"), COMBINATIONS)
def test_the_peak_is_the_cell_that_does_most(case: Case, direction: str, control: str) -> None:
    flow = made_up(case, direction, control)
    best, second, *_ = flow.peaks(4)
    base, other = (case.corrupted, case.clean) if direction == "restore" else (case.clean, case.corrupted)
    assert (best.position, best.layer) == PEAK
    assert (best.score, best.effect, best.share) == pytest.approx((other, other - base, 1.0))
    assert (second.position, second.layer) == HALF
    assert second.share == pytest.approx(0.5)
    assert flow.total_effect == case.clean - case.corrupted
    torch.testing.assert_close(flow.indirect_effect[PEAK], torch.tensor(other - case.corrupted))


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.metric)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_errors_are_those_of_the_effect(case: Case, direction: str) -> None:
    flow = made_up(case, direction)
    # Restored runs share their noise with the corrupted runs, whose spread is 0.25; the clean run has none.
    spread = 0.25 * 0.99 if direction == "restore" else 0.25 * 0.01
    assert float(flow.standard_error[PEAK]) == pytest.approx(spread / math.sqrt(3), rel=1e-3, abs=1e-4)
    low, high = (float(bound[PEAK]) for bound in flow.interval())
    assert (low + high) / 2 == pytest.approx(flow.peaks(1)[0].effect, abs=1e-3)
    assert flow.peak_width() == pytest.approx((high - low) / 2)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_infinite_scores_give_no_nan_peaks_and_can_be_drawn(direction: str) -> None:
    from causal_tracer.web.page.detail import cell_details, detail_html
    from causal_tracer.web.page.summary import numbers_html

    case = replace(CASES[1], corrupted=-math.inf, beyond_corrupted=-math.inf)
    flow = made_up(case, direction)
    best = flow.peaks(1)[0]
    assert (best.position, best.layer) == PEAK
    assert not math.isnan(best.effect)
    (heatmap,) = plot_hidden_flow_heatmap(flow, show=False).data
    drawn = [value for row in heatmap.z for value in row if value is not None]
    assert len(drawn) == 11
    assert all(heatmap.zmin <= value <= heatmap.zmax and math.isfinite(value) for value in drawn)
    assert heatmap.customdata[PEAK[0]][PEAK[1]][3] == ("−0.1000" if direction == "restore" else "−∞").replace(
        "−0", "-0"
    )
    shown = detail_html(cell_details(flow, *PEAK)) + numbers_html(flow) + "\n".join(describe("mlp", flow))
    assert "nan" not in shown.lower()


# Renderers ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("case", "direction", "control"), COMBINATIONS)
def test_colours_are_strongest_where_the_patch_does_most(case: Case, direction: str, control: str) -> None:
    flow = made_up(case, direction, control)
    figure = plot_hidden_flow_heatmap(flow, show=False)
    (heatmap,) = figure.data
    assert cell_color(heatmap, *PEAK)[1] == SITES["mlp"].color_scale[-1]
    at, color = cell_color(heatmap, 1, 0)
    assert color == NEUTRAL
    assert any(abs(at - stop) < 1e-6 for stop, each in heatmap.colorscale if each == NEUTRAL)
    wrong = flow.scores[WRONG] != flow.scores[1, 0]
    assert (cell_color(heatmap, *WRONG)[1] not in (NEUTRAL, *SITES["mlp"].color_scale)) == wrong
    assert heatmap.z[UNKNOWN[0]][UNKNOWN[1]] is None
    clipped = [z for row in heatmap.z for z in row if z is not None and not heatmap.zmin <= z <= heatmap.zmax]
    if clipped:
        assert any(text.startswith(("≤", "≥")) for text in heatmap.colorbar.ticktext)
    for value in (case.clean, case.corrupted):
        at = math.log10(value) if case.metric == "rank" else value
        assert heatmap.zmin - 1e-6 <= at <= heatmap.zmax + 1e-6
    assert heatmap.colorbar.title.text.replace("<br>", " ") == case.label
    assert f"{case.label} = %{{customdata[3]}}" in heatmap.hovertemplate
    assert figure.layout.title.text.replace("<br>", " ") == map_title(flow)
    done = {"zero": "ablated", "mean": "ablated"} | ({"second": "patched"} if direction == "corrupt" else {})
    plain = "corrupted" if direction == "corrupt" else "restored"
    assert done.get(control, plain) in figure.layout.xaxis.title.text


def texts_of(flow: HiddenFlow, folder: Path) -> dict[str, str]:
    """Return the words that each renderer makes of a map."""
    pytest.importorskip("gradio")
    from causal_tracer.web.page.cells import table_html
    from causal_tracer.web.page.compare import compare_runs
    from causal_tracer.web.page.downloads import html_page
    from causal_tracer.web.page.summary import details_html, numbers_html, peaks_html

    outputs = Outputs(html=folder / "map.html", quiet=True)
    outputs.write({"a map": flow})
    page = html_page(flow)
    compared = compare_runs([{flow.kind: flow}] * 2)
    return {
        "describe": "\n".join(describe("a map", flow)),
        "peaks": peaks_html(flow),
        "numbers": numbers_html(flow),
        "details": details_html(flow),
        "table": table_html(flow, "plot"),
        "page": re.sub(r"<script.*?</script>", "", page, flags=re.S),
        "comparison": compared.words + compared.details,
        "difference": str(plot_difference_heatmap(compare_flows(flow, flow), show=False).layout.title.text),
    }


@pytest.mark.parametrize(("case", "direction", "control"), COMBINATIONS)
def test_words_say_what_the_map_is_of(case: Case, direction: str, control: str, tmp_path: Path) -> None:
    flow = made_up(case, direction, control)
    texts = {name: html.unescape(text).replace("<br>", " ") for name, text in texts_of(flow, tmp_path).items()}
    for name, text in texts.items():
        assert map_title(flow) in text, name
        doing = {"zero": "Setting", "mean": "Setting"} | ({"second": "Putting"} if direction == "corrupt" else {})
        assert doing.get(control, "Corrupting" if direction == "corrupt" else "estoring") in text, name
        assert CONTROL_WORDS[control] in text, name
    for name in ("describe", "peaks", "numbers", "details", "table", "page", "comparison"):
        assert metric_label(flow) in texts[name], name
        if "P(" not in case.label:
            assert "P(" not in texts[name], name
    for name in ("describe", "peaks", "numbers", "page"):
        assert "100% of the total effect" in texts[name], name
        assert "nowhere" not in texts[name], name
    drawn = (tmp_path / "map.html").read_text(encoding="utf-8")
    assert case.label in drawn


@pytest.mark.parametrize(("case", "direction", "control"), COMBINATIONS)
def test_a_cell_in_detail_is_drawn_within_its_axis(case: Case, direction: str, control: str) -> None:
    pytest.importorskip("gradio")
    from causal_tracer.web.page.detail import cell_details, detail_html

    cell = cell_details(made_up(case, direction, control), *PEAK)
    shown = detail_html(cell)
    assert cell.share == pytest.approx(1.0)
    assert case.label in shown
    assert ("patched clean runs" if direction == "corrupt" else "restored runs") in shown
    places = [float(part.split('"')[0]) for part in shown.split('cx="')[1:]]
    assert len(places) == 6
    assert all(10 <= place <= 590 for place in places)
    samples, low_samples = places[3:], places[:3]
    # The dots of the two runs stand apart, the better ones where the metric has them.
    assert (min(samples) > max(low_samples)) == (direction == "restore" and case.better == "higher")


@pytest.mark.parametrize(("case", "direction", "control"), COMBINATIONS)
def test_tables_have_the_metric_the_direction_and_the_control(case: Case, direction: str, control: str) -> None:
    pytest.importorskip("gradio")
    table = list(csv.DictReader(io.StringIO(csv_text(COLUMNS, rows(made_up(case, direction, control))))))
    row = table[PEAK[0] * 3 + PEAK[1]]
    assert list(row) == list(COLUMNS)
    assert (row["metric"], row["direction"]) == (case.metric, direction)
    named = {
        "severed": "attention severed",
        "placebo": "placebo",
        "elsewhere": "other tokens corrupted",
        "second": "second prompt",
        "zero": "set to zero",
        "mean": "set to their mean over 3 prompts",
    }
    assert row["control"] == named.get(control, "")
    assert float(row["share"]) == pytest.approx(1.0)
    assert float(row["effect"]) == pytest.approx(
        float(row["score"]) - (case.corrupted, case.clean)[direction == "corrupt"]
    )
    assert table[UNKNOWN[0] * 3 + UNKNOWN[1]]["share"] == ""


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.metric)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_maps_of_one_result_share_a_scale_and_a_legend(case: Case, direction: str) -> None:
    pytest.importorskip("gradio")
    from causal_tracer.web.page.views import numbers
    from causal_tracer.web.service.figures import SHARED_SCALE, app_figures

    flows: Any = {kind: made_up(case, direction, kind=kind) for kind in ("hidden", "mlp", "attention")}
    figures = app_figures(flows)
    assert len({(figure.data[0].zmin, figure.data[0].zmax) for figure in figures}) == 1
    assert all(cell_color(figure.data[0], *PEAK)[1] == SHARED_SCALE[-1] for figure in figures)
    assert case.label in numbers(flows)


@pytest.mark.parametrize("case", CASES[:6], ids=lambda case: case.metric)
def test_warnings_are_true_of_the_metric(case: Case) -> None:
    pytest.importorskip("gradio")
    from causal_tracer.web.service.inspection import map_warnings

    fine = replace(case, clean=1.0) if case.metric == "rank" else case
    assert map_warnings(made_up(fine, "restore")) == ()
    assert map_warnings(made_up(fine, "corrupt")) == ()
    (small,) = map_warnings(made_up(replace(fine, corrupted=fine.clean), "restore"))
    assert "too small" in small
    assert case.label in small
    doubtful = {"probability": 0.05, "log-probability": -4.0, "logit difference": -1.0, "rank": 3.0}.get(case.metric)
    if doubtful is not None:
        unsure = map_warnings(made_up(replace(fine, clean=doubtful), "restore"))[0]
        assert (
            f"unsure of this answer: {case.label} = {metric_of(made_up(case, 'restore')).format_value(doubtful)}"
            in unsure
        )


# Several maps ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES[:6], ids=lambda case: case.metric)
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_difference_is_blue_where_the_second_map_does_more(case: Case, direction: str) -> None:
    second = made_up(case, direction)
    none = torch.full_like(second.scores, case.corrupted if direction == "restore" else case.clean)
    first = replace(second, scores=none)
    figure = plot_difference_heatmap(compare_flows(first, second), show=False)
    (heatmap,) = figure.data
    assert math.isfinite(heatmap.zmax)
    rising = heatmap.z[PEAK[0]][PEAK[1]] > 0
    assert rising != bool(heatmap.reversescale)
    assert heatmap.colorbar.title.text.replace("<br>", " ") == f"B − A, {case.label}"
    assert ("change from the clean run" if direction == "corrupt" else "indirect effect") in figure.layout.title.text


def test_maps_of_several_metrics_or_directions_are_not_set_against_each_other() -> None:
    probability, rank, corrupted = (
        made_up(CASES[0], "restore"),
        made_up(CASES[4], "restore"),
        made_up(CASES[0], "corrupt"),
    )
    for other in (rank, corrupted):
        with pytest.raises(SettingsError, match="differ in metric or direction: probability, direction 'restore', and"):
            compare_flows(probability, other)
        with pytest.raises(SettingsError, match="one metric and one direction"):
            shared_limits([probability, other])
        severed = replace(other, kind="hidden", settings=replace(other.settings, severed="mlp"))
        with pytest.raises(SettingsError, match="one metric and one direction"):
            plot_severed_bars({"a": replace(probability, kind="hidden"), "b": severed}, show=False)


def test_an_outlier_is_reported_where_the_scale_ends() -> None:
    flow = made_up(replace(CASES[5], beyond_corrupted=1000.0), "restore")
    (heatmap,) = plot_hidden_flow_heatmap(flow, show=False).data
    assert heatmap.zmax == pytest.approx(16.0)
    assert heatmap.colorbar.ticktext[-1] == "≥ 16.000"
    assert heatmap.customdata[0][0][3] == "1000.0000"


def test_the_scale_of_a_rank_is_labelled_in_ranks() -> None:
    (heatmap,) = plot_hidden_flow_heatmap(made_up(CASES[4], "restore"), show=False).data
    assert list(heatmap.colorbar.ticktext) == ["2", "10", "100", "1000", "10000", "100000", "262144"]
    assert list(heatmap.colorbar.tickvals)[1] == 1


def test_limits_that_cut_scores_off_are_reported() -> None:
    (heatmap,) = plot_hidden_flow_heatmap(made_up(CASES[0], "restore"), show=False, limits=(0.1, 0.5)).data
    assert (heatmap.zmin, heatmap.zmax) == (0.1, 0.5)
    assert [heatmap.colorbar.ticktext[0], heatmap.colorbar.ticktext[-1]] == ["≤ 0.100", "≥ 0.500"]


@pytest.mark.parametrize("limits", [(0.5, 0.5), (True, True), (0.1,), (0.1, 0.2, 0.3), (-1e308, 1e308)])
def test_limits_are_two_different_numbers(limits: tuple[float, ...]) -> None:
    with pytest.raises(SettingsError, match="limits must be two different numbers \\(given: "):
        plot_hidden_flow_heatmap(made_up(CASES[0], "restore"), show=False, limits=limits)


def test_limits_of_ranks_are_above_zero() -> None:
    rank = made_up(CASES[4], "restore")
    with pytest.raises(SettingsError, match="above 0, since the scale is logarithmic"):
        plot_hidden_flow_heatmap(rank, show=False, limits=(0, 10))
    (heatmap,) = plot_hidden_flow_heatmap(rank, show=False, limits=(1, 10)).data
    assert (heatmap.zmin, heatmap.zmax) == (0, 1)


@pytest.mark.parametrize("limits", [np.array([0.1, 0.5]), torch.tensor([0.5, 0.1], dtype=torch.float64)])
def test_limits_may_be_an_array(limits: Any) -> None:
    (heatmap,) = plot_hidden_flow_heatmap(made_up(CASES[0], "restore"), show=False, limits=limits).data
    assert (heatmap.zmin, heatmap.zmax) == (0.1, 0.5)


def test_where_corrupting_improves_the_metric_no_share_is_given() -> None:
    flow = made_up(replace(CASES[0], clean=0.05, corrupted=0.9, beyond_corrupted=0.95), "restore")
    assert all(math.isnan(peak.share) for peak in flow.peaks())
    (heatmap,) = plot_hidden_flow_heatmap(flow, show=False).data
    assert cell_color(heatmap, 1, 0)[1] == NEUTRAL


# Descriptions ---------------------------------------------------------------------------------------------------------


SURPRISE = MetricDescription(
    "Surprise", "bits for {answer}", higher_is_better=False, lowest=0, decimals=2, restored="the short code"
)


@dataclass(frozen=True)
class Surprise:
    """A metric of a user's, in bits."""

    answer_id: int
    description: MetricDescription = SURPRISE

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return -logits[:, 0].log_softmax(dim=-1)[:, self.answer_id] / math.log(2)


@dataclass(frozen=True)
class Plain:
    """A metric of a user's that says nothing of itself."""

    answer_id: int

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[:, 0, self.answer_id]


OWN: tuple[tuple[Callable[[Target], Any], str], ...] = (
    (lambda target: Surprise(target.answer_ids[0]), "bits for {answer}"),
    (lambda target: Plain(target.answer_ids[0]), "Plain"),
    (lambda target: lambda logits: logits[:, 0, target.answer_ids[0]], "<lambda>"),
)


@pytest.mark.parametrize(("metric", "label"), OWN, ids=["described", "plain", "function"])
def test_a_result_of_ones_own_metric_opens_with_its_labels(metric: Any, label: str, tmp_path: Path) -> None:
    flow = tiny_tracer("gpt2").trace(PROMPT, SUBJECT, metric=metric, samples=2)
    flow.save(tmp_path / "flow.json")
    opened = HiddenFlow.load(tmp_path / "flow.json")
    assert opened.settings == flow.settings
    assert metric_label(opened) == label.replace("{answer}", flow.answer.strip())
    assert opened.peaks() == flow.peaks()
    figure = plot_hidden_flow_heatmap(opened, show=False)
    assert figure.to_json() == plot_hidden_flow_heatmap(flow, show=False).to_json()
    assert "<lambda>" not in figure.data[0].hovertemplate


def test_a_result_from_before_there_were_descriptions_opens(tmp_path: Path) -> None:
    data = made_up(CASES[6], "restore").to_dict()
    del data["settings"]["metric_description"]
    (tmp_path / "old.json").write_text(json.dumps(data))
    flow = HiddenFlow.load(tmp_path / "old.json")
    assert metric_label(flow) == "Margin"
    assert metric_of(flow).higher_is_better is True


@pytest.mark.parametrize(
    "damaged", ["rank", [], {"name": "a"}, {"name": "a", "label": 1}, {"name": "a", "label": "b", "decimals": 10**9}]
)
def test_a_damaged_description_is_refused(damaged: Any) -> None:
    data = made_up(CASES[8], "restore").to_dict()
    data["settings"]["metric_description"] = damaged
    with pytest.raises(ResultFormatError):
        HiddenFlow.from_dict(data)


def test_what_stands_in_a_label_is_text_everywhere(tmp_path: Path) -> None:
    markup = "<img src=x onerror=alert(1)> %{x} {answer}"
    described = MetricDescription(markup, markup, True, restored=markup)
    flow = replace(made_up(CASES[8], "restore"), answer=markup)
    flow = replace(flow, settings=replace(flow.settings, metric=markup, metric_description=described))
    for name, text in texts_of(flow, tmp_path).items():
        # The figure's own title goes through Plotly's markup; the rest is HTML or plain text.
        assert "<img" not in text or name == "describe", name
    (heatmap,) = plot_hidden_flow_heatmap(flow, show=False).data
    assert "<img" not in heatmap.hovertemplate + heatmap.colorbar.title.text
    assert "%{x} " not in heatmap.hovertemplate.split("<br>")[1]


# Traced maps ----------------------------------------------------------------------------------------------------------

TRACED = {"plain": MapSpec("hidden"), "severed": MapSpec("hidden", severed="mlp"), "windows": MapSpec("mlp", 2)}


@pytest.fixture(scope="module")
def tracer() -> CausalTracer:
    return tiny_tracer("llama")


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("control", ["plain", "placebo", "elsewhere"])
def test_traced_maps_are_presented_with_what_was_traced(
    tracer: CausalTracer, metric: str, direction: Any, control: str
) -> None:
    if (direction, control) == ("corrupt", "placebo"):
        pytest.skip("The tracer refuses it: a placebo is restored.")
    request = TraceRequest(PROMPT, SUBJECT, metric=metric, direction=direction, samples=2, foil="river")
    maps = dict(TRACED)
    if control == "placebo":
        request = replace(request, placebo=OtherPrompt(OTHER_PROMPT, OTHER_SUBJECT))
        maps = {"placebo": MapSpec("mlp", 1, source="placebo")}
    elif control == "elsewhere":
        request = replace(request, elsewhere=len(tracer.trace(request).input_tokens) - 4)
    for name, flow in tracer.trace_maps(request, maps).items():
        best = flow.peaks(1)[0]
        higher = (metric not in ("rank", "KL from clean")) == (direction == "restore")
        expected = flow.scores.nan_to_num(nan=-math.inf).max() if higher else flow.scores.nan_to_num(nan=math.inf).min()
        assert best.score == float(expected)
        figure = plot_hidden_flow_heatmap(flow, show=False)
        assert cell_color(figure.data[0], best.position, best.layer)[0] == pytest.approx(float(higher), abs=1e-3) or (
            # The run at the strong end may be better than every cell.
            not math.isclose(best.share, 1) and not best.share > 1
        )
        title = figure.layout.title.text.replace("<br>", " ")
        assert title.startswith(
            {"corrupt": "Corrupting", "restore": "Placebo: r" if control == "placebo" else "Rest"}[direction]
        )
        assert ("MLP severed" in title) == (name == "severed")
        assert ("other tokens corrupted" in title) == (control == "elsewhere")
        assert metric_label(flow) in "\n".join(describe(name, flow))


@pytest.mark.parametrize("metric", METRICS)
def test_head_maps_have_the_same_labels(tracer: CausalTracer, metric: str) -> None:
    request = TraceRequest(PROMPT, SUBJECT, metric=metric, samples=2, foil="river")
    flow = tracer.trace_maps(request, {"heads": MapSpec("head")})["heads"]
    figure = plot_hidden_flow_heatmap(flow, show=False)
    assert figure.data[0].colorbar.title.text.replace("<br>", " ") == metric_label(flow)
    assert figure.layout.title.text.startswith("Restoring single attention heads at ")
    best = flow.scores.argmin() if metric in ("rank", "KL from clean") else flow.scores.argmax()
    row, column = divmod(int(best), flow.scores.shape[1])
    ends = {
        cell_color(figure.data[0], r, c)[0] for r in range(flow.scores.shape[0]) for c in range(flow.scores.shape[1])
    }
    at = cell_color(figure.data[0], row, column)[0]
    assert at == (min(ends) if metric in ("rank", "KL from clean") else max(ends))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(
    ("spec", "by", "titled"),
    [
        (MapSpec("knockout", 2), "tokens", "from 'of' to each token, windows of 2 layers"),
        (MapSpec("knockout", 1, token=(-1, -2)), "tokens", "from 'city' and 'of' to each token"),
        (MapSpec("span_knockout", 1), "spans", "from 'of' to spans"),
    ],
)
def test_knockouts_say_what_is_blocked(
    tracer: CausalTracer, metric: str, spec: MapSpec, by: str, titled: str, tmp_path: Path
) -> None:
    flow = tracer.trace(
        TraceRequest(PROMPT, SUBJECT, metric=metric, foil="river", direction="corrupt", corruption="none"), spec=spec
    )
    assert map_title(flow) == f"Blocking attention {titled}"
    for name, text in texts_of(flow, tmp_path).items():
        assert map_title(flow) in html.unescape(text).replace("<br>", " "), name
        assert not re.search("corrupting|restoring|nan%", text.lower()), name
    figure = plot_hidden_flow_heatmap(flow, show=False)
    (heatmap,) = figure.data
    assert "blocked" in figure.layout.xaxis.title.text
    assert "change from the clean run" in heatmap.hovertemplate
    names = list(SPANS) if by == "spans" else flow.input_tokens
    assert [label.strip("*").strip() for label in figure.layout.yaxis.ticktext] == [
        html.escape(name.strip()) for name in names
    ]
    assert any(label.endswith("*") for label in figure.layout.yaxis.ticktext) == (by == "tokens")
    # White is the clean run; the strongest colour is where blocking worsens the metric most.
    best = flow.peaks(1)[0]
    assert cell_color(heatmap, best.row, best.layer)[1] == SITES[spec.kind].color_scale[-1]
    clean = metric_of(flow).axis_position(flow.high_score)
    at = (clean - heatmap.zmin) / (heatmap.zmax - heatmap.zmin)
    assert min(heatmap.colorscale, key=lambda stop: abs(stop[0] - at))[1] == NEUTRAL
    table = list(csv.DictReader(io.StringIO(csv_text(COLUMNS, rows(flow)))))
    assert len(table) == flow.scores.numel()
    assert {row["span"] for row in table} == (set(SPANS) if by == "spans" else {""})
    flow.save(tmp_path / "flow.json")
    opened = HiddenFlow.load(tmp_path / "flow.json")
    assert (repr(opened), opened.settings, opened.peaks()) == (repr(flow), flow.settings, flow.peaks())
    assert opened.stored_request().map == spec
    assert compare_flows(flow, opened).aligned_by == by


@pytest.mark.parametrize("metric", ["probability", "KL from clean"])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_samples_are_taken_until_the_strongest_cell_is_sure(tracer: CausalTracer, metric: str, direction: Any) -> None:
    request = TraceRequest(PROMPT, SUBJECT, metric=metric, direction=direction, samples=3)
    width = tracer.trace(request).peak_width()
    until = SamplesUntil(width=1.0001 * width, step=3, most=6)
    flow = tracer.trace(replace(request, samples=until))
    assert flow.settings.samples == 3
    best = flow.peaks(1)[0]
    change = flow.sample_scores[:, best.position, best.layer]
    if direction == "restore":
        change = change - flow.low_sample_scores
    # Student's t with 2 degrees of freedom.
    assert flow.peak_width() == pytest.approx(4.302653 * float(change.std()) / math.sqrt(3), rel=1e-4)
