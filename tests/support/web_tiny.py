"""A service of the web app on a tiny model, and what its tests ask of it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterable, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from causal_tracer import CausalTracer, HiddenFlow
from causal_tracer.web.service.app_fields import Fields
from causal_tracer.web.service.registry import LoadedTracer, Report
from causal_tracer.web.service.settings import ServiceSettings
from causal_tracer.web.service.tracing import TraceService
from causal_tracer.web.service.updates import RunUpdate
from tests.support.chat_templates import PLAIN, with_template
from tests.support.tiny_models import PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer

NOISE = 0.5


def app_fields(prompt: Any, subject: Any = "", kind: Any = "hidden", **more: Any) -> dict[str, Any]:
    """Return a request by the names of the app's fields, as a page or a program sends it."""
    return {"prompt": prompt, "subject": subject, "kind": kind, **more}


ASKED = app_fields(PROMPT, SUBJECT, samples=3, window=1)


def awaited(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Return a coroutine's result, from another thread: an open browser runs an event loop in the tests' thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


def all_of(answers: AsyncIterable[Any]) -> list[Any]:
    """All that an event of the page answers with, one after the other."""

    async def collect() -> list[Any]:
        return [answer async for answer in answers]

    return list(awaited(collect()))


def load_tiny(_source: str, report: Report) -> LoadedTracer:
    """The loader of a tiny model whose weights are known by a revision."""
    report("making it", 0.5)
    tracer = CausalTracer(build_tiny_model("gpt2"), tiny_tokenizer(), noise=NOISE, model_id="tiny", revision="r1")
    return LoadedTracer(tracer, "Tiny <GPT-2>", "MIT")


def load_tiny_chat(_source: str, _report: Report, template: str = PLAIN) -> LoadedTracer:
    """The same with a chat template."""
    tokenizer = with_template(template)
    tracer = CausalTracer(build_tiny_model("gpt2"), tokenizer, noise=NOISE, model_id="tiny", revision="r1")
    return LoadedTracer(tracer, "Tiny chat", "MIT")


def tiny_service(load: Any = load_tiny, **settings: Any) -> TraceService:
    """A service of a tiny model; results are kept in memory unless a folder is given."""
    return TraceService(ServiceSettings(**{"models": ("tiny",), **settings}), load=load)


def last(updates: Iterable[RunUpdate]) -> RunUpdate:
    """The last update, once all have come."""
    *_, update = updates
    return update


def flow_of(service: TraceService, asked: Fields) -> HiddenFlow:
    """The finished map of what is asked for."""
    flow = last(service.trace(asked)).flow
    assert flow is not None
    return flow


def result_data(flow: HiddenFlow) -> dict[str, Any]:
    """A result as data, to compare it with one that a link asked for.

    The tracers of these tests are given their noise level, so a link names it, and the request of the first trace does
    not.
    """
    data = flow.to_dict()
    data["request"]["request"]["noise"] = flow.settings.noise
    return data


@functools.cache
def tiny_flow() -> HiddenFlow:
    """A finished map, with cells worth reading."""
    return flow_of(tiny_service(), ASKED)


def save_tiny(folder: Path) -> Path:
    """The tiny model as `save_pretrained` writes it, to be loaded by the app's own loader."""
    build_tiny_model("gpt2").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
