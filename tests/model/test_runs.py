"""The clean run and the corrupted run."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from causal_tracer.corruption import GaussianNoise
from causal_tracer.errors import NumericsError
from causal_tracer.experiment.base_run import corrupted_run
from causal_tracer.metrics.metric import AnswerProbability
from causal_tracer.model.hooks import first_tensor, replace_first_tensor
from causal_tracer.model.runs import clean_run, read_logits
from causal_tracer.prompts.prompt import make_prompt
from tests.support.hand_hooks import cell_by_hand, clean_by_hand, rome_noise
from tests.support.tiny_models import (
    EVERY_ARCHITECTURE,
    FAMILIES,
    PROMPT,
    SUBJECT,
    build_tiny_model,
    tiny_model,
    tiny_tokenizer,
    tiny_tracer,
)
from tests.support.unchanged import assert_unchanged, fingerprint


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_the_clean_run_is_the_plain_model(name: str) -> None:
    traced = tiny_tracer(name).context.traced
    prompt = make_prompt(tiny_tokenizer(), PROMPT, SUBJECT)
    run = clean_run(traced, prompt.input_ids)
    with torch.no_grad():
        logits = tiny_model(name)(torch.tensor([prompt.input_ids])).logits[0, -1]
    torch.testing.assert_close(run.probabilities, logits.softmax(dim=-1), rtol=0, atol=1e-6)
    assert run.top_id == int(logits.argmax())
    assert run.input_ids.tolist() == list(prompt.input_ids)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_clean_activations_equal_the_outputs_of_the_pinned_modules(name: str) -> None:
    prompt = make_prompt(tiny_tokenizer(), PROMPT, SUBJECT)
    run = clean_run(tiny_tracer(name).context.traced, prompt.input_ids)
    _, by_hand = clean_by_hand(tiny_model(name), name, prompt.input_ids)
    assert run.activations.keys() == by_hand.keys()
    for module, values in by_hand.items():
        torch.testing.assert_close(run.activations[module].reshape(len(prompt), -1), values, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text"])
def test_attention_and_mlp_outputs_add_up_to_what_a_block_adds(name: str) -> None:
    """Holds for plain pre-norm blocks. Gemma's post-norms are applied by hand."""
    prompt = make_prompt(tiny_tokenizer(), PROMPT, SUBJECT)
    activations = clean_run(tiny_tracer(name).context.traced, prompt.input_ids).activations
    family = FAMILIES[name]
    hidden, mlp, attention = (family.site_names(kind) for kind in ("hidden", "mlp", "attention"))
    for layer in range(1, family.n_layers):
        added = activations[attention[layer]], activations[mlp[layer]]
        if name == "gemma3_text":
            block = tiny_model(name).get_submodule(hidden[layer])
            with torch.no_grad():
                added = block.post_attention_layernorm(added[0]), block.post_feedforward_layernorm(added[1])
        found = activations[hidden[layer]] - activations[hidden[layer - 1]]
        torch.testing.assert_close(found, added[0] + added[1], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_the_corrupted_run_equals_hooks_by_hand(name: str, batch_size: int) -> None:
    prompt = make_prompt(tiny_tokenizer(), PROMPT, SUBJECT)
    traced = tiny_tracer(name).context.traced
    probabilities, clean = clean_by_hand(tiny_model(name), name, prompt.input_ids)
    answer = int(probabilities.argmax())
    run = corrupted_run(traced, prompt, GaussianNoise(1.0, 2), 3, AnswerProbability((answer,)), batch_size)
    start, end = prompt.subject_range
    noise = rome_noise(2, 3, end - start, traced.d_model, 1.0)
    expected = [
        cell_by_hand(tiny_model(name), name, prompt.input_ids, prompt.subject_range, noise[s], {}, clean, answer)
        for s in range(3)
    ]
    torch.testing.assert_close(run.scores, torch.tensor(expected), rtol=0, atol=1e-5)
    assert run.samples == 3
    assert len(set(run.scores.tolist())) == 3


def test_only_the_read_positions_logits_are_computed_where_the_model_can() -> None:
    traced = tiny_tracer("llama").context.traced
    shapes: list[torch.Size] = []
    handle = traced.model.get_output_embeddings().register_forward_hook(lambda _m, _a, out: shapes.append(out.shape))
    read_logits(traced, torch.tensor([[1, 2, 3, 4]] * 2), {}, "clean")
    handle.remove()
    assert shapes == [(2, 1, traced.vocab_size)]


def test_no_cache_is_kept_between_runs() -> None:
    traced = tiny_tracer("llama").context.traced
    ids = torch.tensor([[1, 2, 3, 4]])
    first = read_logits(traced, ids, {}, "clean")
    read_logits(traced, ids + 5, {}, "clean")
    assert torch.equal(read_logits(traced, ids, {}, "clean"), first)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("what", ["clean", "corrupted"])
def test_logits_that_are_not_finite_raise_an_error_that_names_the_run(value: float, what: str) -> None:
    traced = tiny_tracer("gpt2").context.traced

    def poison(activation: torch.Tensor) -> torch.Tensor:
        poisoned = activation.clone()
        poisoned[-1, -1] = value
        return poisoned

    with pytest.raises(NumericsError, match=f"The {what} run"):
        read_logits(traced, torch.tensor([[1, 2, 3]] * 3), {traced.blocks[-1]: poison}, what)


def test_one_logit_of_plus_and_one_of_minus_infinity_do_not_cancel() -> None:
    model = build_tiny_model("gpt2")
    tracer = _tracer(model)

    def poison(_m: Any, _a: Any, output: torch.Tensor) -> torch.Tensor:
        output = output.clone()
        output[..., 0], output[..., 1] = torch.inf, -torch.inf
        return output

    model.lm_head.register_forward_hook(poison)
    with pytest.raises(NumericsError):
        read_logits(tracer.context.traced, torch.tensor([[1, 2, 3]]), {}, "clean")


def _tracer(model: Any) -> Any:
    from causal_tracer import CausalTracer

    return CausalTracer(model, tiny_tokenizer(), noise=1.0)


def test_an_error_in_an_edit_leaves_no_hooks() -> None:
    traced = tiny_tracer("gpt2").context.traced
    before = fingerprint(traced.model)

    def fail(_activation: torch.Tensor) -> None:
        raise RuntimeError("in an edit")

    with pytest.raises(RuntimeError, match="in an edit"):
        read_logits(traced, torch.tensor([[1, 2, 3]]), {traced.blocks[1]: fail, traced.embedding: lambda _: None}, "x")
    assert_unchanged(traced.model, before)


# Outputs of modules ---------------------------------------------------------------------------------------------------


def test_the_first_tensor_of_any_output_is_found_and_replaced_and_the_rest_is_kept() -> None:
    from collections import namedtuple

    from transformers.modeling_outputs import BaseModelOutput

    old, new, extra = torch.zeros(1, 2, 3), torch.ones(1, 2, 3), torch.full((1,), 7.0)
    pair = namedtuple("pair", "hidden router")
    for output in (
        (old, None),
        (old, extra),
        (None, old, extra),
        [old, extra],
        {"hidden": old, "router": extra},
        pair(old, extra),
        BaseModelOutput(last_hidden_state=old),
    ):
        assert first_tensor(output) is old
        replaced = replace_first_tensor(output, new)
        assert type(replaced) is type(output)
        assert first_tensor(replaced) is new
        assert first_tensor(output) is old, "the given output was changed"
        assert len(replaced) == len(output)
    assert first_tensor(old) is old
    assert replace_first_tensor(old, new) is new
    assert first_tensor((None, "x")) is None
    assert first_tensor(None) is None
