"""Any input gives a result or an error in words: of validators, links, inspections and endpoints."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.errors import CausalTracerError
from causal_tracer.metrics.metric import METRICS
from causal_tracer.request.sites import SITES
from causal_tracer.web.service.app_fields import APP_FIELDS, RUN_KINDS
from causal_tracer.web.service.field_checks import check_fields
from causal_tracer.web.service.json_requests import check_lens, check_patch, check_trace
from causal_tracer.web.service.links import parse_link, share_link
from causal_tracer.web.service.settings import ServiceSettings
from tests.support.tiny_models import PROMPT, SUBJECT
from tests.support.web_tiny import app_fields, awaited, last, tiny_service

SETTINGS = ServiceSettings(max_prompt_tokens=40, max_samples=2)
TRACE = "Traceback (most recent call last)"
EXAMPLES, MANY = 150, 10_000

anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.integers(10**18, 10**400) | st.floats() | st.text(max_size=30),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
# Texts that a form, a link or a client may carry, lone surrogates, markup and paths among them.
strange = st.text(st.characters(exclude_categories=()), max_size=60) | st.sampled_from(
    [
        "",
        " ",
        "\x00",
        "\ud800",
        "<script>alert(1)</script>",
        "../../etc/passwd",
        "%s%n{0}{x}",
        "=1+1",
        "🗼" * 30,
        "\u202e",
    ]
)
prompts = st.one_of(
    strange,
    st.builds(lambda before, after: f"{before}{SUBJECT}{after}", strange, strange),
    st.just(PROMPT),
)
sensible: dict[str, st.SearchStrategy[Any]] = {
    "prompt": prompts,
    "subject": st.sampled_from([SUBJECT, "Space", "", None]) | strange,
    "kind": st.sampled_from(RUN_KINDS),
    "samples": st.integers(1, 2),
    "window": st.none() | st.integers(1, 4),
    "noise": st.none() | st.floats(0, 10),
    "seed": st.integers(0, 2**32 - 1),
    "subject_tokens_only": st.booleans(),
    "start_layer": st.integers(0, 3),
    "end_layer": st.none() | st.integers(1, 4),
    "model": st.sampled_from(["", "tiny"]),
    "answer": st.sampled_from(["", " Rome"]) | strange,
    "answer_id": st.none() | st.integers(0, 400),
    "occurrence": st.sampled_from(["first", "last"]),
    "corruption": st.sampled_from(tuple(CORRUPTIONS)),
    "batch_size": st.none() | st.integers(1, 64),
    "chat": st.booleans(),
    "answer_form": st.sampled_from(["auto", "exact"]),
    "metric": st.sampled_from(["automatic", *METRICS]),
    "foil": st.sampled_from(["", " Rome"]) | strange,
    "patch": st.sampled_from(["restore", "corrupt", "zero", "mean"]),
    "token": st.none() | st.integers(-4, 4),
    "severed": st.sampled_from(["none", "mlp", "attention"]),
    "elsewhere": st.none() | st.integers(0, 9),
    "second_prompt": st.just("") | prompts,
    "second_subject": st.just("") | strange,
    "mean_prompts": st.just("") | prompts,
}


texts = prompts | st.just({"messages": [{"role": "user", "content": PROMPT}]}) | anything
other_prompts = st.fixed_dictionaries(
    {"text": texts},
    optional={"subject": st.sampled_from(["Space", None]) | strange, "align": st.sampled_from(["auto", "spans"])},
)
requests = st.fixed_dictionaries(
    {"prompt": st.just(PROMPT) | texts, "samples": st.integers(1, 2) | st.just({"width": 1, "step": 2, "most": 2})},
    optional={
        "subject": st.just(SUBJECT) | strange,
        "answer": st.just(" Rome") | strange,
        "second": other_prompts,
        "placebo": other_prompts,
        "corruption": st.sampled_from(tuple(CORRUPTIONS))
        | st.fixed_dictionaries(
            {"class": st.sampled_from(["ZeroEmbedding", "GaussianNoise", "CounterfactualSubjects"])},
            optional={
                "level": st.floats(0, 1),
                "seed": st.integers(0, 9),
                "subjects": st.lists(strange),
                "replace": anything,
            },
        ),
        "noise": st.floats(0, 10) | st.just({"subjects": ["Rome"]}),
        "metric": st.sampled_from(tuple(METRICS)),
        "direction": st.sampled_from(["restore", "corrupt"]),
        "elsewhere": st.integers(0, 12),
        "read": st.integers(-2, 12),
        "mean_over": st.lists(st.just("A text.") | strange, max_size=3),
        "top_tokens": st.integers(0, 3),
    },
)
maps = st.fixed_dictionaries(
    {},
    optional={
        "kind": st.sampled_from(tuple(SITES)),
        "window": st.integers(1, 4),
        "start_layer": st.integers(0, 3),
        "token": st.integers(-12, 12) | st.lists(st.integers(-3, 12), max_size=3),
        "positions": st.lists(st.integers(-1, 12), max_size=4),
        "severed": st.sampled_from(["mlp", "attention"]),
        "source": st.sampled_from(["clean", "placebo", "zero", "mean"]),
    },
)
cells = st.lists(st.integers(-3, 12), min_size=2, max_size=3)
tasks: dict[str, st.SearchStrategy[Any]] = {
    "trace": st.fixed_dictionaries(
        {"request": requests},
        optional={
            "maps": st.lists(maps, max_size=3) | st.dictionaries(strange, maps, max_size=2),
            "model": st.just("tiny"),
        },
    ),
    "lens": st.fixed_dictionaries(
        {"request": requests},
        optional={"top": st.integers(0, 6), "corrupted": st.booleans(), "restored": cells | st.none(), "map": maps},
    ),
    "patch": st.fixed_dictionaries(
        {
            "source": st.just(PROMPT) | texts,
            "base": st.just(PROMPT) | texts,
            "pairs": st.lists(st.tuples(cells, cells), max_size=3),
        },
        optional={
            "site": st.sampled_from(["hidden", "mlp", "head"]),
            "answers": st.lists(strange | st.integers(), max_size=3),
        },
    ),
}


@st.composite
def asked_tasks(draw: st.DrawFn) -> tuple[str, Any]:
    """An endpoint and an object for it, of which a few values may be anything."""
    endpoint = draw(st.sampled_from(sorted(tasks)))
    asked = draw(tasks[endpoint] | anything) if draw(st.booleans()) else draw(tasks[endpoint])
    if isinstance(asked, dict) and draw(st.booleans()):
        inside = asked["request"] if isinstance(asked.get("request"), dict) and draw(st.booleans()) else asked
        inside[draw(st.sampled_from([*inside, "x"]))] = draw(anything)
    return endpoint, asked


@st.composite
def inputs(draw: st.DrawFn, *, wild: bool) -> dict[str, Any]:
    """An input whose fields are sensible, but for a few that may be anything."""
    asked = {name: draw(strategy) for name, strategy in sensible.items()}
    if asked["answer_id"] is not None:
        asked["answer"] = ""
    if wild:
        for name in draw(st.sets(st.sampled_from(sorted(asked)), max_size=3)):
            asked[name] = draw(anything)
    return app_fields(**asked)


def quick(examples: int = EXAMPLES):
    return settings(
        max_examples=examples,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture],
    )


def in_words(words: str) -> bool:
    """Return whether an error's message is one for people: short, and without a line of code."""
    return 0 < len(words) < 1000 and TRACE not in words


def check_validators(asked: dict[str, Any]) -> None:
    refusal = "none"
    try:
        checked = check_fields(asked, SETTINGS)
        assert 1 <= checked.request.samples <= SETTINGS.max_samples
        assert checked.specs
    except CausalTracerError as error:
        refusal = str(error)
    assert in_words(refusal)


def check_link(query: dict[str, Any]) -> None:
    parsed = parse_link(query)
    assert all(len(problem) < 300 for problem in parsed.problems)
    check_validators(parsed.fields)


def check_round_trip(asked: dict[str, Any]) -> None:
    try:
        check_fields(asked, SETTINGS)
    except CausalTracerError:
        return
    link = share_link(asked, "http://x/")
    assert link.isascii()
    parsed = parse_link(dict(parse_qsl(urlsplit(link).query, keep_blank_values=True)))
    assert parsed.problems == ()
    same = check_fields(asked, SETTINGS)
    assert check_fields(parsed.fields, SETTINGS) == same


queries = st.dictionaries(
    st.sampled_from([*APP_FIELDS, "revision", "x"]),
    strange | st.from_regex(r"[0-9eE+.,-]{0,12}", fullmatch=True) | anything,
    max_size=8,
)


class TestValidators:
    @quick()
    @given(inputs(wild=True))
    def test_take_anything(self, asked):
        check_validators(asked)

    @pytest.mark.nightly
    @quick(MANY)
    @given(inputs(wild=True))
    def test_take_ten_thousand_of_anything(self, asked):
        check_validators(asked)


CHECKS = {"trace": check_trace, "lens": check_lens, "patch": check_patch}


def check_task(endpoint: str, asked: Any) -> None:
    refusal = "none"
    try:
        CHECKS[endpoint](asked, SETTINGS)
    except CausalTracerError as error:
        refusal = str(error)
    assert in_words(refusal)


class TestObjects:
    @quick()
    @given(asked_tasks())
    def test_may_hold_anything(self, drawn):
        check_task(*drawn)

    @pytest.mark.nightly
    @quick(MANY)
    @given(asked_tasks())
    def test_ten_thousand_may_hold_anything(self, drawn):
        check_task(*drawn)


class TestLinks:
    @quick()
    @given(queries)
    def test_take_anything(self, query):
        check_link(query)

    @pytest.mark.nightly
    @quick(MANY)
    @given(queries)
    def test_take_ten_thousand_of_anything(self, query):
        check_link(query)

    @quick()
    @given(inputs(wild=False))
    def test_what_is_valid_comes_back_the_same(self, asked):
        check_round_trip(asked)

    @pytest.mark.nightly
    @quick(MANY)
    @given(inputs(wild=False))
    def test_ten_thousand_come_back_the_same(self, asked):
        check_round_trip(asked)


@pytest.fixture(scope="module")
def service():
    service = tiny_service(max_prompt_tokens=40, max_samples=2)
    service.start_loading()
    assert service._slots["tiny"].wait(300)
    return service


class TestService:
    @quick()
    @given(inputs(wild=True))
    def test_inspections_never_raise(self, service, asked):
        found = service.inspect(asked)
        assert found.problems or found.answer is not None
        assert all(in_words(problem.words) for problem in found.problems)

    @quick(60)
    @given(inputs(wild=False))
    def test_traces_give_a_map_or_an_error_in_words(self, service, asked):
        refusal = "none"
        try:
            update = last(service.trace(asked))
            assert update.done == update.total > 0
        except CausalTracerError as error:
            refusal = str(error)
        assert in_words(refusal)
        assert service.health()["running"] == 0


async def every_one(steps):
    return [step async for step in steps]


class TestEndpoints:
    @quick(60)
    @given(inputs(wild=True))
    def test_refusals_are_gradio_s_errors_in_words(self, service, asked):
        gradio = pytest.importorskip("gradio")
        from causal_tracer.web.api.endpoints import Endpoints

        given = {name: asked[name] for name in ("prompt", "subject", "samples", "window", "noise", "seed")}
        refusal = "none"
        try:
            results = awaited(every_one(Endpoints(service).trace_map("mlp")(**given)))
            json.dumps(results, allow_nan=False)
        except gradio.Error as error:
            refusal = error.message
        assert in_words(refusal)
        assert "went wrong in the app itself" not in refusal

    @quick(120)
    @given(asked_tasks())
    def test_objects_are_answered_or_refused_in_words(self, service, drawn):
        gradio = pytest.importorskip("gradio")
        from causal_tracer.web.api.endpoints import Endpoints

        (name, asked), endpoints = drawn, Endpoints(service)
        refusal = "none"
        try:
            if name == "trace":
                results = awaited(every_one(endpoints.trace()(asked)))
            else:
                results = (endpoints.lens() if name == "lens" else endpoints.patch())(asked)
            json.dumps(results, allow_nan=False)
        except gradio.Error as error:
            refusal = error.message
        assert in_words(refusal)
        assert "went wrong in the app itself" not in refusal, asked
        assert service.health()["running"] == 0


@pytest.fixture(scope="module")
def address(service) -> Iterator[str]:
    pytest.importorskip("gradio")
    from tests.support.web_app import running_app

    with running_app(service) as address:
        yield address


@pytest.mark.nightly
class TestOverHttp:
    """Five hundred requests to a running app, of wrong types and numbers of values too."""

    @quick(500)
    @given(
        st.sampled_from(["trace", "lens", "patch", "trace_hidden", "inspect_prompt", "models", "status", "health"]),
        inputs(wild=True),
        asked_tasks(),
        st.integers(0, 20),
    )
    def test_no_500_and_no_trace_back(self, address, endpoint, asked, drawn, most):
        import httpx

        order = {
            "trace_hidden": "prompt subject samples window noise seed subject_tokens_only model answer chat".split(),
            "inspect_prompt": ["prompt", "subject", "model", "answer", "occurrence", "chat", "answer_form"],
        }
        values = [asked[name] for name in order.get(endpoint, ["model"])]
        if endpoint in tasks:
            endpoint, values[0] = drawn
        # Hypothesis likes the ends: often as many as there should be.
        values = values if most > 3 else (values * 9)[:most]
        try:
            body = json.dumps({"data": values})
        except (ValueError, TypeError):
            return
        posted = httpx.post(
            f"{address}gradio_api/call/{endpoint}",
            content=body,
            headers={"content-type": "application/json"},
            timeout=60,
        )
        assert posted.status_code < 500
        assert TRACE not in posted.text
        event = posted.json().get("event_id") if posted.status_code == 200 else None
        if event is not None:
            answer = httpx.get(f"{address}gradio_api/call/{endpoint}/{event}", timeout=120)
            assert answer.status_code < 500
            assert TRACE not in answer.text
            assert "event: complete" in answer.text or "event: error" in answer.text
            assert '{"error": null}' not in answer.text
