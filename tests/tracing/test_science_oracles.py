"""Every corruption, metric, site and path, compared with a plain implementation that shares no code with the engine.

One row at a time, the whole model, hooks on modules named by hand, formulas in double precision. A run is described by
the embeddings it is given and by what stands at which token of which module; its logits are read whole.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from causal_tracer import CausalTracer, HiddenFlow, MapSpec, OtherPrompt, RunOptions, TraceRequest
from causal_tracer.corruption import CounterfactualSubjects, GaussianNoise, MultivariateNoise, StudentTNoise
from causal_tracer.experiment.embeddings import subject_embeddings
from causal_tracer.experiment.noise_levels import subjects_scale
from causal_tracer.experiment.set_up import prompt_for
from tests.support.hand_hooks import hand_window, hooked, rome_noise
from tests.support.real_models import SMOLLM, real_tracer
from tests.support.tiny_models import FAMILIES, PROMPT, SUBJECT, Family, of_architecture, tiny_tracer

SAMPLES = 2
LEVEL = 1.5
SEED = 3
NAMES = [
    pytest.param(name, marks=of_architecture(name), id=name)
    for name in ("gpt2", "llama", "gemma3_text", "gpt_neox", "mixtral")
]
REAL = "SmolLM2"
PROJECTION = {
    "gpt2": "attn.c_proj",
    "llama": "self_attn.o_proj",
    "gemma3_text": "self_attn.o_proj",
    "gpt_neox": "attention.dense",
    "mixtral": "self_attn.o_proj",
    REAL: "self_attn.o_proj",
}
HEADS = 4
WORDS = "Look the Space Needle is in city of In truth Steve Jobs was founder France capital on and to river".split()
OTHER = PROMPT.replace(SUBJECT, "Steve Jobs")  # the same number of tokens, one by one
CLOSE = {"rtol": 1e-4, "atol": 1e-5, "equal_nan": True}

Values = Mapping[tuple[str, int], Tensor]
"""Values at (module, token) that replace the module's output there."""


@dataclass(frozen=True)
class Plain:
    """A tiny model, and prompts for it, run by hand."""

    name: str
    ids: tuple[int, ...]
    subject: tuple[int, int]

    @property
    def model(self) -> Any:
        return plain_tracer(self.name).model

    def sites(self, kind: str) -> tuple[str, ...]:
        return family(self.name).site_names(kind)

    def names(self) -> list[str]:
        return [name for kind in ("hidden", "mlp", "attention") for name in self.sites(kind)]

    def embedded(self, ids: Sequence[int] | None = None) -> Tensor:
        """The embedding's output [tokens, width]."""
        module = self.model.get_submodule(family(self.name).embedding)
        with torch.no_grad():
            out: Tensor = module(torch.tensor([list(ids or self.ids)]))[0]
        return out

    def corrupted(self, change: Callable[[Tensor], Tensor]) -> Tensor:
        """The embeddings, with those of the subject changed."""
        start, end = self.subject
        embedded = self.embedded().clone()
        embedded[start:end] = change(embedded[start:end])
        return embedded

    @torch.no_grad()
    def run(
        self, embedded: Tensor, put: Values | None = None, after: Sequence[int] = (), heads: Values | None = None
    ) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        """Return logits [tokens, vocabulary], each module's output, and each output projection's input.

        `after` are tokens that follow the prompt; `heads` are put into what projections take: (module, token) to all
        that is taken there.
        """
        gave: dict[str, Tensor] = {}
        taken: dict[str, Tensor] = {}
        tokens = len(self.ids) + len(after)

        def embed(output: Tensor) -> Tensor:
            return torch.cat([embedded[None], output[:, len(self.ids) :]], dim=1)

        def at(name: str) -> Callable[[Tensor], Tensor]:
            def edit(output: Tensor) -> Tensor:
                changed = output.clone().view(tokens, -1)
                for (module, token), value in (put or {}).items():
                    if module == name:
                        changed[token] = value
                gave[name] = changed.clone()
                return changed.view(output.shape)

            return edit

        hooks = {family(self.name).embedding: embed, **{name: at(name) for name in self.names()}}
        with hooked(self.model, hooks), self._projections(taken, heads or {}):
            logits = self.model(torch.tensor([[*self.ids, *after]])).logits[0]
        return logits.double(), gave, taken

    @contextmanager
    def _projections(self, taken: dict[str, Tensor], heads: Values) -> Iterator[None]:
        handles = []
        for name in self.projections():

            def before(_module: Any, args: Any, name: str = name) -> Any:
                given = args[0].clone()
                for (module, token), value in heads.items():
                    if module == name:
                        given[0, token] = value
                taken[name] = given[0].clone()
                return (given, *args[1:])

            handles.append(self.model.get_submodule(name).register_forward_pre_hook(before))
        yield
        for handle in handles:
            handle.remove()

    def projections(self) -> list[str]:
        return [f"{block}.{PROJECTION[self.name]}" for block in self.sites("hidden")]


def family(name: str) -> Family:
    """The names of a model's modules, given by hand."""
    if name != REAL:
        return FAMILIES[name]
    return Family(
        make=lambda: None,
        embedding="model.embed_tokens",
        block="model.layers.{num}",
        attention=("self_attn",) * 30,
        mlp=("mlp",) * 30,
    )


@functools.cache
def plain_tracer(name: str) -> CausalTracer:
    if name == REAL:
        return real_tracer(SMOLLM)
    return CausalTracer(tiny_tracer(name).model, tiny_tracer(name).tokenizer, noise=LEVEL)


@functools.cache
def plain(name: str, text: str = PROMPT, subject: str = SUBJECT) -> Plain:
    tokenizer = plain_tracer(name).tokenizer
    ids = tokenizer(text).input_ids
    before = len(tokenizer(text[: text.index(subject)].rstrip()).input_ids)
    length = len(tokenizer(" " + subject, add_special_tokens=False).input_ids)
    assert tokenizer.decode(ids[before : before + length]).strip() == subject
    return Plain(name, tuple(ids), (before, before + length))


@functools.cache
def noisy(name: str) -> list[Tensor]:
    """The corrupted embeddings of each sample."""
    by_hand = plain(name)
    start, end = by_hand.subject
    noise = rome_noise(SEED, SAMPLES, end - start, by_hand.embedded().shape[1], LEVEL)
    return [by_hand.corrupted(lambda x, n=n: x + n) for n in noise]


def request(**changes: Any) -> TraceRequest:
    return TraceRequest(PROMPT, SUBJECT, **{"samples": SAMPLES, "seed": SEED, **changes})


def traced(name: str, spec: MapSpec, **changes: Any) -> HiddenFlow:
    return plain_tracer(name).trace_maps(request(**changes), {"map": spec})["map"]


def probability(logits: Tensor, answer: int, at: int = -1) -> float:
    return float(torch.softmax(logits[at], dim=-1)[answer])


def all_cells(by_hand: Plain, score: Callable[[int, int, int], float], samples: int = SAMPLES) -> Tensor:
    """Return the scores [samples, tokens, layers] of score(sample, token, layer)."""
    layers = len(by_hand.sites("hidden"))
    return torch.tensor(
        [
            [[score(sample, token, layer) for layer in range(layers)] for token in range(len(by_hand.ids))]
            for sample in range(samples)
        ]
    )


def restoring(by_hand: Plain, kind: str, window: int, values: Mapping[str, Tensor]) -> Callable[[int, int], Values]:
    """Return a function from (token, layer) to the values restored there."""
    sites = by_hand.sites(kind)
    return lambda token, layer: {
        (sites[n], token): values[sites[n]][token] for n in hand_window(layer, window, len(sites))
    }


def assert_map(flow: HiddenFlow, expected: Tensor, low: Sequence[float], high: float) -> None:
    torch.testing.assert_close(flow.sample_scores, expected.float(), **CLOSE)  # type: ignore[arg-type]
    torch.testing.assert_close(flow.low_sample_scores, torch.tensor(low).float(), **CLOSE)  # type: ignore[arg-type]
    assert flow.high_score == pytest.approx(high, rel=1e-4, abs=1e-5)
    # If the model did not react, equal numbers would prove nothing.
    assert abs(flow.total_effect) >= 0.01
    assert float(flow.indirect_effect.abs().max()) >= 1e-3


def check_restored(
    name: str,
    flow: HiddenFlow,
    embeddings: Sequence[Tensor],
    read: Callable[[Tensor], float],
    kind: str = "hidden",
    window: int = 1,
) -> None:
    """Compare a map of clean activations restored into runs on these embeddings."""
    by_hand = plain(name)
    clean_logits, clean, _ = by_hand.run(by_hand.embedded())
    put = restoring(by_hand, kind, window, clean)
    expected = all_cells(
        by_hand,
        lambda sample, token, layer: read(by_hand.run(embeddings[sample], put(token, layer))[0]),
        len(embeddings),
    )
    low = [read(by_hand.run(embedded)[0]) for embedded in embeddings]
    assert_map(flow, expected, low, read(clean_logits))


def own_answer(name: str) -> int:
    by_hand = plain(name)
    return int(by_hand.run(by_hand.embedded())[0][-1].argmax())


# Corruptions ----------------------------------------------------------------------------------------------------------


def covariance(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of the embedding's output over the vocabulary."""
    by_hand = plain(name)
    size = by_hand.model.get_input_embeddings().weight.shape[0]
    output = by_hand.embedded(range(size)).double().numpy()
    return output.mean(axis=0), np.cov(output, rowvar=False)


def changes_by_hand(corruption: str, name: str) -> list[Callable[[Tensor], Tensor]]:
    """For each sample, from the subject's embeddings to the corrupted ones."""
    by_hand = plain(name)
    shape = (SAMPLES, by_hand.subject[1] - by_hand.subject[0], by_hand.embedded().shape[1])
    random = np.random.RandomState(SEED)
    if corruption == "zero":
        return [torch.zeros_like]
    mean, spread = covariance(name)
    if corruption == "mean":
        return [lambda x: torch.tensor(mean).float().expand_as(x)]
    kind, _, replacing = corruption.partition(" ")
    if kind == "uniform":
        drawn = random.uniform(-LEVEL, LEVEL, shape)
    elif kind == "multivariate":
        values, vectors = np.linalg.eigh(spread)
        drawn = random.randn(*shape) @ (vectors @ np.diag(np.sqrt(values.clip(0))) @ vectors.T)
    else:
        drawn = random.randn(*shape) * LEVEL
    noise = torch.tensor(drawn).float()
    return [(lambda x, n=n: n) if replacing else (lambda x, n=n: x + n) for n in noise]


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
@pytest.mark.parametrize(
    "corruption",
    ["gaussian", "gaussian replacing", "uniform", "uniform replacing", "multivariate", "zero", "mean"],
)
def test_corruptions(corruption: str, name: str) -> None:
    flow = traced(name, MapSpec("mlp", 2), corruption=corruption)
    embeddings = [plain(name).corrupted(change) for change in changes_by_hand(corruption, name)]
    answer = own_answer(name)
    check_restored(name, flow, embeddings, lambda logits: probability(logits, answer), "mlp", 2)


@pytest.mark.parametrize("name", NAMES)
def test_another_subject_is_the_model_run_on_the_other_prompts_tokens(name: str) -> None:
    flow = traced(name, MapSpec("hidden"), corruption=CounterfactualSubjects(("Steve Jobs",)))
    other = plain(name, OTHER, "Steve Jobs")
    assert other.subject == plain(name).subject
    answer = own_answer(name)
    check_restored(name, flow, [other.embedded()], lambda logits: probability(logits, answer))
    # The expected values come from the other prompt itself, not from its embeddings put into the first one.
    alone = other.run(other.embedded())[0]
    assert flow.low_score == pytest.approx(probability(alone, answer), abs=1e-5)


@pytest.mark.parametrize("degrees", [3.0, 8.0])
def test_noise_matched_to_the_embedding_has_its_covariance_and_student_t_has_heavier_tails(degrees: float) -> None:
    name = "gpt2"
    context = plain_tracer(name).context
    subject = subject_embeddings(context.traced, prompt_for(context, PROMPT, SUBJECT))
    _, expected = covariance(name)
    drawn = {}
    for corruption in (MultivariateNoise(seed=5), StudentTNoise(seed=5, degrees=degrees)):
        noise = (corruption(subject, 20_000) - subject.embedded).double().numpy()
        # In coordinates in which the embedding has unit variance.
        values, vectors = np.linalg.eigh(expected)
        white = (noise @ vectors[:, 1:]) / np.sqrt(values[1:])
        drawn[type(corruption)] = white
        spread = np.cov(white[:, 0], rowvar=False)
        limit = 0.1 if degrees > 4 else 0.5
        assert abs(spread - np.eye(len(spread))).max() < limit
        torch.testing.assert_close(corruption(subject, 3), corruption(subject, 7)[:3])
    normal, heavy = drawn[MultivariateNoise], drawn[StudentTNoise]
    assert (np.abs(normal) > 4.5).mean() < 3e-5 < 3e-4 < (np.abs(heavy) > 4.5).mean()
    # A token's values share one chi-square draw, so their magnitudes are correlated.
    sizes = np.square(heavy).mean(axis=-1)
    assert sizes.var() > 5 * np.square(normal).mean(axis=-1).var()


def test_the_scale_of_given_subjects_is_that_of_their_embeddings() -> None:
    name, subjects = "gemma3_text", ["Space Needle", "Paris", "Steve Jobs"]
    tracer = plain_tracer(name)
    ids = [token for subject in subjects for token in tracer.tokenizer(subject, add_special_tokens=False).input_ids]
    expected = plain(name).embedded(ids).double().numpy().std(ddof=1)
    assert subjects_scale(tracer.context.traced, tracer.tokenizer, subjects) == pytest.approx(expected, rel=1e-5)


# Metrics --------------------------------------------------------------------------------------------------------------


def readings(name: str, answer: int, foil: int) -> Mapping[str, Callable[[Tensor], float]]:
    """Each metric as a formula over all logits [tokens, vocabulary]."""
    by_hand = plain(name)
    clean = by_hand.run(by_hand.embedded())[0][-1]
    p = torch.softmax(clean, dim=-1)

    def divergence(logits: Tensor) -> float:
        q = torch.softmax(logits[-1], dim=-1)
        return float((p * (p.log() - q.log())).sum())

    return {
        "probability": lambda logits: probability(logits, answer),
        "log-probability": lambda logits: float(torch.log_softmax(logits[-1], dim=-1)[answer]),
        "logit": lambda logits: float(logits[-1, answer]),
        "logit difference": lambda logits: float(logits[-1, answer] - logits[-1, foil]),
        "rank": lambda logits: 1.0 + sum(float(logit) > float(logits[-1, answer]) for logit in logits[-1]),
        "KL from clean": divergence,
    }


@pytest.mark.parametrize("name", ["llama", "gemma3_text"])
@pytest.mark.parametrize(
    "metric", ["probability", "log-probability", "logit", "logit difference", "rank", "KL from clean"]
)
def test_metrics(metric: str, name: str) -> None:
    tokenizer = plain_tracer(name).tokenizer
    (foil,) = tokenizer(" Jobs", add_special_tokens=False).input_ids
    # The top answer may keep its rank in all runs, so a lower-ranked one is used.
    answer = foil if metric == "rank" else own_answer(name)
    flow = traced(name, MapSpec("hidden"), metric=metric, foil=" Jobs", answer_id=answer)
    check_restored(name, flow, noisy(name), readings(name, answer, foil)[metric])


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
@pytest.mark.parametrize("read", [5, 7])
def test_reading_at_a_chosen_token(name: str, read: int) -> None:
    by_hand = plain(name)
    answer = int(by_hand.run(by_hand.embedded())[0][read].argmax())
    flow = traced(name, MapSpec("attention", 2), read=read)
    assert flow.answer_id == answer
    check_restored(name, flow, noisy(name), lambda logits: probability(logits, answer, read), "attention", 2)
    # Tokens after the position read do not affect it.
    assert torch.equal(flow.scores[read + 1 :], torch.full_like(flow.scores[read + 1 :], flow.low_score))


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("metric", ["probability", "log-probability"])
def test_answers_of_several_tokens_are_read_one_after_the_other(name: str, metric: str) -> None:
    tokenizer = plain_tracer(name).tokenizer
    by_hand = plain(name)
    # Probable tokens that are whole words.
    words = [ids[0] for word in WORDS if len(ids := tokenizer(f" {word}", add_special_tokens=False).input_ids) == 1]
    said: list[int] = []
    for _ in range(3):
        logits = by_hand.run(by_hand.embedded(), after=said)[0][-1]
        said.append(max(set(words) - set(said), key=lambda token, logits=logits: float(logits[token])))
    answer = tokenizer.decode(said)
    flow = traced(name, MapSpec("hidden"), answer=answer, metric=metric)
    assert flow.answer_ids == tuple(said)
    assert flow.scores.shape[0] == len(by_hand.ids)

    def score(embedded: Tensor, put: Values) -> float:
        total = 0.0
        for number, token in enumerate(said):
            # A separate run for each token, given the tokens before it.
            logits = by_hand.run(embedded, put, after=said[:number])[0]
            total += float(torch.log_softmax(logits[-1], dim=-1)[token])
        return total if metric == "log-probability" else float(np.exp(total))

    _, clean, _ = by_hand.run(by_hand.embedded())
    put = restoring(by_hand, "hidden", 1, clean)
    expected = all_cells(by_hand, lambda sample, token, layer: score(noisy(name)[sample], put(token, layer)))
    torch.testing.assert_close(flow.sample_scores, expected.float(), rtol=1e-3, atol=1e-6)
    low = torch.tensor([score(embedded, {}) for embedded in noisy(name)])
    torch.testing.assert_close(flow.low_sample_scores, low.float(), rtol=1e-3, atol=1e-6)
    assert flow.high_score == pytest.approx(score(by_hand.embedded(), {}), rel=1e-3)
    assert float((expected - low[:, None, None]).abs().max()) > 1e-3 * abs(flow.high_score)


# Directions, controls and chosen positions ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("kind", "window"), [("hidden", 1), ("mlp", 2), ("attention", 1)])
def test_corrupted_activations_put_into_the_clean_run(name: str, kind: Any, window: int) -> None:
    by_hand, answer = plain(name), own_answer(name)
    flow = traced(name, MapSpec(kind, window), direction="corrupt")
    corrupted = [by_hand.run(embedded) for embedded in noisy(name)]

    def score(sample: int, token: int, layer: int) -> float:
        put = restoring(by_hand, kind, window, corrupted[sample][1])(token, layer)
        return probability(by_hand.run(by_hand.embedded(), put)[0], answer)

    low = [probability(logits, answer) for logits, _, _ in corrupted]
    high = probability(by_hand.run(by_hand.embedded())[0], answer)
    assert_map(flow, all_cells(by_hand, score), low, high)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("kind", ["hidden", "attention"])
def test_a_placebo_restores_the_other_prompts_activations(name: str, kind: Any) -> None:
    by_hand, answer = plain(name), own_answer(name)
    flow = traced(name, MapSpec(kind, 1, source="placebo"), placebo=OtherPrompt(OTHER, "Steve Jobs"))
    other = plain(name, OTHER, "Steve Jobs")
    _, values, _ = other.run(other.embedded())
    put = restoring(by_hand, kind, 1, values)
    expected = all_cells(
        by_hand, lambda s, token, layer: probability(by_hand.run(noisy(name)[s], put(token, layer))[0], answer)
    )
    low = [probability(by_hand.run(embedded)[0], answer) for embedded in noisy(name)]
    assert_map(flow, expected, low, probability(by_hand.run(by_hand.embedded())[0], answer))


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
def test_corrupting_elsewhere_corrupts_those_tokens_and_not_the_subject(name: str) -> None:
    by_hand, answer = plain(name), own_answer(name)
    start, end = by_hand.subject
    for first in (1, end):
        elsewhere = Plain(name, by_hand.ids, (first, first + end - start))
        noise = rome_noise(SEED, SAMPLES, end - start, by_hand.embedded().shape[1], LEVEL)
        embeddings = [elsewhere.corrupted(lambda x, n=n: x + n) for n in noise]
        flow = traced(name, MapSpec("mlp", 1), elsewhere=first)
        assert flow.subject_range == (start, end)
        check_restored(name, flow, embeddings, lambda logits: probability(logits, answer), "mlp")


@pytest.mark.parametrize("name", NAMES)
def test_rows_of_chosen_positions_are_those_of_the_whole_map(name: str) -> None:
    whole = traced(name, MapSpec("attention", 2))
    some = traced(name, MapSpec("attention", 2, positions=(0, 4, 9)))
    torch.testing.assert_close(some.sample_scores[:, [0, 4, 9]], whole.sample_scores[:, [0, 4, 9]], **CLOSE)  # type: ignore[arg-type]
    others = [token for token in range(len(whole.input_tokens)) if token not in (0, 4, 9)]
    assert some.scores[others].isnan().all()
    check_restored(name, whole, noisy(name), lambda x: probability(x, own_answer(name)), "attention", 2)


# Heads ----------------------------------------------------------------------------------------------------------------


def with_head(
    by_hand: Plain,
    embedded: Tensor,
    source: Mapping[str, Tensor],
    token: int,
    head: int,
    layers: Sequence[int],
    put: Values | None = None,
) -> Tensor:
    """Logits of a run on these embeddings, with one head's share of some layers' projections taken from another run."""
    heads: dict[tuple[str, int], Tensor] = {}
    for name in (by_hand.projections()[layer] for layer in layers):
        # A changed run also changes the input of later projections: only this head's share is restored.
        mixed = by_hand.run(embedded, put, heads=heads)[2][name][token].clone()
        part = slice(head * len(mixed) // HEADS, (head + 1) * len(mixed) // HEADS)
        mixed[part] = source[name][token][part]
        heads[name, token] = mixed
    return by_hand.run(embedded, put, heads=heads)[0]


def all_heads(by_hand: Plain, score: Callable[[int, int, int], float]) -> Tensor:
    """Return the scores [samples, heads, layers] of score(sample, head, layer)."""
    layers = range(len(by_hand.projections()))
    return torch.tensor(
        [[[score(sample, head, layer) for layer in layers] for head in range(HEADS)] for sample in range(SAMPLES)]
    )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("window", [1, 2])
@pytest.mark.parametrize("token", ["last of the subject", None, -2])
def test_single_heads(name: str, window: int, token: Any) -> None:
    by_hand, answer = plain(name), own_answer(name)
    asked = by_hand.subject[1] - 1 if isinstance(token, str) else token
    at = range(len(by_hand.ids))[-1 if asked is None else asked]
    flow = traced(name, MapSpec("head", window, token=asked))
    logits, _, clean = by_hand.run(by_hand.embedded())

    def score(sample: int, head: int, layer: int) -> float:
        layers = hand_window(layer, window, len(by_hand.projections()))
        return probability(with_head(by_hand, noisy(name)[sample], clean, at, head, layers), answer)

    low = [probability(by_hand.run(embedded)[0], answer) for embedded in noisy(name)]
    assert_map(flow, all_heads(by_hand, score), low, probability(logits, answer))
    assert flow.settings.token == at


@pytest.mark.parametrize("name", ["gpt2", "gemma3_text"])
@pytest.mark.parametrize("control", ["corrupt", "placebo", "severed"])
def test_single_heads_with_controls(name: str, control: str) -> None:
    by_hand, answer = plain(name), own_answer(name)
    token = by_hand.subject[1] - 1
    logits, _, clean = by_hand.run(by_hand.embedded())
    corrupted = [by_hand.run(embedded) for embedded in noisy(name)]
    other = plain(name, OTHER, "Steve Jobs")
    _, _, others = other.run(other.embedded())
    spec = MapSpec(
        "head",
        token=token,
        source="placebo" if control == "placebo" else "clean",
        severed="mlp" if control == "severed" else None,
    )
    changes: dict[str, Any] = {"placebo": OtherPrompt(OTHER, "Steve Jobs")} if control == "placebo" else {}
    flow = traced(name, spec, **changes, direction="corrupt" if control == "corrupt" else "restore")

    def score(sample: int, head: int, layer: int) -> float:
        embedded, source, held = noisy(name)[sample], clean, {}
        if control == "corrupt":
            embedded, source = by_hand.embedded(), corrupted[sample][2]
        elif control == "placebo":
            source = others
        else:
            held = {(site, token): corrupted[sample][1][site][token] for site in by_hand.sites("mlp")}
        return probability(with_head(by_hand, embedded, source, token, head, [layer], held), answer)

    low = [probability(found, answer) for found, _, _ in corrupted]
    assert_map(flow, all_heads(by_hand, score), low, probability(logits, answer))


# Severed paths --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("kind", "window", "severed"),
    [
        ("hidden", 1, "mlp"),
        ("hidden", 1, "attention"),
        ("hidden", 2, "mlp"),
        ("attention", 2, "mlp"),
        ("mlp", 1, "attention"),
    ],
)
def test_severed_paths_are_held_at_the_same_samples_values(name: str, kind: Any, window: int, severed: Any) -> None:
    by_hand, answer = plain(name), own_answer(name)
    flow = traced(name, MapSpec(kind, window, severed=severed))
    _, clean, _ = by_hand.run(by_hand.embedded())
    corrupted = [by_hand.run(embedded) for embedded in noisy(name)]

    def score(sample: int, token: int, layer: int) -> float:
        held = {(site, token): corrupted[sample][1][site][token] for site in by_hand.sites(severed)}
        put = {**held, **restoring(by_hand, kind, window, clean)(token, layer)}
        return probability(by_hand.run(noisy(name)[sample], put)[0], answer)

    low = [probability(logits, answer) for logits, _, _ in corrupted]
    assert_map(flow, all_cells(by_hand, score), low, probability(by_hand.run(by_hand.embedded())[0], answer))
    plain_map = traced(name, MapSpec(kind, window))
    assert float((flow.scores - plain_map.scores).abs().max()) > 1e-3


@torch.no_grad()
def two_passes(by_hand: Plain, noise: Tensor, token: int, layer: int, severed: str, answer: int) -> float:
    """Compute a severed cell as ROME's repository does: one batch of a clean row and corrupted rows, one draw of noise.

    First pass: corrupt only, and keep what the severed modules give. Second pass: corrupt with the same draw, put the
    clean row's state at the restored place, and the first pass' values at the severed ones.
    """
    model, family = by_hand.model, FAMILIES[by_hand.name]
    start, end = by_hand.subject
    ids = torch.tensor([by_hand.ids] * (1 + len(noise)))
    kept: dict[str, Tensor] = {}

    def corrupt(output: Tensor) -> Tensor:
        changed = output.clone()
        changed[1:, start:end] += noise
        return changed

    def keep(name: str) -> Callable[[Tensor], Tensor]:
        def note(output: Tensor) -> Tensor:
            kept[name] = output.clone()
            return output

        return note

    def restore(output: Tensor) -> Tensor:
        changed = output.clone()
        changed[1:, token] = output[0, token]
        return changed

    def hold(name: str) -> Callable[[Tensor], Tensor]:
        def put(output: Tensor) -> Tensor:
            changed = output.clone()
            changed[1:, token] = kept[name][1:, token]
            return changed

        return put

    sites = by_hand.sites(severed)
    with hooked(model, {family.embedding: corrupt, **{name: keep(name) for name in sites}}):
        model(ids)
    second = {family.embedding: corrupt, **{name: hold(name) for name in sites}}
    with hooked(model, {**second, by_hand.sites("hidden")[layer]: restore}):
        logits = model(ids).logits
    return float(torch.softmax(logits[1:, -1].double(), dim=-1)[:, answer].mean())


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text"])
@pytest.mark.parametrize("severed", ["mlp", "attention"])
def test_romes_two_passes_with_one_draw_of_noise_give_the_same(name: str, severed: Any) -> None:
    by_hand, answer = plain(name), own_answer(name)
    start, end = by_hand.subject
    noise = rome_noise(SEED, 4, end - start, by_hand.embedded().shape[1], LEVEL)
    flow = traced(name, MapSpec("hidden", severed=severed), samples=4)
    other_noise = rome_noise(SEED + 1, 4, end - start, by_hand.embedded().shape[1], LEVEL)
    assert float((noise - other_noise).abs().max()) > 0.1
    for token in (start, end - 1, end, len(by_hand.ids) - 1):
        for layer in range(len(by_hand.sites("hidden"))):
            expected = two_passes(by_hand, noise, token, layer, severed, answer)
            assert float(flow.scores[token, layer]) == pytest.approx(expected, abs=1e-4)
    # At the last layer there is nothing left to sever, and restoring a token that is not read has no effect.
    assert float(flow.scores[end - 1, -1]) == pytest.approx(flow.low_score, abs=1e-6)


def test_engines_agree_on_all_of_it() -> None:
    specs = {
        "severed": MapSpec("hidden", severed="mlp"),
        "window": MapSpec("hidden", 2, severed="attention"),
        "placebo": MapSpec("mlp", 2, source="placebo"),
        "attention": MapSpec("attention", 2, severed="mlp"),
    }
    for name in ("llama", "gemma3_text"):
        asked = {
            "placebo": OtherPrompt(OTHER, "Steve Jobs"),
            "corruption": GaussianNoise(LEVEL, SEED, replace=True),
        }
        fast, slow = (
            plain_tracer(name).trace_maps(request(**asked), specs, RunOptions(engine=engine))
            for engine in ("auto", "full")
        )
        assert fast["severed"].settings.engine != slow["severed"].settings.engine
        for key in specs:
            torch.testing.assert_close(fast[key].sample_scores, slow[key].sample_scores, **CLOSE)  # type: ignore[arg-type]


# A real model --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RealCase:
    """One case on the real model: the map and request, and the same cell by hand."""

    spec: MapSpec
    changes: Mapping[str, Any]
    embedded: Tensor
    put: Callable[[int, int], Values]
    read: Callable[[Tensor], float]


def real_cases(by_hand: Plain, noisy_embedded: Tensor, other_text: str, other_subject: str) -> dict[str, RealCase]:
    logits, clean, _ = by_hand.run(by_hand.embedded())
    _, corrupted, _ = by_hand.run(noisy_embedded)
    other = plain(REAL, other_text, other_subject)
    _, elsewhere, _ = other.run(other.embedded())
    answer = int(logits[-1].argmax())
    foil = int(logits[-1].argsort(descending=True)[1])
    foil_text = plain_tracer(REAL).tokenizer.decode([foil])

    def severed(token: int, layer: int) -> Values:
        held = {(site, token): corrupted[site][token] for site in by_hand.sites("mlp")}
        return {**held, **restoring(by_hand, "hidden", 1, clean)(token, layer)}

    def of_answer(x: Tensor) -> float:
        return probability(x, answer)

    zero = by_hand.corrupted(torch.zeros_like)
    query = OtherPrompt(other_text, other_subject)
    other_tokens = CounterfactualSubjects((other_subject,))
    mlp = restoring(by_hand, "mlp", 4, clean)
    return {
        "severed": RealCase(MapSpec("hidden", severed="mlp"), {}, noisy_embedded, severed, of_answer),
        "placebo": RealCase(
            MapSpec("hidden", source="placebo"),
            {"placebo": query},
            noisy_embedded,
            restoring(by_hand, "hidden", 1, elsewhere),
            of_answer,
        ),
        "corrupting": RealCase(
            MapSpec("attention", 4),
            {"direction": "corrupt"},
            by_hand.embedded(),
            restoring(by_hand, "attention", 4, corrupted),
            of_answer,
        ),
        "zero": RealCase(MapSpec("mlp", 4), {"corruption": "zero"}, zero, mlp, of_answer),
        "another subject": RealCase(MapSpec("mlp", 4), {"corruption": other_tokens}, other.embedded(), mlp, of_answer),
        "logit difference": RealCase(
            MapSpec("mlp", 4),
            {"metric": "logit difference", "foil": foil_text},
            noisy_embedded,
            mlp,
            lambda x: float(x[-1, answer] - x[-1, foil]),
        ),
    }


@pytest.mark.model
@pytest.mark.nightly
def test_a_real_model_gives_the_same_cells_as_by_hand() -> None:
    tracer = plain_tracer(REAL)
    by_hand = plain(REAL)
    start, end = by_hand.subject
    towers = ("Eiffel Tower", "Taj Mahal", "Golden Gate", "Brandenburg Gate", "Berlin Wall", "Empire State Building")
    subject = next(
        tower
        for tower in towers
        if len(tracer.tokenizer(f" {tower}", add_special_tokens=False).input_ids) == end - start
    )
    noise = rome_noise(SEED, 1, end - start, by_hand.embedded().shape[1], tracer.noise)[0]
    noisy_embedded = by_hand.corrupted(lambda x: x + noise)
    cells = ((end - 1, 4), (end - 1, 14), (len(by_hand.ids) - 1, 25))
    cases = real_cases(by_hand, noisy_embedded, PROMPT.replace(SUBJECT, subject), subject)
    for name, case in cases.items():
        spec = replace(case.spec, positions=tuple({token for token, _ in cells}))
        flow = tracer.trace(request(samples=1, **case.changes), spec=spec)
        assert abs(flow.total_effect) > 0.01, name
        for token, layer in cells:
            expected = case.read(by_hand.run(case.embedded, case.put(token, layer))[0])
            assert float(flow.scores[token, layer]) == pytest.approx(expected, rel=1e-3, abs=2e-5), (name, token, layer)


@pytest.mark.model
@pytest.mark.nightly
def test_grouped_query_heads_of_a_real_model() -> None:
    tracer = plain_tracer(REAL)
    by_hand = plain(REAL)
    start, end = by_hand.subject
    heads = tracer.model.config.num_attention_heads
    assert tracer.model.config.num_key_value_heads < heads
    noise = rome_noise(SEED, 1, end - start, by_hand.embedded().shape[1], tracer.noise)[0]
    noisy_embedded = by_hand.corrupted(lambda x: x + noise)
    logits, _, clean = by_hand.run(by_hand.embedded())
    _, _, taken = by_hand.run(noisy_embedded)
    token = len(by_hand.ids) - 1
    flow = tracer.trace_maps(request(samples=1), {"heads": MapSpec("head", token=token)})["heads"]
    for layer, head in ((12, 3), (20, 0), (25, heads - 1)):
        name = by_hand.projections()[layer]
        mixed = taken[name][token].clone()
        part = slice(head * len(mixed) // heads, (head + 1) * len(mixed) // heads)
        mixed[part] = clean[name][token][part]
        found = by_hand.run(noisy_embedded, heads={(name, token): mixed})[0]
        expected = probability(found, int(logits[-1].argmax()))
        assert float(flow.scores[head, layer]) == pytest.approx(expected, rel=1e-3, abs=2e-5)
    assert float(flow.indirect_effect.abs().max()) > 1e-3
