"""Noise: ROME's draws, the tokens that get it, its automatic level, and invalid levels."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor

from causal_tracer import CausalTracer
from causal_tracer.corruption import GaussianNoise, SubjectsNoise
from causal_tracer.errors import NumericsError, SettingsError
from causal_tracer.experiment.embeddings import corruption_edit
from causal_tracer.experiment.noise_levels import embedding_scale, noise_level
from causal_tracer.prompts.prompt import make_prompt
from tests.support.tiny_models import (
    D_MODEL,
    EVERY_ARCHITECTURE,
    PROMPT,
    SUBJECT,
    VOCAB_SIZE,
    build_tiny_model,
    tiny_model,
    tiny_tokenizer,
    tiny_tracer,
)


@pytest.mark.parametrize("seed", [0, 1, 2, 2**32 - 1])
@pytest.mark.parametrize("level", [0.0, 0.1, 1, 3.5])
def test_draws_are_numpys_as_in_rome(seed: int, level: float) -> None:
    expected = np.random.RandomState(seed).randn(5, 3, 7) * level
    drawn = GaussianNoise(level, seed).draw(5, 3, 7)
    assert drawn.dtype == torch.float32
    assert drawn.shape == (5, 3, 7)
    np.testing.assert_array_equal(drawn.numpy(), expected.astype(np.float32))


def test_fewer_samples_are_the_first_of_more() -> None:
    many, few = (GaussianNoise(1.0, 1).draw(samples, 2, 4) for samples in (10, 3))
    assert torch.equal(many[:3], few)


def test_numpys_global_state_is_not_touched() -> None:
    np.random.seed(0)
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]
    GaussianNoise(1.0, 1).draw(2, 2, 2)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]


@pytest.mark.parametrize("level", [-0.1, math.nan, math.inf, -math.inf])
def test_levels_that_are_none_are_refused_by_value(level: float) -> None:
    with pytest.raises(SettingsError, match=f"noise={level}"):
        GaussianNoise(level, 1)
    with pytest.raises(SettingsError, match=f"noise={level}"):
        CausalTracer(tiny_model("gpt2"), tiny_tokenizer(), noise=level)


@pytest.mark.parametrize("level", ["much", [1.0], {}])
def test_a_level_that_is_no_number_is_refused(level: Any) -> None:
    with pytest.raises(SettingsError, match="noise="):
        CausalTracer(tiny_model("gpt2"), tiny_tokenizer(), noise=level)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_numpy_does_not_take_are_refused_by_value(seed: int) -> None:
    with pytest.raises(SettingsError, match=f"seed={seed}"):
        GaussianNoise(1.0, seed)
    with pytest.raises(SettingsError, match=f"seed={seed}"):
        tiny_tracer("gpt2").calculate_hidden_flow(PROMPT, SUBJECT, patch_seed=seed, samples=1)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_the_automatic_level_is_three_sd_of_the_embeddings_output(name: str) -> None:
    model = tiny_model(name)
    with torch.no_grad():
        output = model.get_input_embeddings()(torch.arange(VOCAB_SIZE))
    tracer = tiny_tracer(name)
    assert tracer.noise == pytest.approx(3 * float(output.double().std()), rel=1e-6)
    assert tracer.context.noise_rule.startswith("3 sd")


def test_the_automatic_level_sees_that_gemma_scales_in_its_module() -> None:
    weight_sd = float(tiny_model("gemma3_text").get_input_embeddings().weight.detach().std())
    assert tiny_tracer("gemma3_text").noise == pytest.approx(3 * weight_sd * math.sqrt(D_MODEL), rel=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 390, 391, 392])
def test_the_scale_does_not_depend_on_the_chunks_it_is_taken_in(chunk: int) -> None:
    traced = tiny_tracer("gemma3_text").context.traced
    assert embedding_scale(traced, chunk) == pytest.approx(embedding_scale(traced), rel=1e-12)


def test_the_automatic_level_holds_where_the_mean_is_far_from_zero() -> None:
    model = build_tiny_model("llama")
    with torch.no_grad():
        model.model.embed_tokens.weight += 100
    traced = CausalTracer(model, tiny_tokenizer(), noise=0).context.traced
    expected = 3 * float(model.model.embed_tokens.weight.detach().double().std())
    assert 3 * embedding_scale(traced) == pytest.approx(expected, rel=1e-4)


def test_an_embedding_with_nan_gives_an_error_that_says_so() -> None:
    model = build_tiny_model("gpt2")
    traced = CausalTracer(model, tiny_tokenizer(), noise=0).context.traced
    with torch.no_grad():
        model.transformer.wte.weight[300, 0] = torch.nan
    with pytest.raises(NumericsError, match="wte"):
        embedding_scale(traced)


def test_noise_goes_on_the_subjects_tokens_and_nowhere_else() -> None:
    prompt = make_prompt(tiny_tokenizer(), PROMPT, SUBJECT)
    start, end = prompt.subject_range
    noise = GaussianNoise(1.0, 1).draw(3, end - start, 4)
    embedded = torch.randn(4, len(prompt), 4, generator=torch.Generator().manual_seed(0))
    untouched = embedded.clone()
    subject = embedded[0, start:end]
    corrupted = corruption_edit(subject + noise, prompt, torch.tensor([2, 0, 1, 2]))(embedded)
    assert corrupted is not None
    assert torch.equal(embedded, untouched), "the embedding's output was written into"
    assert torch.equal(corrupted[:, :start], embedded[:, :start])
    assert torch.equal(corrupted[:, end:], embedded[:, end:])
    for row, sample in enumerate([2, 0, 1, 2]):
        assert torch.equal(corrupted[row, start:end], subject + noise[sample])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_the_sum_is_rounded_once_to_the_embeddings_dtype(dtype: torch.dtype) -> None:
    prompt = make_prompt(tiny_tokenizer(), PROMPT, SUBJECT)
    start, end = prompt.subject_range
    noise = GaussianNoise(0.01, 1).draw(1, end - start, 4)
    embedded = torch.full((1, len(prompt), 4), 1.0, dtype=dtype)
    corrupted = corruption_edit(embedded[0, start:end].float() + noise, prompt, torch.tensor([0]))(embedded)
    assert corrupted is not None
    assert corrupted.dtype == dtype
    assert torch.equal(corrupted[0, start:end], (1.0 + noise[0]).to(dtype))


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text", "mixtral"])
def test_a_bfloat16_model_is_traced_in_bfloat16_and_read_in_float32(name: str) -> None:
    model = build_tiny_model(name).to(torch.bfloat16)
    seen: list[torch.dtype] = []
    model.get_input_embeddings().register_forward_hook(lambda _m, _a, output: seen.append(output.dtype))
    tracer = CausalTracer(model, tiny_tokenizer())
    flow = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    assert set(seen) == {torch.bfloat16}
    assert flow.settings.dtype == "bfloat16"
    assert flow.scores.dtype == flow.sample_scores.dtype == torch.float32
    assert all(values.dtype == torch.float32 for values in flow.layer_outputs.values())
    reference = tiny_tracer(name).calculate_hidden_flow(PROMPT, SUBJECT, samples=2, answer_id_override=flow.answer_id)
    assert flow.scores == pytest.approx(reference.scores, abs=0.1)


def test_an_embedding_narrower_than_the_residual_stream_gets_noise_of_its_own_width() -> None:
    """In OPT-350M the embedding has width 512 and the blocks 1024. The noise has the width of the embedding."""
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=D_MODEL,
        word_embed_proj_dim=16,
        ffn_dim=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
        do_layer_norm_before=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    model = transformers.OPTForCausalLM(config).eval()
    tracer = CausalTracer(model, tiny_tokenizer(), noise=1.0)
    seen: list[Tensor] = []
    handle = model.model.decoder.project_in.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    flow = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2, batch_size=2, engine="full")
    handle.remove()
    start, end = flow.subject_range
    clean = seen[0][0, start:end]
    noise = torch.tensor(np.random.RandomState(1).randn(2, end - start, 16), dtype=torch.float32)
    corrupted = next(given for given in seen if given.shape[0] == 2)
    torch.testing.assert_close(corrupted[:, start:end], clean + noise, rtol=0, atol=1e-6)


def test_noise_as_a_whole_number_is_noise() -> None:
    model, tokenizer = tiny_model("gpt2"), tiny_tokenizer()
    whole, real = (CausalTracer(model, tokenizer, noise=level) for level in (1, 1.0))
    flows = [tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=2) for tracer in (whole, real)]
    assert torch.equal(flows[0].scores, flows[1].scores)
    assert abs(flows[0].total_effect) > 1e-3


def test_frozen_rules_cannot_be_changed_into_bad_ones() -> None:
    with pytest.raises(SettingsError):
        replace(GaussianNoise(1.0, 1), level=-1.0)


@pytest.mark.parametrize("rule", ["2 sigma", "2σ", " 2.0 s ", "2sd", "2 sigmas"])
def test_noise_may_be_a_multiple_of_sigma(rule: str) -> None:
    traced = tiny_tracer("llama").context.traced
    level, said = noise_level(traced, tiny_tokenizer(), rule)
    assert level == pytest.approx(2 * embedding_scale(traced))
    assert said == "2 sd of the embedding output"


def test_noise_may_follow_the_embeddings_of_given_subjects() -> None:
    traced = tiny_tracer("llama").context.traced
    subjects = ("Space Needle", "Steve Jobs")
    level, said = noise_level(traced, tiny_tokenizer(), SubjectsNoise(subjects))
    ids = [token for subject in subjects for token in tiny_tokenizer()(subject, add_special_tokens=False)["input_ids"]]
    with torch.no_grad():
        expected = 3 * float(traced.embedding(torch.tensor([ids])).double().std())
    assert level == pytest.approx(expected, rel=1e-6)
    assert "2 subjects" in said


@pytest.mark.parametrize("rule", ["loud", "-1 sigma", "", [1], -0.5, float("nan"), SubjectsNoise(())])
def test_other_rules_are_refused(rule: object) -> None:
    with pytest.raises(SettingsError):
        noise_level(tiny_tracer("llama").context.traced, tiny_tokenizer(), rule)  # type: ignore[arg-type]
