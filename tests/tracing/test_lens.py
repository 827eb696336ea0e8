"""The logit lens compared with hooks by hand, its identities, its errors, and mutants of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import tiny_configs
from causal_tracer import CausalTracer, LogitLens, MapSpec, OtherPrompt, SamplesUntil, TraceRequest
from causal_tracer.errors import ModelStructureError, PromptError, SettingsError, TraceCancelled
from causal_tracer.metrics.metric import AnswerRank
from causal_tracer.model.probing import probe_ids
from causal_tracer.prompts.chat import ChatText
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.sweep.read_out import ReadOut
from causal_tracer.tracing import lens as engine
from tests.support.chat_templates import PLAIN
from tests.support.hand_hooks import clean_by_hand, rome_noise
from tests.support.hand_lens import FINAL_NORMS, assert_lens, lens_by_hand, putting
from tests.support.real_models import GEMMA, SMOLLM, real_tracer
from tests.support.tiny_models import (
    ARCHITECTURES,
    EVERY_ARCHITECTURE,
    FAMILIES,
    PROMPT,
    SUBJECT,
    VOCAB_SIZE,
    build_tiny_model,
    tiny_model,
    tiny_tokenizer,
    tiny_tracer,
)
from tests.support.unchanged import assert_unchanged, fingerprint

SAMPLES, SEED = 2, 3
LONGER = "Look: in the city of Seattle, the Steve Jobs river is in the city"


def ids_of(name: str) -> list[int]:
    found: list[int] = tiny_tracer(name).tokenizer(PROMPT).input_ids
    return found


# The clean run --------------------------------------------------------------------------------------------------------


def check_equals_hooks_by_hand(name: str) -> None:
    expected = lens_by_hand(tiny_model(name), name, ids_of(name))
    lens = tiny_tracer(name).lens(PROMPT)
    assert_lens(lens, expected)
    # If all layers gave the same, equal numbers would prove nothing.
    assert float((expected[:, 1:] - expected[:, :-1]).abs().max()) > 0.01


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_equals_hooks_by_hand(name: str) -> None:
    check_equals_hooks_by_hand(name)
    assert tiny_tracer(name).context.traced.final_norm == FINAL_NORMS[name]


def test_all_families_are_compared() -> None:
    assert set(FINAL_NORMS) == set(ARCHITECTURES)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_the_last_layer_says_what_the_model_says(name: str) -> None:
    with torch.no_grad():
        logits = tiny_model(name)(torch.tensor([ids_of(name)])).logits[0]
    lens = tiny_tracer(name).lens(PROMPT, top=VOCAB_SIZE)
    found = torch.zeros_like(logits).scatter(-1, lens.top_ids[:, -1], lens.top_probabilities[:, -1])
    torch.testing.assert_close(found, logits.softmax(dim=-1), rtol=0, atol=1e-6)
    assert lens.answer_id == int(logits[-1].argmax())
    assert int(lens.answer_ranks[-1, -1]) == 1
    rank = AnswerRank(lens.answer_id)(logits[:, None])
    torch.testing.assert_close(lens.answer_ranks[:, -1].float(), rank)


def test_the_model_is_left_as_it_was() -> None:
    model = build_tiny_model("gpt2")
    tracer = CausalTracer(model, tiny_tokenizer())
    before = fingerprint(model)
    tracer.lens(PROMPT)
    tracer.lens(PROMPT, subject=SUBJECT, restored=(5, 1), samples=2)
    assert_unchanged(model, before)


def test_small_chunks_give_the_same_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    tracer = tiny_tracer("gpt2")
    whole = tracer.lens(PROMPT), tracer.lens(PROMPT, subject=SUBJECT, restored=(5, 1), samples=3)
    monkeypatch.setattr(ReadOut, "most_rows", property(lambda _: 4))
    parts = tracer.lens(PROMPT), tracer.lens(PROMPT, subject=SUBJECT, restored=(5, 1), samples=3)
    for one, other in zip(whole, parts, strict=True):
        torch.testing.assert_close(other.top_probabilities, one.top_probabilities, rtol=0, atol=1e-6)
        torch.testing.assert_close(other.entropies, one.entropies, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_read_in_float32(dtype: torch.dtype) -> None:
    tracer = CausalTracer(copy.deepcopy(tiny_model("llama")).to(dtype), tiny_tokenizer())
    lens, exact = tracer.lens(PROMPT), tiny_tracer("llama").lens(PROMPT)
    assert lens.top_probabilities.dtype == torch.float32
    torch.testing.assert_close(lens.answer_probabilities, exact.answer_probabilities, rtol=0, atol=0.05)
    torch.testing.assert_close(lens.entropies, exact.entropies, rtol=0, atol=0.1)


# Prompts and answers --------------------------------------------------------------------------------------------------


def test_a_prompt_needs_no_subject() -> None:
    lens = tiny_tracer("gpt2").lens("in the city of")
    assert lens.input_tokens[-1] == " of"
    assert lens.run == "clean run"


def test_a_conversation_and_a_ready_prompt_are_read() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.chat_template = PLAIN
    tracer = CausalTracer(tiny_model("gpt2"), tokenizer)
    lens = tracer.lens(ChatText.from_user("the Space Needle"))
    assert lens.entropies.shape[0] == len(lens.input_tokens) > 4
    prompt = engine.whole_prompt(tracer.context, PROMPT)
    assert tracer.lens(prompt).to_dict() == tracer.lens(PROMPT).to_dict()


def test_an_answer_is_a_text_or_an_id() -> None:
    tracer = tiny_tracer("gpt2")
    by_text = tracer.lens(PROMPT, " Rome")
    assert by_text.answer == " Rome"
    by_id = tracer.lens(PROMPT, by_text.answer_id)
    assert torch.equal(by_id.answer_probabilities, by_text.answer_probabilities)
    request = TraceRequest(PROMPT, answer=" city")
    assert tracer.lens(request).answer == " city"
    assert tracer.lens(request, " Rome").answer == " Rome"
    assert tracer.lens(PROMPT, answer_id=7).answer_id == 7


def test_of_an_answer_of_several_tokens_the_first_is_read() -> None:
    lens = tiny_tracer("gpt2").lens(PROMPT, " Rome city")
    assert lens.answer == " Rome"
    assert lens.entropies.shape[0] == len(ids_of("gpt2"))
    assert any("2 tokens" in note and "' Rome'" in note for note in lens.notes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"top": 0}, "top=0 is too small"),
        ({"top": VOCAB_SIZE + 1}, f"Give at most {VOCAB_SIZE}"),
        ({"answer": 10**6}, "answer_id=1000000 is out of range"),
        ({"answer": 2.5}, "must be an integer"),
        ({"restored": 3}, "must be a list"),
        ({"restored": (1,)}, r"restored must be \(row, layer\)"),
        ({"restored": (1, 99), "subject": SUBJECT}, "a layer from 0 to 2"),
        ({"restored": (99, 1), "subject": SUBJECT}, "a row from 0 to"),
        ({"corrupted": 3}, "must be True or False"),
        ({"corrupted": True, "samples": SamplesUntil(0.1)}, "fixed number of samples"),
        ({"wrong": 3}, "wrong is not a setting here"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        tiny_tracer("gpt2").lens(PROMPT, **changes)


def test_an_empty_prompt_is_refused() -> None:
    with pytest.raises(PromptError):
        tiny_tracer("gpt2").lens(" ")


# Runs with noise ------------------------------------------------------------------------------------------------------


def noisy_by_hand(name: str, restored: dict[str, list[int]]) -> Tensor:
    """Return the mean over samples of probabilities in corrupted runs with modules restored at some tokens."""
    model, ids, tracer = tiny_model(name), ids_of(name), tiny_tracer(name)
    start, end = tracer.trace(PROMPT, SUBJECT, samples=1, end_layer=1).subject_range
    _, clean = clean_by_hand(model, name, ids)
    width = next(iter(clean.values())).shape[1]
    hooks = {module: putting({token: clean[module][token] for token in tokens}) for module, tokens in restored.items()}
    runs = []
    for noise in rome_noise(SEED, SAMPLES, end - start, width, tracer.noise):

        def corrupt(embedded: Tensor, noise: Tensor = noise) -> Tensor:
            changed = embedded.clone()
            changed[0, start:end] += noise
            return changed

        runs.append(lens_by_hand(model, name, ids, {FAMILIES[name].embedding: corrupt, **hooks}))
    return torch.stack(runs).mean(dim=0)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_runs_with_noise_equal_hooks_by_hand(name: str) -> None:
    tracer, family = tiny_tracer(name), FAMILIES[name]
    settings: dict[str, Any] = {"subject": SUBJECT, "samples": SAMPLES, "seed": SEED}
    corrupted = tracer.lens(PROMPT, corrupted=True, **settings)
    assert_lens(corrupted, noisy_by_hand(name, {}))
    assert corrupted.samples == SAMPLES
    hidden = tracer.lens(PROMPT, restored=(5, 1), **settings)
    assert_lens(hidden, noisy_by_hand(name, {family.site_names("hidden")[1]: [5]}))
    spec = MapSpec("mlp", 2)
    mlp = tracer.lens(PROMPT, restored=(-3, 1), spec=spec, **settings)
    names = family.site_names("mlp")
    assert_lens(mlp, noisy_by_hand(name, {names[0]: [len(ids_of(name)) - 3], names[1]: [len(ids_of(name)) - 3]}))
    assert float((hidden.answer_probabilities - corrupted.answer_probabilities).abs().max()) > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
def test_the_last_cell_of_a_noisy_lens_is_the_maps_score(name: str) -> None:
    tracer = tiny_tracer(name)
    request = TraceRequest(PROMPT, SUBJECT, samples=3)
    flow = tracer.trace(request)
    for row, layer in ((4, 1), (5, 0), (len(flow.input_tokens) - 1, 2)):
        lens = tracer.lens(request, restored=(row, layer))
        assert lens.answer_id == flow.answer_id
        assert float(lens.answer_probabilities[-1, -1]) == pytest.approx(float(flow.scores[row, layer]), abs=1e-5)
    corrupted = tracer.lens(request, corrupted=True)
    assert float(corrupted.answer_probabilities[-1, -1]) == pytest.approx(flow.low_score, abs=1e-5)
    assert corrupted.run == "corrupted run, mean of 3 samples"


@pytest.mark.parametrize(
    ("changes", "spec", "words"),
    [
        ({"second": OtherPrompt(LONGER, "Steve Jobs"), "metric": "probability"}, MapSpec("mlp", 2), "patched"),
        (
            {"second": OtherPrompt(LONGER, "Steve Jobs"), "metric": "probability", "direction": "corrupt"},
            MapSpec("attention", 2),
            "patched",
        ),
        ({"direction": "corrupt", "corruption": "none"}, MapSpec("mlp", 1, source="zero"), "set to zero"),
        ({"direction": "corrupt", "corruption": "none"}, MapSpec("knockout", 3), "blocked"),
        ({"direction": "corrupt", "corruption": "none"}, MapSpec("span_knockout", 3), "attention to subject blocked"),
    ],
    ids=["restored between prompts", "corrupted between prompts", "ablation", "knockout", "spans"],
)
def test_the_lens_of_a_cell_of_any_experiment_ends_at_its_score(
    changes: dict[str, Any], spec: MapSpec, words: str
) -> None:
    tracer = tiny_tracer("llama")
    request = TraceRequest(PROMPT, SUBJECT, **changes)
    flow = tracer.trace(request, spec=spec)
    row = 0 if spec.kind == "span_knockout" else flow.subject_range[1] - 1
    lens = tracer.lens(request, restored=(row, 1), spec=spec)
    assert words in lens.run
    found = float(lens.answer_probabilities[-1, -1])
    assert found == pytest.approx(float(flow.scores[row, 1]), abs=1e-5)
    assert abs(found - flow.high_score) > 1e-4


def test_the_lens_of_a_second_prompt_has_its_tokens() -> None:
    request = TraceRequest(PROMPT, SUBJECT, second=OtherPrompt(LONGER, "Steve Jobs"))
    lens = tiny_tracer("llama").lens(request, corrupted=True, answer=7)
    alone = tiny_tracer("llama").lens(LONGER, answer=7)
    assert lens.input_tokens == alone.input_tokens
    torch.testing.assert_close(lens.answer_probabilities, alone.answer_probabilities)


def test_heads_and_the_other_direction_go_through_the_same_door() -> None:
    tracer = tiny_tracer("gpt2")
    request = TraceRequest(PROMPT, SUBJECT, samples=2, direction="corrupt")
    for spec in (MapSpec("head", token=5), MapSpec("hidden", severed="mlp")):
        flow = tracer.trace(request, spec=spec)
        lens = tracer.lens(request, restored=(3, 1), spec=spec)
        assert float(lens.answer_probabilities[-1, -1]) == pytest.approx(float(flow.scores[3, 1]), abs=1e-5)
        assert "corrupted" in lens.run
    assert "head 3" in tracer.lens(request, restored=(3, 1), spec=MapSpec("head", token=5)).run


# Models ---------------------------------------------------------------------------------------------------------------


def configured(model_type: str) -> tuple[CausalTracer, Prompt]:
    """A tiny model of a type, and a prompt within its vocabulary."""
    tracer = CausalTracer(tiny_configs.build(model_type), tiny_tokenizer(), noise=1.0)
    ids = tuple(probe_ids(tracer.model, 8)[0].tolist())
    return tracer, Prompt("a prompt", ids, tuple("abcdefgh"), "b", (1, 2), False, 1)


@pytest.mark.slow
@pytest.mark.parametrize("model_type", ["gemma2", "gemma3n_text", "hy_v4", "zaya", "mamba", "zamba2", "gemma4_text"])
def test_models_of_other_builds_say_at_last_what_they_say(model_type: str) -> None:
    """Models with soft caps, several streams before or after the token dimension, router states, or no attention."""
    tracer, prompt = configured(model_type)
    lens = tracer.lens(prompt, top=3)
    with torch.no_grad():
        own = tracer.model(torch.tensor([prompt.input_ids])).logits[0].float().softmax(dim=-1)
    torch.testing.assert_close(own.gather(-1, lens.top_ids[:, -1]), lens.top_probabilities[:, -1], rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_model_without_a_final_norm_is_refused_with_what_was_found() -> None:
    tracer, prompt = configured("openai-gpt")
    with pytest.raises(ModelStructureError, match=r"No final norm was found in OpenAIGPT.*its head runs no module"):
        tracer.lens(prompt)


def test_a_model_whose_logits_depend_on_more_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_tiny_model("gpt2")
    own = model.forward

    def forward(input_ids: Tensor, **kwargs: Any) -> Any:
        output = own(input_ids, **kwargs)
        output.logits = output.logits + 0.01 * input_ids.shape[1]
        return output

    tracer = CausalTracer(model, tiny_tokenizer())
    monkeypatch.setattr(model, "forward", forward)
    with pytest.raises(ModelStructureError, match="The model's logits depend on more than the last block's output"):
        tracer.lens(PROMPT)


@pytest.mark.model
@pytest.mark.parametrize("name", [GEMMA, SMOLLM])
def test_real_models_equal_the_norm_and_the_head_by_hand(name: str) -> None:
    tracer = real_tracer(name)
    prompt = "The Space Needle is located in the city of"
    lens = tracer.lens(prompt, "Seattle")
    model: Any = tracer.model
    with torch.no_grad():
        found = model(torch.tensor([tracer.tokenizer(prompt).input_ids]), output_hidden_states=True)
        # The last one is already normalised.
        states = [*(model.model.norm(state[0]) for state in found.hidden_states[1:-1]), found.hidden_states[-1][0]]
        expected = torch.stack([model.lm_head(state).double().softmax(dim=-1) for state in states], dim=1)
    assert_lens(lens, expected)
    assert lens.answer == " Seattle"


# Mutants --------------------------------------------------------------------------------------------------------------


class WithoutNorm(ReadOut):
    """Leave out the final norm."""

    def __call__(self, states: Tensor) -> Tensor:
        with skipped(self.traced.modules[self.traced.final_norm]):
            return super().__call__(states)


@contextmanager
def skipped(module: Any) -> Iterator[None]:
    handle = module.register_forward_hook(lambda _module, args, _output: args[0])
    yield
    handle.remove()


class OneLayerLate(ReadOut):
    """Read the previous cell's state; in the first layer, that of the previous token's last layer."""

    def __call__(self, states: Tensor) -> Tensor:
        return super().__call__(states.roll(1, 0))


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
@pytest.mark.parametrize("mutant", [WithoutNorm, OneLayerLate])
def test_a_wrong_lens_is_caught_at_each_call_and_by_hand(
    mutant: type[ReadOut], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "ReadOut", mutant)
    with pytest.raises(ModelStructureError, match="is allowed"):
        tiny_tracer(name).lens(PROMPT)
    monkeypatch.setattr(engine, "_require_own_logits", lambda *_: None)
    with pytest.raises(AssertionError):
        check_equals_hooks_by_hand(name)


def test_a_rank_that_counts_from_zero_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = engine.distributions_of
    monkeypatch.setattr(
        engine, "distributions_of", lambda *given: (made := right(*given))._replace(answer_ranks=made.answer_ranks - 1)
    )
    with pytest.raises(AssertionError):
        check_equals_hooks_by_hand("gpt2")


@pytest.mark.parametrize("run", [{}, {"corrupted": True}, {"restored": (2, 1)}], ids=str)
def test_a_lens_can_be_cancelled_between_groups_of_cells(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    monkeypatch.setattr(ReadOut, "most_rows", property(lambda self: 6))
    asked: list[bool] = []

    def cancelled() -> bool:
        asked.append(len(asked) == 2)
        return asked[-1]

    tracer = tiny_tracer("gpt2")
    given = {"subject": SUBJECT, "samples": 2, **run}
    with pytest.raises(TraceCancelled, match="The lens was cancelled"):
        tracer.lens(PROMPT, cancelled=cancelled, **given)
    assert asked == [False, False, True]
    assert tracer.lens(PROMPT, cancelled=lambda: False, **given).to_dict() == tracer.lens(PROMPT, **given).to_dict()
    with pytest.raises(SettingsError, match="cancelled"):
        tracer.lens(PROMPT, cancelled=True, **given)


def test_the_type_of_the_result() -> None:
    assert isinstance(tiny_tracer("gpt2").lens(PROMPT), LogitLens)
