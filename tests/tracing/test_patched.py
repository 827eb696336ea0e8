"""Patched runs compared with hooks by hand, their identities, their errors, and mutants of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from causal_tracer import PatchedRun
from causal_tracer.errors import SettingsError
from causal_tracer.tracing import patched as engine
from tests.support.hand_hooks import clean_by_hand
from tests.support.hand_lens import assert_lens, lens_by_hand, putting
from tests.support.real_models import GEMMA, SMOLLM, real_tracer
from tests.support.tiny_models import (
    ARCHITECTURES,
    EVERY_ARCHITECTURE,
    FAMILIES,
    OTHER_PROMPT,
    PROMPT,
    tiny_model,
    tiny_tracer,
)

SOURCE, BASE = OTHER_PROMPT, PROMPT
PAIRS = [((3, 1), (5, 0)), ((-1, 0), (4, 1)), ((2, 2), (-1, 1))]
REAL = ("The Space Needle is located in the city of", "The Eiffel Tower is in the city of")


def ids_of(name: str, prompt: str) -> list[int]:
    found: list[int] = tiny_tracer(name).tokenizer(prompt).input_ids
    return found


def patched_by_hand(name: str, pairs: Any, site: str) -> Tensor:
    """The lens of the base prompt's run with activations patched in from the source."""
    model, names = tiny_model(name), FAMILIES[name].site_names(site)
    source, base = ids_of(name, SOURCE), ids_of(name, BASE)
    _, taken = clean_by_hand(model, name, source)
    values: dict[str, dict[int, Tensor]] = {}
    for (token, layer), (into, at) in pairs:
        values.setdefault(names[at], {})[into % len(base)] = taken[names[layer]][token]
    return lens_by_hand(model, name, base, {module: putting(cells) for module, cells in values.items()})


def check_equals_hooks_by_hand(name: str, site: Any) -> None:
    run = tiny_tracer(name).patch(SOURCE, BASE, PAIRS, site)
    expected = patched_by_hand(name, PAIRS, site)
    assert_lens(run.lens, expected)
    model = tiny_model(name)
    rows = {
        "source": lens_by_hand(model, name, ids_of(name, SOURCE))[-1, -1],
        "base": lens_by_hand(model, name, ids_of(name, BASE))[-1, -1],
        "patched": expected[-1, -1],
    }
    assert [answer.token_id for answer in run.answers] == list(
        dict.fromkeys(int(rows[each].argmax()) for each in ("source", "base"))
    )
    for answer in run.answers:
        for each, row in rows.items():
            assert getattr(answer, each) == pytest.approx(float(row[answer.token_id]), abs=1e-5)
    # If the patch changed nothing, equal numbers would prove nothing.
    assert float((rows["patched"] - rows["base"]).abs().max()) > 1e-3


@pytest.mark.parametrize("site", ["hidden", "mlp", "attention"])
@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_equals_hooks_by_hand(name: str, site: str) -> None:
    check_equals_hooks_by_hand(name, site)


def test_fifteen_families_are_compared() -> None:
    assert len(ARCHITECTURES) == 15


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_a_cell_patched_into_itself_changes_nothing(name: str) -> None:
    tracer = tiny_tracer(name)
    clean = tracer.lens(BASE)
    for site in ("hidden", "mlp", "attention"):
        lens = tracer.patch(BASE, BASE, [((5, 1), (5, 1)), ((2, 0), (2, 0))], site).lens  # type: ignore[arg-type]
        torch.testing.assert_close(lens.top_probabilities, clean.top_probabilities, rtol=0, atol=1e-6)
        torch.testing.assert_close(lens.entropies, clean.entropies, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_the_last_layer_at_the_last_token_brings_the_sources_logits(name: str) -> None:
    tracer = tiny_tracer(name)
    last = FAMILIES[name].n_layers - 1
    run = tracer.patch(SOURCE, BASE, [((-1, last), (-1, last))])
    for answer in run.answers:
        assert answer.patched == pytest.approx(answer.source, abs=1e-6)
    own = tracer.lens(SOURCE).top(-1, -1)
    assert [token.token_id for token in run.top_tokens] == [token.token_id for token in own]
    outside = run.lens.top_probabilities[:, :-1], tracer.lens(BASE).top_probabilities[:, :-1]
    torch.testing.assert_close(*outside, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", EVERY_ARCHITECTURE)
def test_cells_outside_the_cone_are_the_bases_and_cells_inside_change(name: str) -> None:
    tracer = tiny_tracer(name)
    base = tracer.lens(BASE)
    for site in ("hidden", "mlp", "attention"):
        run = tracer.patch(SOURCE, BASE, [((3, 1), (5, 0)), ((2, 2), (7, 1))], site, answers=[base.answer_id])  # type: ignore[arg-type]
        moved = (run.lens.answer_probabilities - base.answer_probabilities).abs()
        assert float(moved[~run.cone].max()) <= 1e-6
        assert bool(run.cone[5, 0])
        assert bool(run.cone[6, 1])
        assert not bool(run.cone[4].any() or run.cone[6, 0])
        assert float(moved[run.cone].max()) > 1e-4


def test_heads_are_put_in_one_by_one() -> None:
    tracer, name = tiny_tracer("gpt2"), "gpt2"
    model, base = tiny_model(name), ids_of(name, BASE)
    projections = [f"transformer.h.{layer}.attn.c_proj" for layer in range(3)]
    taken: dict[str, Tensor] = {}

    def run(ids: list[int], put: Any) -> Tensor:
        def before(module: str) -> Any:
            def hook(_module: Any, args: Any) -> Any:
                given = args[0].clone()
                taken.setdefault(module, given[0].clone())
                put(module, given[0])
                return (given, *args[1:])

            return hook

        handles = [model.get_submodule(each).register_forward_pre_hook(before(each)) for each in projections]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, -1]
        for handle in handles:
            handle.remove()
        return torch.softmax(logits, dim=-1)

    run(ids_of(name, SOURCE), lambda *_: None)
    source = {module: value.clone() for module, value in taken.items()}

    def put(module: str, given: Tensor) -> None:
        if module == projections[1]:
            given[5, 0:8] = source[projections[0]][3, 16:24]
            given[5, 24:32] = source[projections[2]][-1, 8:16]

    expected = run(base, put)
    found = tracer.patch(SOURCE, BASE, [((3, 0, 2), (5, 1, 0)), ((-1, 2, 1), (5, 1, 3))], "head")
    for token in found.top_tokens:
        assert token.probability == pytest.approx(float(expected[token.token_id]), abs=1e-5)


def test_answers_are_texts_or_ids() -> None:
    run = tiny_tracer("gpt2").patch(SOURCE, BASE, PAIRS, answers=[" Rome city", 7])
    assert run.answers[0].text == " Rome"
    assert run.answers[1].token_id == 7
    assert run.lens.answer == " Rome"
    assert any("2 tokens" in note for note in run.notes)


@pytest.mark.parametrize(
    ("pairs", "site", "words"),
    [
        ([], "hidden", "pairs is empty"),
        (3, "hidden", "must be a list"),
        ([(1, 2, 3)], "hidden", "must be .source cell, base cell."),
        ([((1, 1), (1,))], "hidden", r"base cell must be \(token, layer\)"),
        ([((1, 1), (1, 1, 1))], "hidden", r"base cell must be \(token, layer\)"),
        ([((1, 1), (1, 1))], "head", r"source cell must be \(token, layer, head\)"),
        ([((1, 1, 0), (1, 1, 4))], "head", r"base head 4 is out of range: layer 1 has 4 heads \(0 to 3\)"),
        ([((99, 1), (1, 1))], "hidden", "source token 99 is out of range: the source prompt has"),
        ([((1, 1), (-99, 1))], "hidden", "base token -99 is out of range"),
        ([((1, 1), (1, 3))], "hidden", r"base layer 3 is out of range: the model has 3 layers \(0 to 2\)"),
        ([((1, -1), (1, 1))], "hidden", "source layer -1 is out of range"),
        ([((1, 1.5), (1, 1))], "hidden", "source layer must be an integer"),
        ([((1, 1), (2, 1)), ((3, 0), (2, 1))], "mlp", r"same base cell \(2, 1\)"),
        ([((1, 1), (1, 1))], "residual", "site='residual' is not known"),
    ],
)
def test_pairs_that_do_not_fit_are_refused(pairs: Any, site: Any, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        tiny_tracer("gpt2").patch(SOURCE, BASE, pairs, site)


def test_no_answers_are_refused() -> None:
    with pytest.raises(SettingsError, match="answers is empty"):
        tiny_tracer("gpt2").patch(SOURCE, BASE, PAIRS, answers=[])


@pytest.mark.model
@pytest.mark.parametrize("name", [GEMMA, SMOLLM])
def test_real_models_obey_the_identities(name: str) -> None:
    tracer = real_tracer(name)
    source, base = REAL
    last = tracer.count_layers() - 1
    run = tracer.patch(source, base, [((-1, last), (-1, last))])
    for answer in run.answers:
        assert answer.patched == pytest.approx(answer.source, abs=1e-5)
    clean = tracer.lens(base)
    own = tracer.patch(base, base, [((4, 6), (4, 6))]).lens
    torch.testing.assert_close(own.top_probabilities, clean.top_probabilities, rtol=0, atol=1e-5)
    run = tracer.patch(source, base, [((3, 6), (4, 6))], answers=[clean.answer_id])
    moved = (run.lens.answer_probabilities - clean.answer_probabilities).abs()
    assert float(moved[~run.cone].max()) <= 1e-5 < float(moved[run.cone].max())


# Mutants --------------------------------------------------------------------------------------------------------------


def takes_from_the_token_before(*given: Any, right: Any = engine.clean_run, **more: Any) -> Any:
    run = right(*given, **more)
    return replace(run, activations={name: values.roll(1, 0) for name, values in run.activations.items()})


def puts_into_the_next_token(*given: Any, right: Any = engine._checked_pairs) -> Any:
    last = given[-1] - 1
    return tuple((source, (min(token + 1, last), *rest)) for source, (token, *rest) in right(*given))


def takes_from_the_layer_it_puts_into(*given: Any, right: Any = engine._checked_pairs) -> Any:
    return tuple(((source[0], base[1]), base) for source, base in right(*given))


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
@pytest.mark.parametrize(
    ("what", "mutant"),
    [
        ("clean_run", takes_from_the_token_before),
        ("_checked_pairs", puts_into_the_next_token),
        ("_checked_pairs", takes_from_the_layer_it_puts_into),
    ],
)
def test_a_wrong_patch_is_caught(what: str, mutant: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, what, mutant)
    with pytest.raises(AssertionError):
        check_equals_hooks_by_hand(name, "hidden")


def test_the_type_of_the_result() -> None:
    assert isinstance(tiny_tracer("gpt2").patch(SOURCE, BASE, PAIRS), PatchedRun)
