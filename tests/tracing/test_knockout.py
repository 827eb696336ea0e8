"""Attention knockout equals attention computed by hand in every sweep, and is refused if blocking fails its check."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from benchmarks import tiny_configs
from benchmarks.knockout_by_hand import Edge, knocked_out
from causal_tracer import CausalTracer, HiddenFlow, MapSpec, RunOptions, TraceRequest
from causal_tracer.errors import ModelStructureError, SettingsError
from causal_tracer.model import attention_masks, knockout
from causal_tracer.model.attention_masks import BlockedEdges
from causal_tracer.model.layers import trace_model
from causal_tracer.request.sites import SPANS
from causal_tracer.sweep import edits, engine, resumed_pass
from tests.support.hand_hooks import hand_window
from tests.support.real_models import GEMMA, SMOLLM, real_tracer
from tests.support.tiny_models import FAMILIES, PROMPT, SUBJECT, build_tiny_model, of_architecture, tiny_tracer

NAMES = [pytest.param(name, marks=of_architecture(name), id=name) for name in FAMILIES]
LONG = "In truth, Paris is the capital city of France and Rome is the capital of Italy. " + PROMPT
CLEAN_RUN: dict[str, Any] = {"direction": "corrupt", "corruption": "none"}
FULL = RunOptions(engine="full")


def request(text: str = PROMPT) -> TraceRequest:
    return TraceRequest(text, SUBJECT, **CLEAN_RUN)


def edges_of(flow: HiddenFlow, row: int) -> list[Edge]:
    """The attention that a row of a map blocks."""
    tokens, queries = range(len(flow.input_tokens)), flow.settings.at_tokens
    subject = [token for token in range(*flow.subject_range) if token not in queries]
    others = [token for token in tokens if token not in subject and token not in queries]
    keys = [row] if flow.kind == "knockout" else (subject, others, queries)[row]
    return [(query, key) for query in queries for key in keys]


def by_hand(model: Any, name: str, flow: HiddenFlow, rows: Sequence[int] | None = None) -> torch.Tensor:
    blocks, missing = FAMILIES[name].site_names("hidden"), flow.scores.isnan().all(dim=0).tolist()
    scores = torch.full(flow.scores.shape, torch.nan)
    for row in range(len(scores)) if rows is None else rows:
        for layer in range(len(blocks)):
            if not missing[layer]:
                layers = [n for n in hand_window(layer, flow.settings.window, len(blocks)) if not missing[n]]
                found = knocked_out(model, flow.input_ids.tolist(), [blocks[n] for n in layers], edges_of(flow, row))
                scores[row, layer] = float(found[flow.answer_id])
    return scores


def assert_equal(flow: HiddenFlow, expected: torch.Tensor) -> None:
    torch.testing.assert_close(flow.scores, expected, rtol=0, atol=1e-5, equal_nan=True)


SPECS = {
    "tokens": MapSpec("knockout", 1),
    "window": MapSpec("knockout", 2),
    "earlier": MapSpec("knockout", 2, token=-3),
    "several": MapSpec("knockout", 1, token=(-1, 5, -2)),
    "spans": MapSpec("span_knockout", 2),
}


INERT = {("qwen3_next", "earlier")}
"""A model whose only attention is in its last block, where earlier tokens are not read."""


@functools.cache
def traced(name: str, text: str) -> dict[str, HiddenFlow]:
    flows = tiny_tracer(name).trace_maps(request(text), SPECS, FULL)
    # If the model did not react, equal numbers would prove nothing.
    for key, flow in flows.items():
        assert float((flow.scores - flow.high_score).abs().nan_to_num().max()) >= 1e-3 or (name, key) in INERT
    return flows


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", [PROMPT, LONG], ids=["short", "long"])
def test_every_cell_is_attention_computed_by_hand_without_the_edge(name: str, text: str) -> None:
    model, n_tokens = tiny_tracer(name).model, len(traced(name, text)["tokens"].input_tokens)
    for key, flow in traced(name, text).items():
        few = None if text == PROMPT or key == "spans" else [0, 3, n_tokens - 8, n_tokens - 2, n_tokens - 1]
        expected = by_hand(model, name, flow, few)
        assert_equal(flow, expected if few is None else torch.where(expected.isnan(), flow.scores, expected))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", [PROMPT, LONG], ids=["short", "long"])
@pytest.mark.parametrize("batch_size", [5, None])
def test_the_resumed_sweep_gives_the_same_scores(name: str, text: str, batch_size: int | None) -> None:
    flows = tiny_tracer(name).trace_maps(request(text), SPECS, RunOptions(batch_size=batch_size))
    for key, flow in flows.items():
        assert flow.settings.engine.startswith("resumed")
        assert flow.audit is not None
        assert not flow.audit.recomputed
        assert_equal(flow, traced(name, text)[key].scores)


def test_a_knockout_departs_from_the_clean_run_and_cannot_reach_beyond_its_query() -> None:
    flow = traced("gpt2", PROMPT)["earlier"]
    (query,) = flow.settings.at_tokens
    changes = (flow.scores - flow.high_score).abs()
    assert query == len(flow.input_tokens) - 3
    # Keys after the query cannot be attended to. In the last layer only the tokens read matter.
    assert float(changes[query + 1 :].max()) < 1e-6
    assert float(tiny_tracer("gpt2").trace(request(), spec=MapSpec("knockout", 1, token=-3)).scores[:, -1].std()) < 1e-6
    assert flow.low_score == pytest.approx(flow.high_score)


def test_a_batch_of_prompts_gives_the_scores_of_each_alone() -> None:
    requests = [request(), request(LONG), request()]
    for one, alone in zip(tiny_tracer("gpt2").trace_many(requests, SPECS["window"]), requests, strict=True):
        torch.testing.assert_close(one.scores, tiny_tracer("gpt2").trace(alone, spec=SPECS["window"]).scores)


def test_a_sweep_of_corruptions_and_knockouts_is_that_of_each_alone() -> None:
    tracer = tiny_tracer("gemma3_text")
    asked = TraceRequest(PROMPT, SUBJECT, direction="corrupt", samples=2)
    specs = {"hidden": MapSpec("hidden"), "knockout": MapSpec("knockout", 2)}
    together = tracer.trace_maps(asked, specs)
    for name, spec in specs.items():
        torch.testing.assert_close(together[name].scores, tracer.trace(asked, spec=spec).scores, rtol=0, atol=1e-6)
    assert_equal(together["knockout"], traced("gemma3_text", PROMPT)["window"].scores)


def test_layers_without_attention_are_left_out_and_noted() -> None:
    flow = traced("qwen3_next", PROMPT)["tokens"]
    missing = flow.scores.isnan().all(dim=0)
    assert 0 < int(missing.sum()) < len(missing)
    assert any("Layers without attention knockout" in note for note in flow.notes)


def test_a_model_without_attention_is_refused_with_the_reason() -> None:
    traced_model = trace_model(tiny_configs.build("mamba", 0))
    with pytest.raises(ModelStructureError, match=r"MambaForCausalLM cannot be blocked.* MambaMixer: "):
        traced_model.missing_layers("knockout")


@pytest.mark.parametrize(
    ("spec", "changes", "match"),
    [
        ({}, {"direction": "restore"}, "direction='corrupt'"),
        ({"token": 0}, {}, "attends to itself only"),
        ({"token": 99}, {}, "out of range"),
        ({"token": ()}, {}, "one or more"),
        ({"severed": "mlp"}, {}, "cannot be severed"),
        ({"source": "placebo"}, {}, "Leave it out"),
    ],
)
def test_what_cannot_be_asked_for(spec: dict[str, Any], changes: dict[str, Any], match: str) -> None:
    asked = TraceRequest(PROMPT, SUBJECT, **{**CLEAN_RUN, **changes})
    with pytest.raises(SettingsError, match=match):
        tiny_tracer("gpt2").trace(asked, spec=MapSpec("knockout", **spec))


def test_several_tokens_are_for_knockouts_only() -> None:
    with pytest.raises(SettingsError, match="knockouts also take a list"):
        MapSpec("head", token=(1, 2))
    with pytest.raises(SettingsError, match="positions"):
        MapSpec("span_knockout", positions=(1,))
    assert MapSpec("knockout").window == MapSpec("span_knockout").window == 9


# Mutants --------------------------------------------------------------------------------------------------------------


def blocks_nothing(edges: BlockedEdges, tokens: range, module: Any) -> Any:
    none = edges.rows[:0]
    return attention_masks.blocking_edit(BlockedEdges(none, none, none), tokens, module)


def blocks_the_key_before(edges: BlockedEdges, tokens: range, module: Any) -> Any:
    shifted = BlockedEdges(edges.rows, edges.queries, (edges.keys - 1).clamp(min=0))
    return attention_masks.blocking_edit(shifted, tokens, module)


def blocks_in_the_first_row_only(edges: BlockedEdges, tokens: range, module: Any) -> Any:
    return attention_masks.blocking_edit(BlockedEdges(edges.rows * 0, edges.queries, edges.keys), tokens, module)


def blocks_a_little(edges: BlockedEdges, tokens: range, module: Any) -> Any:
    right = attention_masks.blocking_edit(edges, tokens, module)

    def soft(mask: Any, stream: Any) -> Any:
        changed = right(None, stream)
        blocked = changed < right_unblocked(None, stream)
        return torch.where(blocked, -1.0, changed)

    none = edges.rows[:0]
    right_unblocked = attention_masks.blocking_edit(BlockedEdges(none, none, none), tokens, module)
    return soft


def loses_the_window(edges: BlockedEdges, tokens: range, module: Any) -> Any:
    right = attention_masks.blocking_edit(edges, tokens, module)
    return lambda _mask, stream: right(None, stream)


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> CausalTracer:
    """A tracer whose model has not been checked."""
    monkeypatch.setattr(engine, "_engine_checks", {})
    monkeypatch.setattr(engine, "_knockout_faults", {})
    return CausalTracer(build_tiny_model("gemma3_text"), tiny_tracer("gemma3_text").tokenizer)


MUTANTS = [blocks_nothing, blocks_the_key_before, blocks_in_the_first_row_only, blocks_a_little, loses_the_window]


@pytest.mark.parametrize("mutant", MUTANTS)
@pytest.mark.parametrize("options", [RunOptions(), FULL])
def test_wrong_masks_are_refused(
    mutant: Any, options: RunOptions, fresh: CausalTracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knockout, "blocking_edit", mutant)
    with pytest.raises(ModelStructureError, match=r"cannot be blocked. Gemma3Attention: .*\w"):
        fresh.trace_maps(request(), SPECS, options)


def test_a_model_that_changed_is_checked_again(fresh: CausalTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = traced("gemma3_text", PROMPT)["window"].scores
    assert_equal(fresh.trace(request(), spec=SPECS["window"]), expected)
    monkeypatch.setattr(knockout, "blocking_edit", blocks_nothing)
    assert_equal(fresh.trace(request(), spec=SPECS["window"]), expected)
    fresh.model.model.layers[1].self_attn.register_forward_pre_hook(lambda *_: None)
    with pytest.raises(ModelStructureError, match=r"failed its check .*: blocked tokens still reach its output"):
        fresh.trace(request(), spec=SPECS["window"])
    # Maps of other kinds do not need the check.
    assert fresh.trace(PROMPT, SUBJECT, samples=1).settings.engine == "resumed"


def test_a_resumed_sweep_without_its_masks_is_not_used(fresh: CausalTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumed_pass, "mask_edits", lambda *_: {})
    flow = fresh.trace(request(), spec=SPECS["window"])
    assert flow.settings.engine == "full"
    assert any("differs from the full sweep" in note for note in flow.notes)
    assert_equal(flow, traced("gemma3_text", PROMPT)["window"].scores)
    assert fresh.trace(PROMPT, SUBJECT, samples=1).settings.engine == "resumed"


def test_keys_counted_from_the_first_cached_token_are_not_used(
    fresh: CausalTracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def shifted(work: Any, interventions: Any, first_token: int) -> Any:
        moved = {
            layer: BlockedEdges(found.rows, found.queries, (found.keys - 1).clamp(min=0))
            for layer, found in interventions.blocked.items()
        }
        return edits.mask_edits(work, edits.BatchInterventions(interventions.restored, moved), first_token)

    monkeypatch.setattr(resumed_pass, "mask_edits", shifted)
    flow = fresh.trace(request(), spec=SPECS["window"])
    assert flow.settings.engine == "full"


def test_the_audit_finds_a_sweep_that_loses_its_masks(fresh: CausalTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    fresh.trace(request(), spec=SPECS["window"])
    monkeypatch.setattr(resumed_pass, "mask_edits", lambda *_: {})
    flow = fresh.trace(request(), spec=SPECS["window"])
    assert flow.audit is not None
    assert flow.audit.recomputed
    assert_equal(flow, traced("gemma3_text", PROMPT)["window"].scores)


# Real models ----------------------------------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.parametrize("name", [GEMMA, SMOLLM])
def test_real_models_give_the_same_cells_as_by_hand(name: str) -> None:
    tracer = real_tracer(name)
    blocks = tracer.context.traced.site_names["hidden"]
    asked = TraceRequest("The Space Needle is located in the city of", "The Space Needle", **CLEAN_RUN)
    flows = tracer.trace_maps(asked, {"tokens": MapSpec("knockout"), "spans": MapSpec("span_knockout")})
    last = len(blocks) - 1
    for flow in flows.values():
        assert flow.settings.engine == "resumed"
        assert float((flow.scores - flow.high_score).abs().max()) > 0.01
        for row, layer in ((0, 2), (2, last // 2), (1, last - 3), (len(flow.scores) - 1, last)):
            layers = [blocks[n][0] for n in hand_window(layer, 9, len(blocks))]
            found = knocked_out(tracer.model, flow.input_ids.tolist(), layers, edges_of(flow, row))
            assert float(flow.scores[row, layer]) == pytest.approx(float(found[flow.answer_id]), rel=1e-3, abs=2e-5)
    assert len(flows["spans"].scores) == len(SPANS)
