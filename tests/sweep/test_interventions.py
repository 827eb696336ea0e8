"""Every kind of intervention in every sweep: severed paths, placebos, directions, heads, reads, long answers.

Here the resumed sweep is held against the full one; `test_science_oracles.py` holds both against hooks by hand.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from causal_tracer import CausalTracer, HiddenFlow, MapSpec, OtherPrompt, RunOptions, SamplesUntil, TraceRequest
from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.errors import ModelStructureError, PromptError, SettingsError
from causal_tracer.experiment.sources import BASE
from causal_tracer.metrics.metric import METRICS
from causal_tracer.sweep.plan import Cell, Intervention, reach
from causal_tracer.tracing import loop
from tests.support.tiny_models import (
    EVERY_ARCHITECTURE,
    OTHER_PROMPT,
    OTHER_SUBJECT,
    PROMPT,
    SUBJECT,
    build_tiny_model,
    tiny_tokenizer,
    tiny_tracer,
)

TOLERANCE = 1e-5
REQUEST = TraceRequest(PROMPT, SUBJECT, samples=2, placebo=OtherPrompt(OTHER_PROMPT, OTHER_SUBJECT))
MAPS = {
    "hidden": MapSpec("hidden"),
    "hidden, severed mlp": MapSpec("hidden", severed="mlp"),
    "hidden, severed attention": MapSpec("hidden", severed="attention"),
    "mlp, placebo": MapSpec("mlp", 2, source="placebo"),
    "attention, severed mlp": MapSpec("attention", 3, severed="mlp"),
}


def close(found: Tensor, expected: Tensor, tolerance: float = TOLERANCE) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance, equal_nan=True)


def same_in_both_sweeps(
    tracer: CausalTracer, request: TraceRequest, specs: dict[str, MapSpec]
) -> dict[str, HiddenFlow]:
    fast = tracer.trace_maps(request, specs)
    full = tracer.trace_maps(request, specs, RunOptions(engine="full"))
    for name, flow in fast.items():
        scale = max(1.0, float(full[name].sample_scores.nan_to_num().abs().max()))
        close(flow.sample_scores / scale, full[name].sample_scores / scale)
        assert not flow.scores.isnan().all()
    return fast


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_severed_and_placebo_maps_are_the_same_in_both_sweeps(name: str) -> None:
    tracer = tiny_tracer(name)
    specs = {key: spec for key, spec in MAPS.items() if not tracer.context.traced.missing_layers(spec.kind)}
    flows = same_in_both_sweeps(tracer, REQUEST, specs)
    plain = flows["hidden"].indirect_effect
    for key in ("hidden, severed mlp", "hidden, severed attention"):
        assert float((flows[key].indirect_effect - plain).abs().max()) > 1e-4, "severing changes nothing"


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_corrupted_activations_in_the_clean_run_are_the_same_in_both_sweeps(name: str) -> None:
    tracer = tiny_tracer(name)
    request = replace(REQUEST, direction="corrupt")
    flow = same_in_both_sweeps(tracer, request, {"map": MapSpec("hidden"), "mlp": MapSpec("mlp", 2)})["map"]
    close(flow.scores[-1, -1], torch.tensor(flow.low_score))
    close(flow.scores[0], torch.full_like(flow.scores[0], flow.high_score))
    close(flow.scores[:-1, -1], torch.full_like(flow.scores[:-1, -1], flow.high_score))
    restored = tracer.trace_maps(REQUEST, {"map": MapSpec("hidden")})["map"]
    assert (flow.low_score, flow.high_score) == pytest.approx((restored.low_score, restored.high_score), abs=1e-6)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_heads_are_the_same_in_both_sweeps_and_add_nothing_where_they_are_not_restored(name: str) -> None:
    tracer = tiny_tracer(name)
    heads = tracer.context.traced.head_sites
    fast = same_in_both_sweeps(tracer, REQUEST, {"heads": MapSpec("head")})["heads"]
    assert float(fast.indirect_effect.nan_to_num().abs().max()) > 1e-5
    for layer in range(tracer.count_layers()):
        assert fast.scores[:, layer].isnan().all() == (layer not in heads)


def test_heads_beside_other_maps_are_those_of_the_head_map_alone() -> None:
    tracer = tiny_tracer("llama")
    request = replace(REQUEST, top_tokens=2)
    specs = {**MAPS, "heads": MapSpec("head", 2), "earlier": MapSpec("head", token=5), "mlp": MapSpec("mlp")}
    flows = same_in_both_sweeps(tracer, request, specs)
    for name, token in (("heads", -1), ("earlier", 5)):
        flow = flows[name]
        alone = tracer.trace_maps(request, {name: specs[name]})[name]
        close(flow.sample_scores, alone.sample_scores)
        assert flow.settings.token == range(len(flow.input_tokens))[token]
        assert flow.top_tokens is not None
        heads, layers = flow.scores.shape
        assert set(flow.top_tokens.restored) == {(head, layer) for head in range(heads) for layer in range(layers)}
        assert [len(taken) for taken in flow.layer_outputs.values()] == [len(flow.input_tokens)] * layers
    close(flows["mlp"].sample_scores, tracer.trace_maps(request, {"mlp": MapSpec("mlp")})["mlp"].sample_scores)
    assert flows["mlp"].settings.token is None


def test_heads_share_clean_and_base_runs_and_passes_with_other_maps() -> None:
    tracer = CausalTracer(build_tiny_model("gpt2"), tiny_tokenizer())
    calls: list[int] = []
    specs = {"hidden": MapSpec("hidden"), "heads": MapSpec("head", token=-1)}

    def passes(*names: str) -> int:
        calls.clear()
        tracer.trace_maps(REQUEST, {name: specs[name] for name in names}, RunOptions(batch_size=512, audit=False))
        return len(calls)

    tracer.model.register_forward_hook(lambda *_: calls.append(1))
    passes(*specs)  # finds the heads and checks the engine
    assert passes(*specs) == passes("hidden") > 0


def test_a_model_whose_heads_are_not_found_says_so() -> None:
    model = build_tiny_model("gpt2")
    model.config.num_attention_heads = 5
    with pytest.raises(ModelStructureError, match=r"takes 5 heads side by side.*Trace kind='attention' instead"):
        CausalTracer(model, tiny_tokenizer()).trace_maps(REQUEST, {"hidden": MapSpec(), "heads": MapSpec("head")})


@pytest.mark.parametrize("shared", [False, True])
def test_a_request_of_kind_head_is_traced_at_the_last_token_whichever_way_it_is_asked_for(
    shared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "sharing_pays", lambda _context: shared)
    tracer = tiny_tracer("gpt2")
    request, spec = replace(REQUEST, placebo=None), MapSpec("head")
    expected = tracer.trace_maps(request, {"heads": spec})["heads"]
    close(tracer.trace(request, kind="head").sample_scores, expected.sample_scores)
    close(tracer.trace_many([request, request], spec)[1].sample_scores, expected.sample_scores)


def test_samples_of_heads_are_added_until_the_peak_is_sure() -> None:
    request = replace(REQUEST, samples=SamplesUntil(1e-9, step=2, most=4))
    flow = tiny_tracer("gpt2").trace_maps(request, {"heads": MapSpec("head")})["heads"]
    assert flow.settings.samples == 4
    fixed = tiny_tracer("gpt2").trace_maps(replace(REQUEST, samples=4), {"heads": MapSpec("head")})["heads"]
    close(flow.sample_scores, fixed.sample_scores)
    assert flow.peak_width() == pytest.approx(fixed.peak_width(), rel=1e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "mlp", "token": 3}, "does not apply to kind='mlp'"),
        ({"kind": "head", "severed": "attention"}, "cannot be severed"),
        ({"kind": "head", "positions": (2, 3)}, "choose the token with token="),
        ({"kind": "head", "subject_tokens_only": True}, "choose the token with token="),
        ({"kind": "head", "token": 1.5}, "must be an integer"),
        ({"kind": "heads"}, "'head'"),
    ],
)
def test_specs_of_heads_that_mean_nothing_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        MapSpec(**changes)


@pytest.mark.parametrize("token", [-100, 100])
def test_heads_at_a_token_that_the_prompt_does_not_have_are_refused(token: int) -> None:
    with pytest.raises(SettingsError, match=rf"token={token} is out of range: the prompt has \d+ tokens"):
        tiny_tracer("gpt2").trace_maps(REQUEST, {"heads": MapSpec("head", token=token)})


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "falcon"])
def test_all_heads_of_a_layer_together_are_its_attention(name: str) -> None:
    """Restoring all heads' clean values at a token gives the clean attention output there."""
    from causal_tracer.experiment.base_run import RowLogits
    from causal_tracer.experiment.samples import run_samples
    from causal_tracer.experiment.set_up import set_up
    from causal_tracer.sweep.full import full_sweep
    from causal_tracer.sweep.plan import Sweep, SweepPlan

    tracer = tiny_tracer(name)
    experiment = set_up(tracer.context, REQUEST, ("attention", "head"))
    traced = tracer.context.traced
    base, _ = run_samples(experiment, experiment.embeddings(0, 2), (), 8, None)
    layer = max(traced.head_sites)
    heads = range(traced.head_sites[layer][1])
    cells = (
        Cell(0, 0, tuple(Intervention((layer,), "head", (5,), head=head) for head in heads)),
        Cell(1, 0, (Intervention((layer,), "attention", (5,)),)),
    )
    seen: list[RowLogits] = []
    list(
        full_sweep(Sweep(traced, experiment.clean, base, SweepPlan(cells), experiment.metric, 8), on_logits=seen.append)
    )
    by_cell = torch.cat([computed.logits for computed in seen])
    close(by_cell[:2], by_cell[2:], 1e-4)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_answers_of_several_tokens_are_the_same_in_both_sweeps_and_equal_teacher_forcing(name: str) -> None:
    tracer = tiny_tracer(name)
    answer = " located downtown city"
    flow = same_in_both_sweeps(tracer, replace(REQUEST, answer=answer, metric="log-probability"), {"m": MapSpec()})["m"]
    assert len(flow.answer_ids) > 1
    assert flow.scores.shape[0] == len(flow.input_tokens) == len(flow.input_ids)
    prompt_ids = flow.input_ids.tolist()
    ids = torch.tensor([prompt_ids + list(flow.answer_ids)])
    with torch.no_grad():
        logs = tracer.model(ids).logits[0].float().log_softmax(dim=-1)
    joint = sum(float(logs[len(prompt_ids) - 1 + i, token]) for i, token in enumerate(flow.answer_ids))
    assert flow.high_score == pytest.approx(joint, abs=1e-4)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
@pytest.mark.parametrize("read", [7, 8])
def test_an_earlier_read_position_is_the_same_in_both_sweeps_and_sees_no_later_token(name: str, read: int) -> None:
    tracer = tiny_tracer(name)
    flow = same_in_both_sweeps(tracer, replace(REQUEST, read=read), {"m": MapSpec(), "a": MapSpec("attention", 2)})["m"]
    assert read < len(flow.input_tokens) - 1
    after = flow.scores[read + 1 :]
    close(after, torch.full_like(after, flow.low_score))
    close(flow.scores[read, -1], torch.tensor(flow.high_score))


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_is_the_same_in_both_sweeps_and_spans_from_corrupted_to_clean(metric: str) -> None:
    tracer = tiny_tracer("gemma3_text")
    # The rank of the top answer may be 1 in all runs, so another answer is used.
    request = replace(REQUEST, metric=metric, answer_id=7, foil=" city", samples=4)
    flow = same_in_both_sweeps(tracer, request, {"m": MapSpec()})["m"]
    assert flow.settings.metric == metric
    assert abs(flow.total_effect) > 1e-4
    close(flow.scores[-1, -1], torch.tensor(flow.high_score), 1e-4)
    close(flow.scores[0], torch.full_like(flow.scores[0], flow.low_score), 1e-4)


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_every_corruption_is_the_same_in_both_sweeps(corruption: str) -> None:
    tracer = tiny_tracer("gemma3_text")
    flow = same_in_both_sweeps(tracer, replace(REQUEST, corruption=corruption), {"m": MapSpec()})["m"]
    assert flow.sample_scores.shape[0] == (2 if CORRUPTIONS[corruption].is_random else 1)
    assert flow.settings.samples == flow.sample_scores.shape[0]
    assert (abs(flow.total_effect) > 1e-4) == CORRUPTIONS[corruption].corrupts


def test_chosen_positions_have_the_rows_of_the_whole_map_and_the_others_are_not_computed() -> None:
    tracer = tiny_tracer("llama")
    whole = tracer.trace_maps(REQUEST, {"m": MapSpec("mlp", 2)})["m"]
    part = tracer.trace_maps(REQUEST, {"m": MapSpec("mlp", 2, positions=(5, 8))})["m"]
    close(part.scores[[5, 8]], whole.scores[[5, 8]])
    others = [token for token in range(len(whole.input_tokens)) if token not in (5, 8)]
    assert part.scores[others].isnan().all()


@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_top_tokens_are_those_of_the_mean_distribution(batch_size: int) -> None:
    tracer = tiny_tracer("llama")
    request = replace(REQUEST, top_tokens=3, samples=3)
    flow = tracer.trace(request, batch_size=batch_size)
    assert flow.top_tokens is not None
    assert flow.top_tokens.clean[0].token_id == flow.answer_id
    assert flow.top_tokens.clean[0].probability == pytest.approx(flow.high_score, abs=1e-6)
    for position in range(len(flow.input_tokens)):
        for layer in range(tracer.count_layers()):
            top = flow.top_tokens.cells(position, layer)
            assert len(top) == 3
            assert [t.probability for t in top] == sorted((t.probability for t in top), reverse=True)
            of_answer = [t.probability for t in top if t.token_id == flow.answer_id]
            for probability in of_answer:
                assert probability == pytest.approx(float(flow.scores[position, layer]), abs=1e-5)
    assert flow.top_tokens.cells(0, 0) == flow.top_tokens.corrupted
    last = flow.top_tokens.cells(len(flow.input_tokens) - 1, tracer.count_layers() - 1)
    assert [t.token_id for t in last] == [t.token_id for t in flow.top_tokens.clean]
    assert HiddenFlow.from_dict(flow.to_dict()).top_tokens.to_dict() == flow.top_tokens.to_dict()  # type: ignore[union-attr]


def test_samples_are_taken_until_the_peak_is_sure_and_begin_like_a_fixed_number() -> None:
    tracer = tiny_tracer("gpt2")
    sure = tracer.trace_maps(replace(REQUEST, samples=SamplesUntil(1e-9, step=2, most=6)), {"m": MapSpec()})["m"]
    assert sure.settings.samples == 6
    assert "still wider" in " ".join(sure.notes)
    fixed = tracer.trace_maps(replace(REQUEST, samples=6), {"m": MapSpec()})["m"]
    close(sure.sample_scores, fixed.sample_scores)
    early = tracer.trace_maps(replace(REQUEST, samples=SamplesUntil(10.0, step=2, most=6)), {"m": MapSpec()})["m"]
    assert early.settings.samples == 2
    assert not early.notes


def test_a_corruption_elsewhere_leaves_the_subject_alone() -> None:
    tracer = tiny_tracer("gpt2")
    subject = tracer.trace_maps(REQUEST, {"m": MapSpec()})["m"]
    start, end = subject.subject_range
    other = tracer.trace_maps(replace(REQUEST, elsewhere=end), {"m": MapSpec()})["m"]
    assert other.subject_range == subject.subject_range
    close(other.scores[start:end], torch.full_like(other.scores[start:end], other.low_score))
    assert other.low_score != pytest.approx(subject.low_score, abs=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"elsewhere": 4}, SettingsError, "outside the subject"),
        ({"read": 99}, SettingsError, "read=99"),
        ({"read": 0}, SettingsError, "before the first corrupted token"),
        ({"answer": " "}, PromptError, "answer is empty"),
        ({"answer": " a", "answer_id": 3}, SettingsError, "both"),
        ({"metric": "loss"}, SettingsError, "probability"),
        ({"metric": "logit difference"}, SettingsError, "foil"),
        ({"corruption": "rain"}, SettingsError, "gaussian"),
        ({"positions": (99,)}, SettingsError, "positions"),
        ({"positions": ()}, SettingsError, "positions"),
        ({"direction": "up"}, SettingsError, "restore"),
        ({"top_tokens": -1}, SettingsError, "top_tokens"),
        ({"samples": SamplesUntil(0.1), "top_tokens": 3}, SettingsError, "fixed number"),
    ],
)
def test_requests_that_cannot_be_met_are_refused_with_words(
    change: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        tiny_tracer("gpt2").trace_maps(replace(REQUEST, **change), {"m": MapSpec()})


@pytest.mark.parametrize(
    "spec", [{"severed": "hidden"}, {"kind": "mlp", "severed": "mlp"}, {"window": 0}, {"kind": "x"}]
)
def test_maps_that_make_no_sense_are_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(SettingsError):
        MapSpec(**spec)


def test_a_placebo_map_needs_a_placebo() -> None:
    tracer = tiny_tracer("gpt2")
    for request in (replace(REQUEST, placebo=None), replace(REQUEST, placebo=OtherPrompt(PROMPT, SUBJECT))):
        with pytest.raises(SettingsError, match=r"placebo|the same as the prompt"):
            tracer.trace_maps(request, {"m": MapSpec(source="placebo")})


def test_what_is_held_at_the_base_runs_values_changes_nothing_by_itself() -> None:
    held = Intervention((0, 1, 2), "mlp", (5,), BASE)
    assert reach(Cell(5, 0, (held,)), 3, (9,), 3) is None
    restored = Intervention((1,), "hidden", (5,))
    found = reach(Cell(5, 0, (restored, held)), 3, (9,), 3)
    assert found is not None
    assert (found.first_token, found.join) == (5, 2)
