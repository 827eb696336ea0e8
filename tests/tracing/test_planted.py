"""A model with facts planted by hand: maps find them, severing removes their effect, controls show no effect.

`examples/glass_box.py` says what the model does. Its steps are a chain: each is needed, and each is enough.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from causal_tracer import CausalTracer, HiddenFlow, MapSpec, OtherPrompt, TraceRequest
from causal_tracer.corruption import CounterfactualSubjects
from causal_tracer.errors import SettingsError
from examples.glass_box import (
    FACTS,
    FIRST_SUBJECT,
    GATHERING,
    LAST,
    LAST_SUBJECT,
    LOOKUP,
    MOVING,
    N_LAYERS,
    PROMPT,
    READYING,
    SUBJECT,
    TEMPLATE,
    glass_box_tracer,
)
from tests.support.hand_hooks import last_probabilities

Cells = set[tuple[int, int]]

# For each step, the block that takes part, and the value that it leaves at the token for the next step.
AT_SUBJECT = range(GATHERING[0], MOVING[0])
AT_LAST = range(MOVING[0], N_LAYERS)
HIDDEN: Cells = {(LAST_SUBJECT, layer) for layer in AT_SUBJECT} | {(LAST, layer) for layer in AT_LAST}
MLP: Cells = {(LAST_SUBJECT, LOOKUP)}
ATTENTION: Cells = {(LAST_SUBJECT, GATHERING[0]), (LAST_SUBJECT, READYING[0]), (LAST, MOVING[0])}

OTHER = OtherPrompt(TEMPLATE.format("Eiffel Tower"), "Eiffel Tower")
SPECS: Mapping[str, MapSpec] = {
    "hidden": MapSpec("hidden"),
    "mlp": MapSpec("mlp", 1),
    "attention": MapSpec("attention", 1),
    "hidden, MLP severed": MapSpec("hidden", severed="mlp"),
    "hidden, attention severed": MapSpec("hidden", severed="attention"),
    "hidden placebo": MapSpec("hidden", source="placebo"),
    "mlp placebo": MapSpec("mlp", 1, source="placebo"),
    "attention placebo": MapSpec("attention", 1, source="placebo"),
}


@functools.cache
def tracer() -> CausalTracer:
    return glass_box_tracer()


@functools.cache
def maps(subject: str = SUBJECT) -> dict[str, HiddenFlow]:
    placebo = OtherPrompt(PROMPT, SUBJECT) if subject != SUBJECT else OTHER
    request = TraceRequest(TEMPLATE.format(subject), subject, samples=20, placebo=placebo)
    return tracer().trace_maps(request, SPECS)


def lit(effects: Tensor, total: float) -> Cells:
    """The cells of a map that hold the fact. All other cells must have no effect."""
    shares = effects / total
    cells = {(int(position), int(layer)) for position, layer in (shares > 0.5).nonzero()}
    dark = torch.ones_like(shares, dtype=torch.bool)
    for cell in cells:
        dark[cell] = False
    assert float(shares[dark].abs().max()) < 0.02
    return cells


def test_the_prompt_is_the_one_that_the_positions_count() -> None:
    flow = maps()["hidden"]
    assert flow.input_tokens[FIRST_SUBJECT : LAST_SUBJECT + 1] == SUBJECT.split()
    assert flow.subject_range == (FIRST_SUBJECT, LAST_SUBJECT + 1)
    assert len(flow.input_tokens) == LAST + 1


@pytest.mark.parametrize("subject", FACTS)
def test_the_model_knows_its_facts_and_noise_hides_them(subject: str) -> None:
    flow = maps(subject)["hidden"]
    assert flow.answer == FACTS[subject]
    ids = flow.input_ids.tolist()
    assert float(last_probabilities(tracer().model, ids, {})[flow.answer_id]) == pytest.approx(flow.high_score)
    assert flow.high_score > 0.95
    assert flow.total_effect > 0.4


@pytest.mark.parametrize("subject", FACTS)
@pytest.mark.parametrize(("kind", "truth"), [("hidden", HIDDEN), ("mlp", MLP), ("attention", ATTENTION)])
def test_each_kind_finds_exactly_the_sites_that_were_planted(kind: str, truth: Cells, subject: str) -> None:
    flow = maps(subject)[kind]
    assert lit(flow.indirect_effect, flow.total_effect) == truth


@pytest.mark.parametrize("subject", FACTS)
def test_severing_the_mlp_kills_what_still_needs_to_be_looked_up(subject: str) -> None:
    flow = maps(subject)["hidden, MLP severed"]
    killed = {(LAST_SUBJECT, layer) for layer in range(LOOKUP)}
    assert killed <= HIDDEN
    assert lit(flow.indirect_effect, flow.total_effect) == HIDDEN - killed


@pytest.mark.parametrize("subject", FACTS)
def test_severing_attention_kills_what_the_subject_still_needs_of_itself(subject: str) -> None:
    flow = maps(subject)["hidden, attention severed"]
    killed = {(LAST_SUBJECT, layer) for layer in range(READYING[0])}
    assert killed <= HIDDEN
    assert lit(flow.indirect_effect, flow.total_effect) == HIDDEN - killed


@pytest.mark.parametrize("kind", ["hidden", "mlp", "attention"])
def test_the_placebo_does_not_show_the_fact(kind: str) -> None:
    flow, placebo = maps()[kind], maps()[f"{kind} placebo"]
    assert float(placebo.indirect_effect.max()) < 0.02 * flow.total_effect
    assert placebo.low_score == flow.low_score
    # The other prompt's activations bring the other fact, so the answer's chance probability is lost.
    truth = {"hidden": HIDDEN, "mlp": MLP, "attention": ATTENTION}[kind]
    assert all(float(placebo.scores[cell]) < 0.1 for cell in truth)


@pytest.mark.parametrize(("kind", "truth"), [("hidden", HIDDEN), ("mlp", MLP), ("attention", ATTENTION)])
def test_corrupted_activations_in_the_clean_run_take_it_away_at_the_same_sites(kind: str, truth: Cells) -> None:
    request = TraceRequest(PROMPT, SUBJECT, samples=20, direction="corrupt")
    flow = tracer().trace_maps(request, {kind: SPECS[kind]})[kind]
    assert lit(flow.high_score - flow.scores, flow.total_effect) == truth


@pytest.mark.parametrize(("kind", "truth"), [("hidden", HIDDEN), ("mlp", MLP), ("attention", ATTENTION)])
def test_another_subject_in_its_place_shows_the_same_sites_with_no_noise(kind: str, truth: Cells) -> None:
    request = TraceRequest(PROMPT, SUBJECT, corruption=CounterfactualSubjects(("Eiffel Tower",)))
    flow = tracer().trace_maps(request, {kind: SPECS[kind]})[kind]
    assert flow.low_score < 0.01
    assert flow.sample_scores.shape[0] == 1
    assert lit(flow.indirect_effect, flow.total_effect) == truth


@pytest.mark.parametrize("metric", ["log-probability", "logit", "logit difference"])
def test_other_metrics_show_the_same_sites(metric: str) -> None:
    # Without noise: logits are unbounded, so a random draw may give the city a higher logit than the clean run.
    other = CounterfactualSubjects(("Eiffel Tower",))
    request = TraceRequest(PROMPT, SUBJECT, corruption=other, foil="Paris", metric=metric)
    for kind, truth in (("hidden", HIDDEN), ("mlp", MLP), ("attention", ATTENTION)):
        flow = tracer().trace_maps(request, {kind: SPECS[kind]})[kind]
        assert lit(flow.indirect_effect, flow.total_effect) == truth


@pytest.mark.parametrize(
    ("token", "truth"), [(LAST_SUBJECT, {GATHERING, READYING}), (LAST, {MOVING}), (LAST + 1, None)]
)
def test_the_head_map_finds_the_heads(token: int, truth: set[tuple[int, int]] | None) -> None:
    asked = TraceRequest(PROMPT, SUBJECT, samples=20)
    if truth is None:
        with pytest.raises(SettingsError, match="out of range"):
            tracer().trace_maps(asked, {"heads": MapSpec("head", token=token)})
        return
    flow = tracer().trace_maps(asked, {"heads": MapSpec("head", token=token)})["heads"]
    assert {(layer, head) for head, layer in lit(flow.indirect_effect, flow.total_effect)} == truth


def test_noise_elsewhere_in_the_prompt_hides_nothing() -> None:
    after = LAST_SUBJECT + 1
    flow = tracer().trace_maps(TraceRequest(PROMPT, SUBJECT, samples=20, elsewhere=after), {"hidden": MapSpec()})
    assert abs(flow["hidden"].total_effect) < 0.02
    assert float(flow["hidden"].indirect_effect.abs().max()) < 0.02


EDGES = {LAST: (MOVING, LAST_SUBJECT), LAST_SUBJECT: (GATHERING, FIRST_SUBJECT)}


@pytest.mark.parametrize("subject", FACTS)
@pytest.mark.parametrize("token", EDGES)
def test_blocking_the_edge_that_moves_the_fact_removes_it_and_no_other_does(token: int, subject: str) -> None:
    request = TraceRequest(TEMPLATE.format(subject), subject, direction="corrupt", corruption="none")
    flow = tracer().trace(request, spec=MapSpec("knockout", 1, token=token))
    (block, _), key = EDGES[token]
    own = {(LAST_SUBJECT, READYING[0])} if token == LAST_SUBJECT else set()
    assert lit(flow.high_score - flow.scores, flow.high_score) == {(key, block)} | own


def test_of_the_spans_the_subject_alone_holds_the_fact() -> None:
    request = TraceRequest(PROMPT, SUBJECT, direction="corrupt", corruption="none")
    flow = tracer().trace(request, spec=MapSpec("span_knockout", 1))
    assert lit(flow.high_score - flow.scores, flow.high_score) == {(0, MOVING[0])}


@pytest.mark.parametrize("window", [2, 3])
def test_a_window_shows_the_site_wherever_it_holds_it(window: int) -> None:
    flow = tracer().calculate_hidden_flow(PROMPT, SUBJECT, "mlp", samples=20, window=window)
    holding = {layer for layer in range(N_LAYERS) if layer - window // 2 <= LOOKUP < layer - (-window // 2)}
    assert len(holding) == window
    assert lit(flow.indirect_effect, flow.total_effect) == {(LAST_SUBJECT, layer) for layer in holding}
