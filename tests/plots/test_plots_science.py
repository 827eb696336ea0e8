"""Figures of heads and severed paths: every number drawn is the result's."""

from __future__ import annotations

import pytest

from causal_tracer import MapSpec, TraceRequest, plot_hidden_flow_heatmap
from causal_tracer.errors import SettingsError
from causal_tracer.plots.science import plot_severed_bars
from tests.support.tiny_models import OTHER_PROMPT, OTHER_SUBJECT, PROMPT, SUBJECT, tiny_tracer

REQUEST = TraceRequest(PROMPT, SUBJECT, samples=2)
MAPS = {"plain": MapSpec(), "a": MapSpec(severed="mlp"), "b": MapSpec(severed="attention")}


def test_the_head_map_draws_heads_by_layers() -> None:
    flow = tiny_tracer("qwen3_next").trace_maps(REQUEST, {"heads": MapSpec("head")})["heads"]
    figure = plot_hidden_flow_heatmap(flow, show=False)
    drawn = figure.data[0].z
    assert len(drawn) == flow.scores.shape[0]
    for head, row in enumerate(drawn):
        for layer, value in enumerate(row):
            expected = float(flow.scores[head, layer])
            assert value is None if expected != expected else value == pytest.approx(expected)
    assert any(value is None for row in drawn for value in row), "layers without heads are gaps"
    assert list(figure.layout.yaxis.ticktext) == [f"head {head}" for head in range(flow.scores.shape[0])]


def test_three_bars_a_layer_stand_for_plain_and_severed_effects() -> None:
    flows = tiny_tracer("llama").trace_maps(REQUEST, MAPS)
    figure = plot_severed_bars(flows, show=False)
    assert [bar.name for bar in figure.data] == [
        "single state restored",
        "with MLP severed",
        "with attention severed",
    ]
    last = flows["plain"].subject_range[1] - 1
    for bar, name in zip(figure.data, MAPS, strict=True):
        assert list(bar.y) == pytest.approx(flows[name].indirect_effect[last].tolist())


def test_severed_bars_of_several_prompts_or_without_a_plain_map_are_refused() -> None:
    tracer = tiny_tracer("llama")
    flows = tracer.trace_maps(REQUEST, MAPS)
    with pytest.raises(SettingsError, match="plain map"):
        plot_severed_bars({"a": flows["a"]}, show=False)
    other = tracer.trace_maps(TraceRequest(OTHER_PROMPT, OTHER_SUBJECT, samples=2), {"b": MAPS["b"]})
    with pytest.raises(SettingsError, match="same prompt"):
        plot_severed_bars({"plain": flows["plain"], **other}, show=False)
