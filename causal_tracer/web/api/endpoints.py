"""The app's endpoints for programs, generated from the app's fields; `gradio_client` and MCP read their docstrings.

Gradio takes an endpoint's arguments from its signature and type hints, and the number and types of its results from
the hint of the returned value (for a generator, of the yielded value). It does not evaluate postponed hints, so this
module has none.
"""

import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, TypeVar

import gradio as gr
from gradio.events import api

from causal_tracer.request.sites import KINDS, SITES, LayerKind
from causal_tracer.web.api.answers import Json, for_clients, map_and_result, result
from causal_tracer.web.api.tasks import (
    ABOUT_LENS,
    ABOUT_PATCH,
    ABOUT_TRACE,
    LENS_TASK,
    PATCH_TASK,
    TRACE_TASK,
    TaskField,
)
from causal_tracer.web.service.app_fields import APP_FIELDS, AppField
from causal_tracer.web.service.field_checks import CheckedFields, check_fields
from causal_tracer.web.service.json_requests import check_lens, check_patch, check_trace
from causal_tracer.web.service.limits import client_of
from causal_tracer.web.service.settings import ServiceSettings
from causal_tracer.web.service.tracing import TraceService
from causal_tracer.web.service.updates import Cancelled, RunUpdate, stepped, thinned

PARTIAL_SECONDS = 2.0
_REQUIRED = ("prompt", "task")
MODEL_QUEUE = "model"

# Programs rely on the order of arguments, so new ones come last. The endpoints of single maps have few, since their
# figure is meant for people.
_MAP_FIELDS = "prompt subject samples window noise seed subject_tokens_only model answer chat"
_PROMPT_FIELDS = "prompt subject model answer occurrence chat answer_form"

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Endpoints:
    """The endpoints of one service. Those that trace stream partial results; the last one is complete."""

    service: TraceService

    def trace_map(self, kind: LayerKind) -> Callable[..., AsyncGenerator[tuple[Json, Json]]]:
        """Return the endpoint that traces and draws a map of one kind."""

        async def endpoint(*args: Any, **kwargs: Any) -> AsyncGenerator[tuple[Json, Json]]:
            fields, request = arguments(*args, **kwargs)
            async with aclosing(self._streamed({**fields, "kind": kind}, request, map_and_result)) as steps:
                async for step in steps:
                    yield step

        about = f"Trace {SITES[kind].patched}. Returns a Plotly figure as JSON, and the result as JSON, as /trace does."
        window = replace(APP_FIELDS["window"], type=int, default=SITES[kind].window)
        offered = {**_fields(_MAP_FIELDS), "window": window}
        arguments = _describe(endpoint, f"trace_{kind}", about, offered, tuple[Json, Json])
        return endpoint

    def trace(self) -> Callable[..., AsyncGenerator[Json]]:
        """Return the endpoint that traces with all settings."""

        async def endpoint(*args: Any, **kwargs: Any) -> AsyncGenerator[Json]:
            given, request = arguments(*args, **kwargs)
            async with aclosing(self._streamed(given["task"], request, result, check_trace)) as steps:
                async for step in steps:
                    yield step

        arguments = _describe(endpoint, "trace", ABOUT_TRACE, TRACE_TASK, Json)
        return endpoint

    def lens(self) -> Callable[..., Json]:
        """Return the endpoint of the logit lens."""

        def endpoint(*args: Any, **kwargs: Any) -> Json:
            given, request = arguments(*args, **kwargs)
            with for_clients():
                asked = check_lens(given["task"], self.service.settings)
                return self.service.lens(
                    asked.request,
                    asked.model,
                    client_of(request, self.service.settings),
                    top=asked.top,
                    corrupted=asked.corrupted,
                    restored=asked.restored,
                    spec=asked.spec,
                    options=asked.options,
                ).to_dict()

        arguments = _describe(endpoint, "lens", ABOUT_LENS, LENS_TASK, Json)
        return endpoint

    def patch(self) -> Callable[..., Json]:
        """Return the endpoint that runs a prompt with activations of another prompt patched in."""

        def endpoint(*args: Any, **kwargs: Any) -> Json:
            given, request = arguments(*args, **kwargs)
            with for_clients():
                asked = check_patch(given["task"], self.service.settings)
                return self.service.patch(
                    asked.source,
                    asked.base,
                    asked.pairs,
                    asked.model,
                    client_of(request, self.service.settings),
                    site=asked.site,
                    answers=asked.answers,
                    top=asked.top,
                ).to_dict()

        arguments = _describe(endpoint, "patch", ABOUT_PATCH, PATCH_TASK, Json)
        return endpoint

    def inspect_prompt(self) -> Callable[..., Json]:
        """Return the endpoint that inspects a prompt."""

        def endpoint(*args: Any, **kwargs: Any) -> Json:
            fields, request = arguments(*args, **kwargs)
            with for_clients():
                return asdict(self.service.inspect(fields, client_of(request, self.service.settings)))

        about = (
            "Inspect a prompt before tracing it. Returns its tokens with character spans, the subject's span, the most "
            "probable answers, and problems."
        )
        arguments = _describe(endpoint, "inspect_prompt", about, _fields(_PROMPT_FIELDS), Json)
        return endpoint

    def models(self) -> list[Json]:
        """List the available models, the default first: size, state, automatic noise level, number of layers."""
        with for_clients():
            return [{**asdict(status), "size": status.size_words} for status in self.service.statuses()]

    def status(self) -> Callable[..., Json]:
        """Return the endpoint of a model's status."""

        def endpoint(*args: Any, **kwargs: Any) -> Json:
            fields, _ = arguments(*args, **kwargs)
            with for_clients():
                return {**asdict(self.service.status(fields["model"])), "models": list(self.service.models)}

        about = "Return a model's state (waiting, loading, ready, failed), automatic noise level and number of layers."
        arguments = _describe(endpoint, "status", about, _fields("model"), Json)
        return endpoint

    def health(self) -> Json:
        """Return "ok", or "failed" if no model could be loaded, and the number of running and waiting requests."""
        with for_clients():
            return self.service.health()

    def _streamed(
        self,
        asked: Any,
        request: gr.Request | None,
        shown: Callable[[RunUpdate], Answer],
        check: Callable[[Any, ServiceSettings], CheckedFields] = check_fields,
    ) -> AsyncGenerator[Answer]:
        def steps(left: Cancelled) -> Generator[Answer]:
            updates = self.service.trace(asked, client_of(request, self.service.settings), left, check=check)
            with for_clients(), closing(thinned(updates, PARTIAL_SECONDS)) as few:
                for update in few:
                    yield shown(update)

        return stepped(steps)


def add_endpoints(service: TraceService) -> None:
    """Add the endpoints to the `gr.Blocks` under construction.

    With MCP, the endpoints of single maps are undocumented: their figure is of no use to an MCP client, and /trace
    returns the same JSON.
    """
    endpoints, workers = Endpoints(service), service.settings.workers
    maps: Literal["public", "undocumented"] = "undocumented" if service.settings.mcp else "public"
    of_model: dict[str, Any] = {"concurrency_id": MODEL_QUEUE, "concurrency_limit": workers}
    for kind in KINDS:
        api(endpoints.trace_map(kind), api_name=f"trace_{kind}", api_visibility=maps, **of_model)
    for make in (endpoints.trace, endpoints.lens, endpoints.patch):
        api(make(), api_name=make.__name__, **of_model)
    api(endpoints.inspect_prompt(), api_name="inspect_prompt", concurrency_limit=workers)
    api(endpoints.models, api_name="models", queue=False)
    api(endpoints.status(), api_name="status", queue=False)
    api(endpoints.health, api_name="health", queue=False)


def _fields(names: str) -> dict[str, AppField]:
    return {name: APP_FIELDS[name] for name in names.split()}


def _describe(
    endpoint: Callable[..., Any], name: str, about: str, fields: Mapping[str, AppField], returned: Any
) -> Callable[..., tuple[dict[str, Any], gr.Request | None]]:
    """Give an endpoint its name, docstring and signature.

    Returns:
        A function that separates the endpoint's arguments into fields and the Gradio request.
    """
    by_position = inspect.Parameter.POSITIONAL_OR_KEYWORD
    parameters = [
        inspect.Parameter(
            each,
            by_position,
            default=inspect.Parameter.empty if each in _REQUIRED else field.default,
            annotation=field.type,
        )
        for each, field in fields.items()
    ]
    parameters.append(inspect.Parameter("request", by_position, default=None, annotation=gr.Request | None))
    signature = inspect.Signature(parameters, return_annotation=returned)
    endpoint.__name__ = endpoint.__qualname__ = name
    endpoint.__doc__ = "\n".join([about, "", "Args:", *(f"    {each}: {field.help}" for each, field in fields.items())])
    kinds = {each: field.type for each, field in fields.items()}
    endpoint.__annotations__ = {**kinds, "request": gr.Request | None, "return": returned}
    endpoint.__signature__ = signature  # type: ignore[attr-defined]
    # `AppBlocks` publishes these descriptions: a docstring cannot describe the fields of an argument.
    endpoint.field_help = {each: field.field_help for each, field in fields.items() if isinstance(field, TaskField)}  # type: ignore[attr-defined]

    def arguments(*args: Any, **kwargs: Any) -> tuple[dict[str, Any], gr.Request | None]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = dict(bound.arguments)
        return given, given.pop("request")

    return arguments
