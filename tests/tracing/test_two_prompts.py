"""Patching between two prompts, and ablations, compared with hooks by hand: the whole model, one cell at a time."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import causal_tracer.experiment.counterparts as counterparts
from causal_tracer import HiddenFlow, MapSpec, OtherPrompt, RunOptions, TraceRequest
from causal_tracer.errors import SettingsError
from causal_tracer.metrics.metric import METRICS
from tests.support.hand_hooks import cell_by_hand, clean_by_hand, hand_window, last_probabilities
from tests.support.real_models import GEMMA, SMOLLM, real_tracer
from tests.support.tiny_models import (
    EVERY_ARCHITECTURE,
    FAMILIES,
    OTHER_PROMPT,
    OTHER_SUBJECT,
    PROMPT,
    SUBJECT,
    tiny_tracer,
)

# Another subject with the same number of tokens, and a prompt of another length with the subject at another position.
EQUAL = PROMPT.replace(SUBJECT, "Steve Jobs")
LONGER = "Look: in the city of Seattle, the Steve Jobs river is in the city"
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@functools.cache
def tracer(name: str) -> Any:
    return tiny_tracer(name)


def ids_of(name: str, text: str, subject: str) -> tuple[tuple[int, ...], tuple[int, int]]:
    """Return the token ids of a text, and the position of its subject, found by decoding."""
    tokenizer = tracer(name).tokenizer
    ids = tuple(tokenizer(text).input_ids)
    start = next(n for n in range(len(ids)) if subject not in tokenizer.decode(ids[n + 1 :]))
    end = next(n for n in range(start, len(ids) + 1) if subject in tokenizer.decode(ids[start:n]))
    return ids, (start, end)


def moved(values: Mapping[str, Tensor], places: Mapping[int, int], tokens: int) -> dict[str, Tensor]:
    """Return activations moved to another prompt's tokens; NaN elsewhere."""
    made = {}
    for name, value in values.items():
        made[name] = torch.full((tokens, value.shape[1]), torch.nan)
        for token, place in places.items():
            made[name][place] = value[token]
    return made


def check_by_hand(
    name: str,
    flow: HiddenFlow,
    base: Sequence[int],
    source: Mapping[str, Tensor],
    places: Mapping[int, int],
    cells: Sequence[tuple[int, int]],
) -> float:
    """Compare cells with hooks in the base run; return the largest effect. `source` has values at the base's tokens."""
    model = tracer(name).model
    sites = FAMILIES[name].site_names(flow.kind)
    before = float(last_probabilities(model, base, {})[flow.answer_id])
    largest = 0.0
    for token, layer in cells:
        restore = {sites[n]: [places[token]] for n in hand_window(layer, flow.settings.window, len(sites))}
        expected = cell_by_hand(model, name, base, (0, 1), None, restore, source, flow.answer_id)
        assert float(flow.scores[token, layer]) == pytest.approx(expected, rel=1e-4, abs=1e-5), (token, layer)
        largest = max(largest, abs(expected - before))
    return largest


def every_cell(flow: HiddenFlow) -> list[tuple[int, int]]:
    return [(int(token), int(layer)) for token, layer in (~flow.scores.isnan()).nonzero()]


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_prompts_of_equal_length_are_patched_token_by_token(name: str, direction: Any) -> None:
    (first, _), (second, _) = ids_of(name, PROMPT, SUBJECT), ids_of(name, EQUAL, "Steve Jobs")
    assert len(first) == len(second)
    request = TraceRequest(PROMPT, SUBJECT, second=OtherPrompt(EQUAL, "Steve Jobs"), metric="probability")
    specs = {"hidden": MapSpec("hidden"), "mlp": MapSpec("mlp", 2), "attention": MapSpec("attention", 2)}
    flows = tracer(name).trace_maps(replace(request, direction=direction), specs)
    (_, clean), (other, values) = (clean_by_hand(tracer(name).model, name, ids) for ids in (first, second))
    base, source = (second, clean) if direction == "restore" else (first, values)
    same = {token: token for token in range(len(first))}
    effects = []
    for flow in flows.values():
        assert flow.low_score == pytest.approx(float(other[flow.answer_id]), rel=1e-4, abs=1e-5)
        assert flow.alignment is not None
        assert flow.alignment.partners == tuple(same)
        assert flow.audit is not None or flow.settings.engine == "full"
        cells = every_cell(flow)
        assert len(cells) == flow.scores.numel()
        effects.append(check_by_hand(name, flow, base, source, same, cells[:: 3 if flow.kind == "hidden" else 5]))
    assert max(effects) > 1e-3


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
@pytest.mark.parametrize("direction", ["restore", "corrupt"])
def test_prompts_of_different_lengths_are_aligned_by_spans(name: str, direction: Any) -> None:
    (first, (start, end)), (second, (other_start, other_end)) = (
        ids_of(name, PROMPT, SUBJECT),
        ids_of(name, LONGER, "Steve Jobs"),
    )
    assert len(second) != len(first)
    assert other_start > start
    flow = tracer(name).trace(
        PROMPT, SUBJECT, second=OtherPrompt(LONGER, "Steve Jobs"), metric="probability", direction=direction
    )
    assert flow.alignment is not None
    places = {token: partner for token, partner in enumerate(flow.alignment.partners) if partner is not None}
    # The two subjects have two tokens each. The tokens before them are aligned from the start.
    assert [places[token] for token in range(start)] == list(range(start))
    assert (places[start], places[end - 1]) == (other_start, other_end - 1)
    assert places[end] == other_end
    assert places[len(first) - 1] == len(second) - 1
    assert len(set(places.values())) == len(places)
    alone = [token for token in range(len(first)) if token not in places]
    assert flow.scores[alone].isnan().all()
    assert bool(flow.alignment.without_partner) == any("have no partner" in note for note in flow.notes)
    (_, clean), (_, values) = (clean_by_hand(tracer(name).model, name, ids) for ids in (first, second))
    if direction == "restore":
        base, source, at = second, moved(clean, places, len(second)), places
    else:
        base, source = first, moved(values, {other: token for token, other in places.items()}, len(first))
        at = {token: token for token in places}
    assert check_by_hand(name, flow, base, source, at, every_cell(flow)[::2]) > 1e-3


def test_explicit_pairs_are_the_only_ones_patched() -> None:
    (first, _), (second, _) = ids_of("gpt2", PROMPT, SUBJECT), ids_of("gpt2", LONGER, "Steve Jobs")
    other = OtherPrompt(LONGER, "Steve Jobs", pairs=((3, 7), (-1, -1)))
    flow = tracer("gpt2").trace(PROMPT, SUBJECT, second=other, metric="probability", kind="mlp", window=2)
    places = {3: 7, len(first) - 1: len(second) - 1}
    assert {token for token, _ in every_cell(flow)} == set(places)
    _, clean = clean_by_hand(tracer("gpt2").model, "gpt2", first)
    source = moved(clean, places, len(second))
    assert check_by_hand("gpt2", flow, second, source, places, every_cell(flow)) > 1e-3


@pytest.mark.parametrize("shift", [1, -1])
def test_an_alignment_that_is_off_by_a_token_is_caught(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def shifted(prompt: Any, other: Any, *_: Any) -> tuple[int | None, ...]:
        places = (token + shift for token in range(len(prompt)))
        return tuple(place if 0 <= place < len(other) else None for place in places)

    monkeypatch.setattr(counterparts, "align_prompts", shifted)
    with pytest.raises(AssertionError):
        test_prompts_of_equal_length_are_patched_token_by_token("gpt2", "restore")


def test_the_last_layer_at_the_last_token_brings_the_whole_answer() -> None:
    flow = tracer("llama").trace(PROMPT, SUBJECT, second=OtherPrompt(LONGER, "Steve Jobs"), metric="logit")
    assert float(flow.scores[-1, -1]) == pytest.approx(flow.high_score, abs=1e-4)
    assert float(flow.scores[2, -1]) == pytest.approx(flow.low_score, abs=1e-4)
    assert abs(flow.total_effect) > 0.01


def test_tokens_that_are_alike_up_to_there_change_nothing() -> None:
    flow = tracer("llama").trace(PROMPT, SUBJECT, second=OtherPrompt(EQUAL, "Steve Jobs"), metric="logit")
    start = flow.subject_range[0]
    torch.testing.assert_close(flow.scores[:start], torch.full_like(flow.scores[:start], flow.low_score), **CLOSE)
    assert float(flow.indirect_effect[start:].abs().max()) > 1e-3


def test_by_default_the_difference_of_both_answers_is_read() -> None:
    second = OtherPrompt(LONGER, "Steve Jobs")
    flow = tracer("llama").trace(PROMPT, SUBJECT, second=second)
    (first, _), (other, _) = ids_of("llama", PROMPT, SUBJECT), ids_of("llama", LONGER, "Steve Jobs")
    with torch.no_grad():
        logits = [tracer("llama").model(torch.tensor([ids])).logits[0, -1] for ids in (first, other)]
    answers = [int(each.argmax()) for each in logits]
    assert answers[0] != answers[1]
    high, low = (float(each[answers[0]] - each[answers[1]]) for each in logits)
    assert flow.settings.metric == "logit difference"
    assert flow.high_score == pytest.approx(high, abs=1e-4)
    assert flow.low_score == pytest.approx(low, abs=1e-4)
    assert flow.high_score > 0 > flow.low_score


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "bloom"])
def test_resumed_and_full_sweep_agree_on_every_map(name: str) -> None:
    request = TraceRequest(
        PROMPT,
        SUBJECT,
        second=OtherPrompt(LONGER, "Steve Jobs"),
        placebo=OtherPrompt(OTHER_PROMPT, OTHER_SUBJECT),
        metric="logit",
    )
    specs = {
        "hidden": MapSpec("hidden"),
        "mlp": MapSpec("mlp", 2),
        "severed": MapSpec("hidden", severed="mlp"),
        "placebo": MapSpec("attention", 1, source="placebo"),
        "head": MapSpec("head"),
    }
    resumed, full = (tracer(name).trace_maps(request, specs, RunOptions(engine=engine)) for engine in ("auto", "full"))
    for key in specs:
        torch.testing.assert_close(resumed[key].scores, full[key].scores, equal_nan=True, **CLOSE)
        assert float(full[key].indirect_effect.nan_to_num(0.0).abs().max()) > 1e-4


@pytest.mark.parametrize("metric", METRICS)
def test_every_metric_spans_from_the_second_prompt_to_the_first(metric: str) -> None:
    asked: dict[str, Any] = {"second": OtherPrompt(LONGER, "Steve Jobs"), "metric": metric, "answer_id": 7}
    flow = tracer("gemma3_text").trace(PROMPT, SUBJECT, foil=" city", **asked)
    full = tracer("gemma3_text").trace(PROMPT, SUBJECT, foil=" city", engine="full", **asked)
    torch.testing.assert_close(flow.scores, full.scores, equal_nan=True, **CLOSE)
    assert flow.settings.metric == metric
    assert abs(flow.total_effect) > 1e-4
    assert float(flow.scores[-1, -1]) == pytest.approx(flow.high_score, rel=1e-4, abs=1e-4)
    assert float(flow.scores[2, -1]) == pytest.approx(flow.low_score, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("kind", ["hidden", "mlp", "attention"])
def test_a_request_that_is_stored_gives_the_same_map_again(kind: Any, tmp_path: Any) -> None:
    flow = tracer("gpt2").trace(
        PROMPT, SUBJECT, second=OtherPrompt(LONGER, "Steve Jobs", align="spans"), kind=kind, answer="Paris Rome"
    )
    flow.save(tmp_path / "map.json")
    loaded = HiddenFlow.load(tmp_path / "map.json")
    assert loaded.alignment == flow.alignment
    asked = loaded.stored_request()
    again = tracer("gpt2").trace(asked.request, spec=asked.map, options=asked.options)
    assert torch.equal(again.scores.nan_to_num(7.0), loaded.scores.nan_to_num(7.0))
    assert loaded.settings.second == LONGER


def test_several_pairs_of_prompts_are_traced_in_one_call() -> None:
    pairs = [(PROMPT, SUBJECT, LONGER, "Steve Jobs"), (PROMPT, SUBJECT, EQUAL, "Steve Jobs")]
    requests = [TraceRequest(text, subject, second=OtherPrompt(*other)) for text, subject, *other in pairs]
    together = tracer("llama").trace_many(requests)
    for request, flow in zip(requests, together, strict=True):
        alone = tracer("llama").trace(request)
        torch.testing.assert_close(flow.scores, alone.scores, equal_nan=True, **CLOSE)


@pytest.mark.parametrize(
    ("second", "changes", "message"),
    [
        (OtherPrompt(PROMPT, SUBJECT), {}, "the same as the prompt"),
        (OtherPrompt(LONGER, "Steve Jobs", align="tokens"), {}, "equal length"),
        (OtherPrompt(LONGER, "Steve Jobs", pairs=((0, 99),)), {}, "out of range"),
        (OtherPrompt(LONGER, "Steve Jobs", pairs=((1, 1), (1, 2))), {}, "another pair"),
        (OtherPrompt(LONGER, "Steve Jobs", pairs=((1, 1), (2, 1))), {}, "another pair"),
        (OtherPrompt(LONGER, "Steve Jobs", pairs=()), {}, "No token"),
        (OtherPrompt(LONGER, "Steve Jobs", pairs=((1, 1),)), {"read": 5}, "no partner"),
    ],
)
def test_prompts_that_do_not_fit_are_refused(second: OtherPrompt, changes: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        tracer("gpt2").trace(PROMPT, SUBJECT, second=second, metric="probability", **changes)


@pytest.mark.parametrize("changes", [{"corruption": "zero"}, {"noise": 2}, {"elsewhere": 1}])
def test_a_second_prompt_leaves_nothing_to_corrupt(changes: Any) -> None:
    with pytest.raises(SettingsError, match="does not apply with a second prompt"):
        TraceRequest(PROMPT, SUBJECT, second=OtherPrompt(LONGER), **changes)


# Ablations ------------------------------------------------------------------------------------------------------------


def ablated(name: str, kind: str, texts: Sequence[str]) -> dict[str, Tensor]:
    """Return zeros for each activation of a kind, or its mean over the tokens of texts after the BOS [d_model]."""
    sites = FAMILIES[name].site_names(kind)
    runs = [clean_by_hand(tracer(name).model, name, tuple(tracer(name).tokenizer(text).input_ids))[1] for text in texts]
    if not runs:
        _, clean = clean_by_hand(tracer(name).model, name, ids_of(name, PROMPT, SUBJECT)[0])
        return {site: torch.zeros_like(clean[site][0]) for site in sites}
    return {site: torch.cat([run[site][1:] for run in runs]).mean(dim=0) for site in sites}


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
@pytest.mark.parametrize("texts", [(), (OTHER_PROMPT, "Paris is in France")], ids=["zero", "mean"])
def test_ablations_set_a_site_in_the_clean_run(name: str, texts: tuple[str, ...]) -> None:
    source: Any = "mean" if texts else "zero"
    ids, _ = ids_of(name, PROMPT, SUBJECT)
    effects = []
    for kind, window in (("hidden", 1), ("mlp", 2), ("attention", 1)):
        flow = tracer(name).trace(PROMPT, SUBJECT, kind=kind, window=window, source=source, mean_over=texts)
        assert flow.low_score == pytest.approx(flow.high_score, abs=1e-6)
        constants = {site: value.expand(len(ids), -1) for site, value in ablated(name, kind, texts).items()}
        same = {token: token for token in range(len(ids))}
        cells = every_cell(flow)
        assert len(cells) == flow.scores.numel()
        effects.append(check_by_hand(name, flow, ids, constants, same, cells[::4]))
    assert max(effects) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "bloom"])
@pytest.mark.parametrize("source", ["zero", "mean"])
def test_resumed_and_full_sweep_agree_on_ablations(name: str, source: Any) -> None:
    asked = {"source": source, "mean_over": (OTHER_PROMPT,), "kind": "mlp", "window": 1}
    resumed, full = (tracer(name).trace(PROMPT, SUBJECT, engine=engine, **asked) for engine in ("auto", "full"))
    torch.testing.assert_close(resumed.scores, full.scores, **CLOSE)


def test_ablations_by_keyword_depart_from_the_clean_run_and_by_record_say_so() -> None:
    flow = tracer("gpt2").trace(PROMPT, SUBJECT, source="zero")
    assert (flow.settings.direction, flow.settings.corruption) == ("corrupt", "nothing")
    assert len(flow.low_sample_scores) == 1
    spec = MapSpec(source="zero")
    with pytest.raises(SettingsError, match="in the clean run"):
        tracer("gpt2").trace(TraceRequest(PROMPT, SUBJECT), spec=spec)
    beside_noise = tracer("gpt2").trace(TraceRequest(PROMPT, SUBJECT, samples=2, direction="corrupt"), spec=spec)
    torch.testing.assert_close(beside_noise.scores, flow.scores, **CLOSE)
    assert beside_noise.low_score != pytest.approx(beside_noise.high_score, abs=1e-3)


def test_an_ablation_beside_a_second_prompt_has_all_its_rows() -> None:
    pairs = OtherPrompt(LONGER, "Steve Jobs", pairs=((-1, -1),))
    request = TraceRequest(PROMPT, SUBJECT, second=pairs, metric="probability", direction="corrupt")
    specs = {"zero": MapSpec("mlp", 1, source="zero"), "patched": MapSpec("mlp", 1)}
    flows = tracer("gpt2").trace_maps(request, specs)
    alone = tracer("gpt2").trace(PROMPT, SUBJECT, kind="mlp", window=1, source="zero")
    torch.testing.assert_close(flows["zero"].scores, alone.scores, **CLOSE)
    assert flows["zero"].alignment is None
    assert flows["patched"].scores[:-1].isnan().all()


def test_a_foil_is_found_only_for_metrics_that_read_one() -> None:
    second = OtherPrompt(LONGER, "Steve Jobs")
    assert tracer("gpt2").trace(PROMPT, SUBJECT, second=second, metric="probability").settings.foil is None
    assert tracer("gpt2").trace(PROMPT, SUBJECT, second=second, answer_id=7).settings.foil is not None


def test_a_mean_needs_texts() -> None:
    with pytest.raises(SettingsError, match="mean_over"):
        tracer("gpt2").trace(PROMPT, SUBJECT, source="mean")


def test_heads_are_ablated_one_by_one() -> None:
    flow = tracer("llama").trace(PROMPT, SUBJECT, kind="head", source="zero")
    by_hand: Callable[[int, int], float] = functools.partial(_without_head, ids_of("llama", PROMPT, SUBJECT)[0])
    for head, layer in ((0, 0), (3, 1), (1, 2)):
        expected = by_hand(head, layer)
        assert float(flow.scores[head, layer]) == pytest.approx(expected, rel=1e-4, abs=1e-5)


def _without_head(ids: Sequence[int], head: int, layer: int) -> float:
    model = tracer("llama").model
    projection = model.model.layers[layer].self_attn.o_proj

    def before(_module: Any, args: Any) -> Any:
        given = args[0].clone()
        size = given.shape[-1] // 4
        given[0, -1, head * size : (head + 1) * size] = 0
        return (given,)

    clean = last_probabilities(model, ids, {})
    handle = projection.register_forward_pre_hook(before)
    try:
        return float(last_probabilities(model, ids, {})[int(clean.argmax())])
    finally:
        handle.remove()


# A real model ---------------------------------------------------------------------------------------------------------


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("model", [GEMMA, SMOLLM])
def test_a_real_model_moves_the_answer_from_one_city_to_another(model: str) -> None:
    real = real_tracer(model)
    text, subject = "The Space Needle is located in the city of", "The Space Needle"
    other, other_subject = "The Leaning Tower of Pisa is located in the city of", "The Leaning Tower of Pisa"
    request = TraceRequest(text, subject, second=OtherPrompt(other, other_subject))
    cells = {token: MapSpec("mlp", 10, positions=(token,), start_layer=3, end_layer=5) for token in (-1, -7)}
    ids, others = (tuple(real.tokenizer(each).input_ids) for each in (text, other))
    with torch.no_grad():
        logits = [real.model(torch.tensor([each])).logits[0, -1] for each in (ids, others)]
    answer, foil = (int(each.argmax()) for each in logits)
    kept: dict[int, Tensor] = {}
    layers = real.model.model.layers

    def keep(number: int) -> Any:
        def note(_module: Any, _inputs: Any, output: Any) -> None:
            kept[number] = output[0].detach().clone()

        return note

    def run(ids: Sequence[int], hooks: Mapping[int, Any]) -> Tensor:
        handles = [layers[number].mlp.register_forward_hook(hook) for number, hook in hooks.items()]
        try:
            with torch.no_grad():
                return real.model(torch.tensor([list(ids)])).logits[0, -1]
        finally:
            for handle in handles:
                handle.remove()

    run(ids, {number: keep(number) for number in range(len(layers))})
    for token in cells:
        place, other_place = len(ids) + token, len(others) + token
        flow = real.trace(request, spec=replace(cells[token], positions=(place,)))
        assert flow.high_score == pytest.approx(float(logits[0][answer] - logits[0][foil]), rel=1e-4)
        assert flow.low_score == pytest.approx(float(logits[1][answer] - logits[1][foil]), rel=1e-4)

        def put(number: int, place: int = place, other_place: int = other_place) -> Any:
            def change(_module: Any, _inputs: Any, output: Tensor) -> Tensor:
                changed = output.clone()
                changed[0, other_place] = kept[number][place]
                return changed

            return change

        for layer in (3, 4):
            found = run(others, {number: put(number) for number in hand_window(layer, 10, len(layers))})
            expected = float(found[answer] - found[foil])
            assert float(flow.scores[place, layer]) == pytest.approx(expected, abs=2e-3)
            assert abs(expected - flow.low_score) > 0.01
