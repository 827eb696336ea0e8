"""The app's endpoints for programs, typed by their hints; `gradio_client` and MCP read the docstrings.

No postponed annotations here: Gradio takes the hints as they stand. And the generators are annotated with what
they yield, since that is where Gradio takes the number and types of an endpoint's results from.
"""

from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import aclosing, closing
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Literal, TypeVar

import gradio as gr
from gradio.events import api

from causal_tracer.errors import SettingsError
from causal_tracer.prompts.answer_forms import AnswerForm
from causal_tracer.prompts.subject import Occurrence
from causal_tracer.web.api.answers import Json, for_clients, map_and_result, result
from causal_tracer.web.service.asking import Asked, TraceInput
from causal_tracer.web.service.limits import client_of
from causal_tracer.web.service.tracing import TraceService
from causal_tracer.web.service.updates import Cancelled, RunUpdate, stepped, thinned

Corruption = Literal[
    "gaussian",
    "gaussian replacing",
    "uniform",
    "uniform replacing",
    "multivariate",
    "student-t",
    "zero",
    "mean",
]

PARTIAL_SECONDS = 2.0
MODEL_QUEUE = "model"

_ARGUMENTS: dict[str, str] = {
    "prompt": "The text that the model goes on from.",
    "subject": "The part of it to corrupt; empty has it guessed.",
    "kind": '"hidden", "mlp" or "attention", or "all" of them in one sweep.',
    "samples": "Noise samples.",
    "window": "Layers restored together; null takes 1 for hidden, 10 for MLP and attention.",
    "noise": "Standard deviation of the noise; null takes the automatic level, 0 adds none.",
    "seed": "Seed of the noise.",
    "subject_tokens_only": "Restore at the subject's tokens only.",
    "start_layer": "First layer to compute.",
    "end_layer": "One past the last layer to compute; null computes up to the last block.",
    "model": "One of the app's models (/models); empty takes the first.",
    "answer": "The answer to trace, as text; a space at its start is a part of it. Empty takes the model's own.",
    "answer_id": "The answer to trace, as a token id; null takes `answer`.",
    "occurrence": 'Which one is meant where the subject occurs more than once: "first" or "last".',
    "corruption": "What is done to the subject's embeddings.",
    "batch_size": "Rows that go through the model together; null takes the app's.",
    "answer_form": '"exact" reads the answer right after the prompt as it is written; "auto" also tries a space.',
    "chat": "The prompt is a user's message, written by the model's chat template (/models says which have one); the "
    "answer is the start of the assistant's.",
}

Function = TypeVar("Function", bound=Callable[..., Any])
Step = TypeVar("Step")


def _with_arguments(function: Function) -> Function:
    """Add to the docstring what its arguments are: the same words wherever one stands."""
    names = [name for name in function.__annotations__ if name in _ARGUMENTS]
    lines = [f"    {name}: {_ARGUMENTS[name]}" for name in names]
    function.__doc__ = "\n".join([str(function.__doc__), "", "Args:", *lines])
    return function


@dataclass(frozen=True)
class Endpoints:
    """The endpoints of one service; those that trace stream partial results, the last one being complete."""

    service: TraceService

    @_with_arguments
    async def trace_hidden(  # type: ignore[misc]
        self,
        prompt: str,
        subject: str = "",
        samples: int = 10,
        window: int = 1,
        noise: float | None = None,
        seed: int = 1,
        subject_tokens_only: bool = False,
        model: str = "",
        answer: str = "",
        chat: bool = False,
        request: gr.Request | None = None,
    ) -> tuple[Json, Json]:
        """Trace hidden states: a Plotly figure as JSON, and the result as JSON, as /trace gives it."""
        asked = TraceInput(
            prompt,
            subject,
            "hidden",
            samples,
            window,
            noise,
            seed,
            subject_tokens_only,
            model=model,
            answer=answer,
            chat=chat,
        )
        async with aclosing(self._streamed(asked, request, map_and_result)) as steps:
            async for step in steps:
                yield step

    @_with_arguments
    async def trace_mlp(  # type: ignore[misc]
        self,
        prompt: str,
        subject: str = "",
        samples: int = 10,
        window: int = 10,
        noise: float | None = None,
        seed: int = 1,
        subject_tokens_only: bool = False,
        model: str = "",
        answer: str = "",
        chat: bool = False,
        request: gr.Request | None = None,
    ) -> tuple[Json, Json]:
        """Trace MLP outputs: a Plotly figure as JSON, and the result as JSON, as /trace gives it."""
        asked = TraceInput(
            prompt,
            subject,
            "mlp",
            samples,
            window,
            noise,
            seed,
            subject_tokens_only,
            model=model,
            answer=answer,
            chat=chat,
        )
        async with aclosing(self._streamed(asked, request, map_and_result)) as steps:
            async for step in steps:
                yield step

    @_with_arguments
    async def trace_attention(  # type: ignore[misc]
        self,
        prompt: str,
        subject: str = "",
        samples: int = 10,
        window: int = 10,
        noise: float | None = None,
        seed: int = 1,
        subject_tokens_only: bool = False,
        model: str = "",
        answer: str = "",
        chat: bool = False,
        request: gr.Request | None = None,
    ) -> tuple[Json, Json]:
        """Trace attention outputs: a Plotly figure as JSON, and the result as JSON, as /trace gives it."""
        asked = TraceInput(
            prompt,
            subject,
            "attention",
            samples,
            window,
            noise,
            seed,
            subject_tokens_only,
            model=model,
            answer=answer,
            chat=chat,
        )
        async with aclosing(self._streamed(asked, request, map_and_result)) as steps:
            async for step in steps:
                yield step

    @_with_arguments
    async def trace(  # type: ignore[misc]
        self,
        prompt: str,
        subject: str = "",
        kind: Asked = "hidden",
        samples: int = 10,
        window: int | None = None,
        noise: float | None = None,
        seed: int = 1,
        subject_tokens_only: bool = False,
        start_layer: int = 0,
        end_layer: int | None = None,
        model: str = "",
        answer: str = "",
        answer_id: int | None = None,
        occurrence: Occurrence = "last",
        corruption: Corruption = "gaussian",
        batch_size: int | None = None,
        chat: bool = False,
        answer_form: AnswerForm = "auto",
        request: gr.Request | None = None,
    ) -> Json:
        """Trace one prompt: the result as JSON, as `HiddenFlow.from_dict` reads it; null for cells not computed.

        Of kind "all", {"hidden": result, "mlp": result, "attention": result}. Beside that, "progress" says how far it
        is: done, total, seconds, cached, and what is waited for. While it waits, there is only that.
        """
        with for_clients():
            if answer and answer_id is not None:
                raise SettingsError(f"answer={answer!r} and answer_id={answer_id!r} are both given. Give one.")
        asked = TraceInput(
            prompt=prompt,
            subject=subject,
            kind=kind,
            samples=samples,
            window=window,
            noise=noise,
            seed=seed,
            subject_tokens_only=subject_tokens_only,
            start_layer=start_layer,
            end_layer=end_layer,
            model=model,
            answer=answer if answer_id is None else answer_id,
            occurrence=occurrence,
            corruption=corruption,
            batch_size=batch_size,
            chat=chat,
            answer_form=answer_form,
        )
        shown = partial(result, alone=kind != "all")
        async with aclosing(self._streamed(asked, request, shown)) as steps:
            async for step in steps:
                yield step

    @_with_arguments
    def inspect_prompt(
        self,
        prompt: str,
        subject: str = "",
        model: str = "",
        answer: str = "",
        occurrence: Occurrence = "last",
        chat: bool = False,
        answer_form: AnswerForm = "auto",
        request: gr.Request | None = None,
    ) -> Json:
        """Look at a prompt before tracing it: tokens with character spans, the subject's span, answers, problems."""
        asked = TraceInput(
            prompt, subject, model=model, answer=answer, occurrence=occurrence, chat=chat, answer_form=answer_form
        )
        with for_clients():
            return asdict(self.service.inspect(asked, client_of(request, self.service.settings)))

    def models(self) -> list[Json]:
        """The models that may be asked for, the default first: size, state, automatic noise level, layers."""
        with for_clients():
            return [{**asdict(status), "size": status.size_words} for status in self.service.statuses()]

    @_with_arguments
    def status(self, model: str = "") -> Json:
        """How far a model is: waiting, loading, ready or failed; its automatic noise level and number of layers."""
        with for_clients():
            return {**asdict(self.service.status(model)), "models": list(self.service.models)}

    def health(self) -> Json:
        """Whether the app can serve: "ok", or "failed" where no model could be loaded; runs that go on and wait."""
        with for_clients():
            return self.service.health()

    def _streamed(
        self, asked: TraceInput, request: gr.Request | None, shown: Callable[[RunUpdate], Step]
    ) -> AsyncGenerator[Step]:
        def steps(left: Cancelled) -> Generator[Step]:
            updates = self.service.trace(asked, client_of(request, self.service.settings), left)
            with for_clients(), closing(thinned(updates, PARTIAL_SECONDS)) as few:
                for update in few:
                    yield shown(update)

        return stepped(steps)


def add_endpoints(service: TraceService) -> None:
    """Put the endpoints into the `gr.Blocks` that is being made.

    With MCP, the map endpoints are left out of the descriptions that MCP clients choose from: a figure is of no use to
    them, and the JSON is the same.
    """
    endpoints, workers = Endpoints(service), service.settings.workers
    maps: Literal["public", "undocumented"] = "undocumented" if service.settings.mcp else "public"
    for function in (endpoints.trace_hidden, endpoints.trace_mlp, endpoints.trace_attention):
        api(
            function,
            api_name=function.__name__,
            concurrency_id=MODEL_QUEUE,
            concurrency_limit=workers,
            api_visibility=maps,
        )
    api(endpoints.trace, api_name="trace", concurrency_id=MODEL_QUEUE, concurrency_limit=workers)
    api(endpoints.inspect_prompt, api_name="inspect_prompt", concurrency_limit=workers)
    for name in ("models", "status", "health"):
        api(getattr(endpoints, name), api_name=name, queue=False)
