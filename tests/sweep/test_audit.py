"""The audit of each map finds errors on the traced prompt that the first-use check cannot find."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch

from causal_tracer import CausalTracer, HiddenFlow, MapSpec, RunOptions, SamplesUntil, TraceRequest
from causal_tracer.sweep import engine
from causal_tracer.sweep.check import EngineCheck
from causal_tracer.sweep.plan import Sweep, SweepChunk
from causal_tracer.sweep.resume_mode import RESUME_MODES
from tests.support.tiny_models import PROMPT, SUBJECT, tiny_tracer

REQUEST = TraceRequest(PROMPT, SUBJECT, samples=3)
MANY = 150
"""Number of samples for which a tiny model's map has enough work for eight audited cells."""


@pytest.fixture
def tracer() -> CausalTracer:
    """Return a tracer that passed its first-use check, so that only the audit can find what is broken later."""
    tracer = tiny_tracer("llama")
    tracer.trace(REQUEST)
    return tracer


def break_the_resumed_sweep(monkeypatch: pytest.MonkeyPatch, wrong: Callable[[SweepChunk, Any], torch.Tensor]) -> None:
    """Change the scores of the sweep after the first-use check."""
    real = engine.resumed_sweep

    def broken(sweep: Sweep, *rest: Any) -> Iterator[SweepChunk]:
        for chunk in real(sweep, *rest):
            yield replace(chunk, scores=wrong(chunk, sweep.plan))

    monkeypatch.setattr(engine, "resumed_sweep", broken)


def shifted(chunk: SweepChunk, plan: Any) -> torch.Tensor:
    return chunk.scores + 0.05


def test_a_map_holds_its_audit(tracer: CausalTracer) -> None:
    flow = tracer.trace(REQUEST)
    audit = flow.audit
    assert audit is not None
    assert not audit.recomputed
    assert 0 <= audit.largest_difference <= 1e-5 <= audit.allowed
    tokens, layers = flow.scores.shape
    assert all(token < tokens and layer < layers for token, layer in audit.cells)
    assert flow.notes == ()


def test_the_audited_cells_follow_from_the_seed_and_cover_tokens_and_layers(tracer: CausalTracer) -> None:
    many = replace(REQUEST, samples=MANY)
    audit = tracer.trace(many).audit
    assert audit == tracer.trace(many).audit
    assert audit is not None
    assert len({token for token, _ in audit.cells}) == len(audit.cells) == 6
    assert {layer for _, layer in audit.cells} == {0, 1, 2}
    other = tracer.trace(replace(many, seed=2)).audit
    assert other is not None
    assert other.cells != audit.cells


def test_the_audit_grows_with_the_work_of_the_map(tracer: CausalTracer) -> None:
    few = tracer.trace(replace(REQUEST, samples=1)).audit
    assert few is not None
    assert len(few.cells) == 1


@pytest.mark.parametrize("metric", ["probability", "log-probability", "logit", "rank", "KL from clean"])
@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_a_right_sweep_passes_its_audit_with_every_metric(tracer: CausalTracer, metric: str, direction: Any) -> None:
    flow = tracer.trace(replace(REQUEST, metric=metric, direction=direction, samples=20))
    assert flow.audit is not None
    assert not flow.audit.recomputed
    assert flow.settings.engine == "resumed"


def test_a_wrong_sweep_is_found_and_the_full_one_used(tracer: CausalTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tracer.trace(REQUEST, engine="full")
    break_the_resumed_sweep(monkeypatch, shifted)
    flow = tracer.trace(REQUEST)
    assert flow.audit is not None
    assert flow.audit.recomputed
    assert flow.audit.largest_difference == pytest.approx(0.05, abs=1e-5)
    assert flow.settings.engine == "full"
    assert any("Recomputed by the full sweep" in note for note in flow.notes)
    torch.testing.assert_close(flow.sample_scores, expected.sample_scores, rtol=0, atol=0)


def test_a_single_wrong_token_is_found(tracer: CausalTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tracer.trace(replace(REQUEST, samples=MANY), engine="full")
    audit = tracer.trace(replace(REQUEST, samples=MANY)).audit
    assert audit is not None
    token = audit.cells[3][0]

    def wrong(chunk: SweepChunk, plan: Any) -> torch.Tensor:
        there = torch.tensor([plan.cells[cell].position == token for cell in chunk.cells.tolist()])
        return torch.where(there, chunk.scores + 0.05, chunk.scores)

    break_the_resumed_sweep(monkeypatch, wrong)
    flow = tracer.trace(replace(REQUEST, samples=MANY))
    torch.testing.assert_close(flow.sample_scores, expected.sample_scores, rtol=0, atol=0)


def test_nan_scores_do_not_pass(tracer: CausalTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    break_the_resumed_sweep(monkeypatch, lambda chunk, _plan: chunk.scores * torch.nan)
    flow = tracer.trace(REQUEST)
    assert flow.audit is not None
    assert flow.audit.recomputed
    assert not flow.sample_scores.isnan().any()
    again = HiddenFlow.from_dict(json.loads(json.dumps(flow.to_dict(), allow_nan=False))).audit
    assert again is not None
    assert math.isnan(again.largest_difference)


def test_only_the_map_that_fails_is_computed_again(tracer: CausalTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(chunk: SweepChunk, plan: Any) -> torch.Tensor:
        there = torch.tensor([plan.cells[cell].interventions[0].site == "mlp" for cell in chunk.cells.tolist()])
        return torch.where(there, chunk.scores + 0.05, chunk.scores)

    break_the_resumed_sweep(monkeypatch, wrong)
    flows = tracer.trace_maps(REQUEST, {"hidden": MapSpec("hidden"), "mlp": MapSpec("mlp", 2)})
    assert (flows["hidden"].settings.engine, flows["mlp"].settings.engine) == ("resumed", "full")
    full = tracer.trace(REQUEST, kind="mlp", window=2, engine="full")
    torch.testing.assert_close(flows["mlp"].sample_scores, full.sample_scores, rtol=0, atol=1e-6)


def test_a_stream_is_not_done_before_the_audit(tracer: CausalTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = tracer.trace(REQUEST, engine="full")
    break_the_resumed_sweep(monkeypatch, shifted)
    updates = list(tracer.stream(REQUEST, {"map": MapSpec()}))
    done = [update for update in updates if update.done == update.total]
    # The sweep's last cells come after its audit, and then the map is recomputed.
    assert len(done) == 2
    assert done[-1] is updates[-1]
    torch.testing.assert_close(updates[-1].flows["map"].sample_scores, expected.sample_scores, rtol=0, atol=0)


def test_top_tokens_of_a_recomputed_map_are_those_of_the_full_sweep(
    tracer: CausalTracer, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = replace(REQUEST, top_tokens=3)
    expected = tracer.trace(request, engine="full").top_tokens
    break_the_resumed_sweep(monkeypatch, shifted)
    found = tracer.trace(request).top_tokens
    assert expected is not None
    assert found is not None
    assert found.restored.keys() == expected.restored.keys()
    for cell, tokens in expected.restored.items():
        assert [token.token_id for token in found.restored[cell]] == [token.token_id for token in tokens]


def test_samples_until_are_audited_as_they_are_added(tracer: CausalTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    request = replace(REQUEST, samples=SamplesUntil(1e-9, step=2, most=4))
    assert tracer.trace(request).audit is not None
    break_the_resumed_sweep(monkeypatch, shifted)
    flow = tracer.trace(request)
    expected = tracer.trace(request, engine="full")
    assert flow.audit is not None
    assert flow.audit.recomputed
    torch.testing.assert_close(flow.sample_scores, expected.sample_scores, rtol=0, atol=0)


def test_heads_are_audited(tracer: CausalTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = {"heads": MapSpec("head")}
    expected = tracer.trace_maps(REQUEST, heads, RunOptions(engine="full"))["heads"]
    assert expected.audit is None
    right = tracer.trace_maps(REQUEST, heads)["heads"]
    assert right.audit is not None
    assert not right.audit.recomputed
    break_the_resumed_sweep(monkeypatch, shifted)
    found = tracer.trace_maps(REQUEST, heads)["heads"]
    assert found.audit is not None
    assert found.audit.recomputed
    torch.testing.assert_close(found.sample_scores, expected.sample_scores, rtol=0, atol=0)


@pytest.mark.parametrize("options", [RunOptions(audit=False), RunOptions(engine="full")])
def test_no_audit_where_none_is_asked_for_or_needed(tracer: CausalTracer, options: RunOptions) -> None:
    assert tracer.trace(REQUEST, options=options).audit is None


def test_the_audit_is_saved_with_the_result(tracer: CausalTracer, tmp_path: Any) -> None:
    flow = tracer.trace(REQUEST)
    flow.save(tmp_path / "flow.json")
    assert HiddenFlow.load(tmp_path / "flow.json").audit == flow.audit
    older = json.loads((tmp_path / "flow.json").read_text())
    del older["audit"]
    assert HiddenFlow.from_dict(older).audit is None


def test_the_full_sweep_needs_no_audit(tracer: CausalTracer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causal_tracer.tracing.loop.choose_engine", lambda *_, **__: EngineCheck(None, ("It failed.",)))
    flow = tracer.trace(REQUEST)
    assert flow.audit is None
    assert RESUME_MODES[0].name not in flow.notes[0]
