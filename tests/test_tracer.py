"""CausalTracer: its signatures, defaults and errors, and the content of its results."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch

from causal_tracer import CausalTracer, HiddenFlow, HiddenFlowQuery, MapSpec, RunOptions, TraceRequest
from causal_tracer.errors import CausalTracerError, PromptError, SettingsError, SubjectError, TraceCancelled
from causal_tracer.request.sites import KINDS, LayerKind
from tests.support.hand_hooks import clean_by_hand, map_by_hand
from tests.support.tiny_models import (
    EVERY_ARCHITECTURE,
    OTHER_PROMPT,
    OTHER_SUBJECT,
    PROMPT,
    SUBJECT,
    VOCAB_SIZE,
    build_tiny_model,
    tiny_model,
    tiny_tokenizer,
    tiny_tracer,
)
from tests.support.unchanged import assert_unchanged, fingerprint

TOLERANCE = {"rtol": 0, "atol": 1e-5, "equal_nan": True}


def same_numbers(found: HiddenFlow, expected: HiddenFlow) -> None:
    torch.testing.assert_close(found.scores, expected.scores, **TOLERANCE)
    torch.testing.assert_close(found.sample_scores, expected.sample_scores, **TOLERANCE)
    torch.testing.assert_close(found.low_sample_scores, expected.low_sample_scores, **TOLERANCE)
    assert found.low_score == pytest.approx(expected.low_score, abs=1e-5)
    assert found.high_score == pytest.approx(expected.high_score, abs=1e-5)
    assert found.answer_id == expected.answer_id


# Signatures and defaults ----------------------------------------------------------------------------------------------


def _positional(function: Any) -> list[str]:
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is p.POSITIONAL_OR_KEYWORD and p.name != "self"]


def test_positional_arguments_are_in_the_order_of_version_one() -> None:
    assert _positional(CausalTracer) == ["model", "tokenizer", "layer_config", "noise", "device"]
    assert _positional(CausalTracer.calculate_hidden_flow) == [
        "prompt",
        "subject",
        "kind",
        "answer_id_override",
        "samples",
        "window",
        "patch_seed",
        "batch_size",
        "start_layer",
        "end_layer",
        "patch_subject_tokens_only",
    ]
    assert _positional(CausalTracer.calculate_hidden_flows) == [
        "queries",
        "samples",
        "window",
        "kind",
        "patch_seed",
        "batch_size",
        "start_layer",
        "end_layer",
        "patch_subject_tokens_only",
    ]
    assert _positional(HiddenFlowQuery) == ["text", "subject", "override_answer_id"]


def test_defaults_are_those_of_version_one() -> None:
    for function in (CausalTracer.calculate_hidden_flow, CausalTracer.calculate_hidden_flows):
        parameters = inspect.signature(function).parameters
        defaults = {name: p.default for name, p in parameters.items() if p.default is not p.empty}
        for name, value in {
            "kind": "hidden",
            "samples": 10,
            "window": 1,
            "patch_seed": 1,
            "start_layer": 0,
            "end_layer": None,
            "patch_subject_tokens_only": False,
        }.items():
            assert defaults[name] == value, name


def test_arguments_by_position_mean_what_they_meant() -> None:
    tracer = tiny_tracer("gpt2")
    by_position = tracer.calculate_hidden_flow(PROMPT, SUBJECT, "mlp", 7, 2, 3, 4, 5, 1, 2, True)
    by_name = tracer.calculate_hidden_flow(
        prompt=PROMPT,
        subject=SUBJECT,
        kind="mlp",
        answer_id_override=7,
        samples=2,
        window=3,
        patch_seed=4,
        batch_size=5,
        start_layer=1,
        end_layer=2,
        patch_subject_tokens_only=True,
    )
    (of_list,) = tracer.calculate_hidden_flows([HiddenFlowQuery(PROMPT, SUBJECT, 7)], 2, 3, "mlp", 4, 5, 1, 2, True)
    for flow in (by_position, of_list):
        assert torch.equal(flow.sample_scores.nan_to_num(-1), by_name.sample_scores.nan_to_num(-1))
        assert flow.settings == by_name.settings
    settings = by_name.settings
    assert (settings.samples, settings.window, settings.seed, settings.batch_size) == (2, 3, 4, 5)
    assert (settings.start_layer, settings.end_layer, settings.subject_tokens_only) == (1, 2, True)
    assert (by_name.kind, by_name.answer_id) == ("mlp", 7)


@pytest.mark.parametrize("noise", [0, 0.0])
def test_noise_zero_means_none(noise: float) -> None:
    tracer = CausalTracer(tiny_model("gpt2"), tiny_tokenizer(), noise=noise)
    assert tracer.noise == 0
    flow = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    assert flow.low_score == pytest.approx(flow.high_score, abs=1e-5)
    assert float((flow.scores - flow.high_score).abs().max()) <= 1e-5
    assert flow.settings.noise == 0


def test_the_rule_of_the_noise_is_in_the_result() -> None:
    assert CausalTracer(tiny_model("gpt2"), tiny_tokenizer(), noise=2).context.noise_rule == "given"
    flow = tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, samples=1)
    assert flow.settings.noise == tiny_tracer("gpt2").noise > 0
    assert "3 sd" in flow.settings.noise_rule


# Numbers --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_the_tracer_end_to_end_equals_hooks_by_hand(name: str) -> None:
    """The tracer's numbers equal those by hand, with the engine that it chooses."""
    tracer = tiny_tracer(name)
    for kind, window in (("hidden", 1), ("mlp", 3), ("attention", 2)):
        flow = tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind, samples=2, window=window)  # type: ignore[arg-type]
        start, end = flow.subject_range
        positions = [0, start, end - 1, len(flow.input_ids) - 1]
        by_hand, low, high = map_by_hand(
            tiny_model(name),
            name,
            flow.input_ids.tolist(),
            flow.subject_range,
            kind=kind,
            window=window,
            samples=2,
            seed=1,
            level=tracer.noise,
            positions=positions,
        )
        torch.testing.assert_close(flow.sample_scores[:, positions], by_hand, **TOLERANCE)
        torch.testing.assert_close(flow.scores[positions], by_hand.mean(dim=0), **TOLERANCE)
        torch.testing.assert_close(flow.low_sample_scores, low, **TOLERANCE)
        assert flow.low_score == pytest.approx(float(low.mean()), abs=1e-5)
        assert flow.high_score == pytest.approx(high, abs=1e-5)
        assert abs(flow.total_effect) >= 0.01
        assert float(flow.indirect_effect.abs().max()) >= 1e-3


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "mixtral"])
def test_prompts_of_different_lengths_in_a_list_equal_each_alone(name: str) -> None:
    tracer = tiny_tracer(name)
    queries = [
        HiddenFlowQuery(PROMPT, SUBJECT),
        HiddenFlowQuery(OTHER_PROMPT, OTHER_SUBJECT, 40),
        "the city of Paris is",
    ]
    together = tracer.calculate_hidden_flows(queries, samples=2, window=2, kind="attention")
    alone = [
        tracer.calculate_hidden_flow(PROMPT, SUBJECT, "attention", samples=2, window=2),
        tracer.calculate_hidden_flow(OTHER_PROMPT, OTHER_SUBJECT, "attention", 40, samples=2, window=2),
        tracer.calculate_hidden_flow("the city of Paris is", None, "attention", samples=2, window=2),
    ]
    assert len({len(flow.input_ids) for flow in together}) == 3
    for found, expected in zip(together, alone, strict=True):
        same_numbers(found, expected)
        assert found.prompt == expected.prompt
    assert together[2].subject_guessed
    assert together[2].subject == "Paris"


def test_an_empty_list_gives_an_empty_list() -> None:
    assert tiny_tracer("gpt2").calculate_hidden_flows([]) == []


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
@pytest.mark.parametrize("engine", ["auto", "full"])
def test_kinds_in_one_call_equal_single_calls(name: str, engine: Any) -> None:
    tracer = tiny_tracer(name)
    windows: dict[LayerKind, dict[str, int]] = {"hidden": {"window": 2}, "mlp": {"window": 3}, "attention": {}}
    specs: dict[str, MapSpec] = {kind: MapSpec(kind, **window) for kind, window in windows.items()}
    together = tracer.trace_maps(TraceRequest(PROMPT, SUBJECT, samples=3), specs, RunOptions(engine=engine))
    assert list(together) == list(KINDS)
    for kind, window in (("hidden", 2), ("mlp", 3), ("attention", 10)):
        alone = tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind, samples=3, window=window, engine=engine)  # type: ignore[arg-type]
        same_numbers(together[kind], alone)  # type: ignore[index]
        assert together[kind].kind == kind  # type: ignore[index]
        assert together[kind].settings.window == window  # type: ignore[index]
        assert list(together[kind].layer_outputs) == tracer.get_layer_names_of_kind(kind)  # type: ignore[index,arg-type]


@pytest.mark.parametrize("engine", ["auto", "full"])
def test_cells_that_were_not_computed_are_nan_and_the_others_are_the_same(engine: Any) -> None:
    tracer = tiny_tracer("gemma3_text")
    whole = tracer.calculate_hidden_flow(PROMPT, SUBJECT, "mlp", samples=2, window=3, engine=engine)
    part = tracer.calculate_hidden_flow(
        PROMPT,
        SUBJECT,
        "mlp",
        samples=2,
        window=3,
        engine=engine,
        start_layer=1,
        end_layer=3,
        patch_subject_tokens_only=True,
    )
    assert not whole.scores.isnan().any()
    assert part.scores.shape == whole.scores.shape
    start, end = part.subject_range
    computed = torch.zeros_like(part.scores, dtype=torch.bool)
    computed[start:end, 1:3] = True
    assert part.scores[~computed].isnan().all()
    assert part.sample_scores[:, ~computed].isnan().all()
    assert part.indirect_effect[~computed].isnan().all()
    assert part.standard_error[~computed].isnan().all()
    torch.testing.assert_close(part.scores[computed], whole.scores[computed], **TOLERANCE)
    assert (part.low_score, part.high_score) == (whole.low_score, whole.high_score)


@pytest.mark.parametrize(("start", "end", "columns"), [(0, 1, [0]), (2, None, [2]), (0, 3, [0, 1, 2]), (1, 2, [1])])
def test_layer_ranges_at_the_edges(start: int, end: int | None, columns: list[int]) -> None:
    flow = tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, samples=1, start_layer=start, end_layer=end)
    assert [layer for layer in range(3) if not flow.scores[:, layer].isnan().any()] == columns
    assert (flow.settings.start_layer, flow.settings.end_layer) == (columns[0], columns[-1] + 1)


@pytest.mark.parametrize("answer", [0, 7, VOCAB_SIZE - 1, np.int64(7)])
def test_an_answer_given_is_the_token_whose_probability_is_read(answer: int) -> None:
    flow = tiny_tracer("llama").calculate_hidden_flow(PROMPT, SUBJECT, answer_id_override=answer, samples=2)
    probabilities, _ = clean_by_hand(tiny_model("llama"), "llama", flow.input_ids.tolist())
    assert flow.answer_id == answer
    assert flow.high_score == pytest.approx(float(probabilities[answer]), abs=1e-6)
    assert float(flow.scores[-1, -1]) == pytest.approx(float(probabilities[answer]), abs=1e-5)


def test_without_one_the_answer_is_the_models_own() -> None:
    flow = tiny_tracer("llama").calculate_hidden_flow(PROMPT, SUBJECT, samples=1)
    probabilities, _ = clean_by_hand(tiny_model("llama"), "llama", flow.input_ids.tolist())
    assert flow.answer_id == int(probabilities.argmax())
    text = tiny_tokenizer().decode([flow.answer_id])
    assert flow.answer == (text if "\N{REPLACEMENT CHARACTER}" not in text else flow.answer) != ""


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
@pytest.mark.parametrize("engine", ["auto", "full"])
def test_the_same_call_twice_is_bit_identical(name: str, engine: Any) -> None:
    first, second = (
        CausalTracer(tiny_model(name), tiny_tokenizer()).calculate_hidden_flow(
            PROMPT, SUBJECT, "mlp", samples=3, window=2, batch_size=7, engine=engine
        )
        for _ in range(2)
    )
    assert torch.equal(first.sample_scores, second.sample_scores)
    assert torch.equal(first.scores, second.scores)
    assert (first.low_score, first.high_score) == (second.low_score, second.high_score)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 64])
@pytest.mark.parametrize("engine", ["auto", "full"])
def test_batch_size_changes_no_number_and_is_in_the_result(batch_size: int, engine: Any) -> None:
    tracer = tiny_tracer("gemma3_text")
    flow = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=3, batch_size=batch_size, engine=engine)
    same_numbers(flow, tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=3))
    assert flow.settings.batch_size == batch_size


def test_seeds_give_different_noise_and_the_same_clean_run() -> None:
    flows = [tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, samples=2, patch_seed=s) for s in (1, 2)]
    assert flows[0].low_score != flows[1].low_score
    assert flows[0].high_score == flows[1].high_score


def test_with_a_bos_and_without_one_the_subject_is_the_same_text() -> None:
    for bos in (True, False):
        flow = tiny_tracer("gpt2", bos=bos).calculate_hidden_flow(PROMPT, SUBJECT, samples=1)
        assert flow.input_tokens[slice(*flow.subject_range)] == [" Space", " Needle"]
        assert (flow.input_tokens[0] == "<bos>") == bos
        assert flow.subject_range == ((4, 6) if bos else (3, 5))


@pytest.mark.parametrize(
    ("text", "subject"),
    [("Space Needle is in", "Space Needle"), ("Look: Paris", "Paris"), ("Paris", "Paris"), ("東京塔は🚀", "京塔")],
)
@pytest.mark.parametrize("engine", ["auto", "full"])
@pytest.mark.parametrize("bos", [True, False])
def test_subjects_at_the_start_at_the_end_and_of_the_whole_prompt(
    text: str, subject: str, engine: Any, bos: bool
) -> None:
    tracer = tiny_tracer("llama", bos=bos)
    flow = tracer.calculate_hidden_flow(text, subject, "hidden", samples=2, engine=engine)
    last = len(flow.input_ids) - 1
    by_hand, low, _ = map_by_hand(
        tiny_model("llama"),
        "llama",
        flow.input_ids.tolist(),
        flow.subject_range,
        kind="hidden",
        window=1,
        samples=2,
        seed=1,
        level=tracer.noise,
        positions=[0, last],
    )
    torch.testing.assert_close(flow.sample_scores[:, [0, last]], by_hand, **TOLERANCE)
    torch.testing.assert_close(flow.low_sample_scores, low, **TOLERANCE)


# What a result holds --------------------------------------------------------------------------------------------------


def test_shapes_and_types_of_a_result() -> None:
    flow = tiny_tracer("gemma3_text").calculate_hidden_flow(PROMPT, SUBJECT, samples=3)
    tokens = len(tiny_tokenizer()(PROMPT)["input_ids"])
    assert flow.scores.shape == (tokens, 4)
    assert flow.sample_scores.shape == (3, tokens, 4)
    assert flow.low_sample_scores.shape == (3,)
    assert flow.scores.dtype == flow.sample_scores.dtype == flow.low_sample_scores.dtype == torch.float32
    assert flow.input_ids.dtype == torch.int64
    assert flow.input_ids.tolist() == tiny_tokenizer()(PROMPT)["input_ids"]
    assert isinstance(flow.low_score, float)
    assert isinstance(flow.high_score, float)
    assert isinstance(flow.input_tokens, list)
    assert (flow.prompt, flow.subject, flow.subject_guessed) == (PROMPT, SUBJECT, False)
    assert flow.low_score == pytest.approx(float(flow.low_sample_scores.mean()), abs=1e-7)
    torch.testing.assert_close(flow.scores, flow.sample_scores.mean(dim=0), rtol=0, atol=1e-7)
    assert flow.settings.dtype == "float32"
    assert set(flow.settings.versions) >= {"torch", "transformers"}


@pytest.mark.parametrize("kind", KINDS)
def test_layer_outputs_are_the_clean_activations_by_module_name(kind: LayerKind) -> None:
    tracer = tiny_tracer("gemma3_text")
    flow = tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind, samples=1)
    _, by_hand = clean_by_hand(tiny_model("gemma3_text"), "gemma3_text", flow.input_ids.tolist())
    assert list(flow.layer_outputs) == tracer.get_layer_names_of_kind(kind)
    for name, values in flow.layer_outputs.items():
        torch.testing.assert_close(values, by_hand[name], rtol=0, atol=1e-6)
        assert not values.requires_grad


def test_writing_into_a_result_changes_no_other_result() -> None:
    tracer = CausalTracer(tiny_model("gpt2"), tiny_tokenizer(), noise=1.0)
    first = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    expected = {name: values.clone() for name, values in first.layer_outputs.items()}
    ids = first.input_ids.clone()
    for values in first.layer_outputs.values():
        values.zero_()
    first.input_ids.zero_()
    first.scores.zero_()
    first.sample_scores.zero_()
    second = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    assert torch.equal(second.input_ids, ids)
    for name, values in second.layer_outputs.items():
        assert torch.equal(values, expected[name]), name
    fresh = CausalTracer(tiny_model("gpt2"), tiny_tokenizer(), noise=1.0)
    assert torch.equal(second.scores, fresh.calculate_hidden_flow(PROMPT, SUBJECT, samples=2).scores)


def test_a_guessed_subject_is_marked() -> None:
    tracer = tiny_tracer("gpt2")
    guessed = tracer.calculate_hidden_flow("the Space Needle is in the city of", samples=1)
    assert guessed.subject_guessed
    assert guessed.subject == SUBJECT
    assert not tracer.calculate_hidden_flow("the Space Needle is in", "Space Needle", samples=1).subject_guessed
    with pytest.raises(SubjectError):
        tracer.calculate_hidden_flow("the city is in", samples=1)


def test_names_and_counts_of_layers() -> None:
    tracer = tiny_tracer("gpt2")
    assert tracer.count_layers() == 3
    assert tracer.get_layer_names_of_kind("attention") == [f"transformer.h.{n}.attn" for n in range(3)]
    with pytest.raises(SettingsError, match="'foo'"):
        tracer.get_layer_names_of_kind("foo")  # type: ignore[arg-type]


def test_a_local_path_stays_out_of_results(tmp_path: Any) -> None:
    model = build_tiny_model("gpt2")
    folder = tmp_path / "my-model"
    folder.mkdir()
    model.config._name_or_path = str(folder)
    flow = CausalTracer(model, tiny_tokenizer(), noise=1.0).calculate_hidden_flow(PROMPT, SUBJECT, samples=1)
    assert flow.settings.model == "my-model"


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"samples": 0}, "samples=0"),
        ({"samples": -3}, "samples=-3"),
        ({"samples": 2.5}, "samples=2.5"),
        ({"samples": "3"}, "samples='3'"),
        ({"samples": None}, "samples=None"),
        ({"window": 0}, "window=0"),
        ({"window": -1}, "window=-1"),
        ({"window": 1.5}, "window=1.5"),
        ({"window": None}, "window=None"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"batch_size": -1}, "batch_size=-1"),
        ({"batch_size": 1.0}, "batch_size=1.0"),
        ({"kind": "foo"}, "'foo'"),
        ({"kind": None}, "None"),
        ({"kind": "Hidden"}, "'Hidden'"),
        ({"patch_seed": -1}, "seed=-1"),
        ({"patch_seed": None}, "seed=None"),
        ({"patch_seed": 0.5}, "seed=0.5"),
        ({"start_layer": 3}, "start_layer=3"),
        ({"start_layer": -1}, "start_layer=-1"),
        ({"start_layer": 2, "end_layer": 2}, "end_layer=2"),
        ({"start_layer": 2, "end_layer": 1}, "end_layer=1"),
        ({"end_layer": 0}, "end_layer=0"),
        ({"end_layer": 4}, "end_layer=4"),
        ({"end_layer": -1}, "end_layer=-1"),
        ({"answer_id_override": -1}, "-1"),
        ({"answer_id_override": VOCAB_SIZE}, str(VOCAB_SIZE)),
        ({"answer_id_override": 1.5}, "answer_id=1.5"),
        ({"occurrence": "second"}, "'second'"),
        ({"engine": "quick"}, "'quick'"),
    ],
    ids=str,
)
def test_arguments_out_of_range_are_refused_by_value(change: dict[str, Any], words: str) -> None:
    tracer = tiny_tracer("gpt2")
    before = fingerprint(tracer.model)
    with pytest.raises(SettingsError) as caught:
        tracer.calculate_hidden_flow(PROMPT, SUBJECT, **change)
    name, _, value = words.partition("=")
    # Values of another type have a different message.
    assert words in str(caught.value) or f"{name} must be an integer (given: {value})" in str(caught.value)
    assert isinstance(caught.value, CausalTracerError)
    assert isinstance(caught.value, ValueError)
    assert_unchanged(tracer.model, before)


@pytest.mark.parametrize(
    ("prompt", "subject", "error"),
    [("", "x", PromptError), ("   ", None, PromptError), (PROMPT, "", SubjectError), (PROMPT, "Eiffel", SubjectError)],
)
def test_prompts_that_cannot_be_traced_are_refused(prompt: str, subject: str | None, error: type[Exception]) -> None:
    with pytest.raises(error):
        tiny_tracer("gpt2").calculate_hidden_flow(prompt, subject, samples=1)
    with pytest.raises(error):
        tiny_tracer("gpt2").calculate_hidden_flows([HiddenFlowQuery(prompt, subject)], samples=1)


def test_numbers_of_numpy_are_numbers() -> None:
    tracer = tiny_tracer("gpt2")
    flow = tracer.calculate_hidden_flow(
        PROMPT, SUBJECT, samples=np.int64(2), window=np.int32(1), patch_seed=np.int64(1), batch_size=np.int16(8)
    )
    assert flow.settings.samples == 2
    assert type(flow.settings.samples) is int
    same_numbers(flow, tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2))


@pytest.mark.parametrize("device", ["cuda", "mps", "cuda:0", torch.device("cuda", 1)])
def test_a_model_on_another_device_is_refused_with_the_line_to_write(device: Any) -> None:
    with pytest.raises(SettingsError) as caught:
        CausalTracer(tiny_model("gpt2"), tiny_tokenizer(), noise=1.0, device=device)
    assert f"model.to({str(device)!r})" in str(caught.value)
    assert "'cpu'" in str(caught.value)


def test_a_device_that_is_none_is_refused() -> None:
    with pytest.raises(SettingsError):
        CausalTracer(tiny_model("gpt2"), tiny_tokenizer(), noise=1.0, device="gpu")


@pytest.mark.parametrize("device", [None, "cpu", torch.device("cpu")])
def test_the_models_own_device_is_taken(device: Any) -> None:
    assert CausalTracer(tiny_model("gpt2"), tiny_tokenizer(), noise=1.0, device=device).device.type == "cpu"


# Progress, streaming and cancelling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["auto", "full"])
def test_progress_rises_from_nothing_to_its_total(engine: Any) -> None:
    seen: list[tuple[int, int]] = []
    tracer = tiny_tracer("gpt2")
    flow = tracer.calculate_hidden_flow(
        PROMPT,
        SUBJECT,
        samples=3,
        batch_size=8,
        engine=engine,
        progress=lambda done, total: seen.append((done, total)),
    )
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert {total for _, total in seen} == {3 * flow.scores.numel()}
    assert seen[0][0] == 0
    assert seen[-1][0] == seen[-1][1]
    assert len(seen) > 3


def test_progress_over_several_prompts_rises_and_ends_at_its_total() -> None:
    seen: list[tuple[int, int]] = []
    queries = [
        HiddenFlowQuery(PROMPT, SUBJECT),
        HiddenFlowQuery("Look: Paris", "Paris"),
        HiddenFlowQuery(OTHER_PROMPT, OTHER_SUBJECT),
    ]
    tiny_tracer("gpt2").calculate_hidden_flows(queries, samples=2, progress=lambda *pair: seen.append(pair))
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert all(d <= total for d, total in seen)
    assert seen[-1][0] == seen[-1][1]


def test_progress_over_kinds_rises_and_ends_at_its_total() -> None:
    seen: list[tuple[int, int]] = []
    tiny_tracer("gpt2").trace_maps(
        TraceRequest(PROMPT, SUBJECT, samples=2),
        {kind: MapSpec(kind) for kind in KINDS},
        RunOptions(batch_size=16),
        progress=lambda *pair: seen.append(pair),
    )
    done = [d for d, _ in seen]
    assert done == sorted(done)
    assert len({total for _, total in seen}) == 1
    assert seen[-1][0] == seen[-1][1]


@pytest.mark.parametrize("engine", ["auto", "full"])
def test_a_stream_fills_in_the_map_and_ends_with_the_whole_of_it(engine: Any) -> None:
    tracer = tiny_tracer("gpt2")
    request, options = TraceRequest(PROMPT, SUBJECT, samples=3), RunOptions(batch_size=8, engine=engine)
    updates = list(tracer.stream(request, {"map": MapSpec("mlp", 2)}, options))
    flows = [update.flows["map"] for update in updates]
    expected = tracer.calculate_hidden_flow(PROMPT, SUBJECT, "mlp", samples=3, window=2, batch_size=8, engine=engine)
    assert updates[0].done == 0
    assert flows[0].scores.isnan().all()
    known = [int((~flow.sample_scores.isnan()).sum()) for flow in flows]
    assert known == [update.done for update in updates]
    assert known == sorted(known)
    assert torch.equal(flows[-1].sample_scores, expected.sample_scores)
    for flow in flows:
        cells = ~flow.scores.isnan()
        assert torch.equal(flow.scores[cells], expected.scores[cells]), "a mean over some samples was shown"


@pytest.mark.parametrize("engine", ["auto", "full"])
@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
def test_a_stream_left_early_leaves_the_model_bit_identical(name: str, engine: Any) -> None:
    tracer = tiny_tracer(name)
    before = fingerprint(tracer.model)
    options = RunOptions(batch_size=5, engine=engine)
    updates = tracer.stream(TraceRequest(PROMPT, SUBJECT, samples=3), {"map": MapSpec()}, options)
    next(updates)
    next(updates)
    assert_unchanged(tracer.model, before)
    updates.close()  # type: ignore[attr-defined]
    assert_unchanged(tracer.model, before)
    again = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=3, batch_size=5, engine=engine)
    assert not again.scores.isnan().any()


@pytest.mark.parametrize("engine", ["auto", "full"])
@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
def test_cancelling_raises_and_leaves_the_model_bit_identical(name: str, engine: Any) -> None:
    tracer = tiny_tracer(name)
    expected = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=3, batch_size=5, engine=engine)
    before = fingerprint(tracer.model)
    for allowed in range(4):
        asked: list[None] = []

        def cancelled(asked: list[None] = asked, allowed: int = allowed) -> bool:
            asked.append(None)
            return len(asked) > allowed

        with pytest.raises(TraceCancelled):
            tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=3, batch_size=5, engine=engine, cancelled=cancelled)
        assert_unchanged(tracer.model, before)
    after = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=3, batch_size=5, engine=engine)
    assert torch.equal(after.sample_scores, expected.sample_scores)


def test_an_error_in_the_callers_progress_leaves_the_model_as_it_was() -> None:
    tracer = tiny_tracer("gpt2")
    before = fingerprint(tracer.model)

    def fail(done: int, _total: int) -> None:
        if done:
            raise KeyError("in progress")

    with pytest.raises(KeyError, match="in progress"):
        tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=1, batch_size=4, progress=fail)
    assert_unchanged(tracer.model, before)


def test_weights_changed_between_two_traces_are_seen() -> None:
    """After a fact was edited in the model, tracing it again must not use the old clean run."""
    model = build_tiny_model("gpt2")
    tracer = CausalTracer(model, tiny_tokenizer(), noise=1.0)
    before = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=1, answer_id_override=7)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.weight.mul_(-1)
    found = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=1, answer_id_override=7)
    expected = CausalTracer(model, tiny_tokenizer(), noise=1.0).calculate_hidden_flow(
        PROMPT, SUBJECT, samples=1, answer_id_override=7
    )
    assert before.high_score != expected.high_score
    same_numbers(found, expected)


def test_a_model_made_in_inference_mode_is_traced() -> None:
    """The cache of clean runs uses the tensors' version counters, which these tensors do not have."""
    with torch.inference_mode():
        model = build_tiny_model("gpt2")
    flow = CausalTracer(model, tiny_tokenizer()).calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    same_numbers(flow, tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, samples=2))
