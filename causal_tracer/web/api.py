"""The app's endpoints for programs, typed by their hints; `gradio_client` and MCP read the docstrings.

No postponed annotations here: Gradio takes the hints as they stand. And the generators are annotated with what
they yield, since that is where Gradio takes the number and types of an endpoint's results from.
"""

import json
from collections.abc import Generator
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import Any

from causal_tracer.errors import CausalTracerError
from causal_tracer.layers import LayerKind
from causal_tracer.web.handlers import app_figure, thinned
from causal_tracer.web.service import RunUpdate, TraceInput, TraceService

Json = dict[str, Any]

PARTIAL_SECONDS = 2.0


@dataclass(frozen=True)
class Endpoints:
    """The endpoints of one service; each streams partial results, the last one being complete."""

    service: TraceService

    def trace_hidden(  # type: ignore[misc]
        self,
        prompt: str,
        subject: str = "",
        samples: int = 10,
        window: int = 1,
        noise: float | None = None,
        seed: int = 1,
        subject_tokens_only: bool = False,
    ) -> tuple[Json, Json]:
        """Trace hidden states: a Plotly figure as JSON, and the result as JSON.

        Args:
            prompt: The text that the model goes on from.
            subject: The part of it to corrupt; empty has it guessed.
            samples: Noise samples.
            window: Layers restored together.
            noise: Standard deviation of the noise; null takes the automatic level, 0 adds none.
            seed: Seed of the noise.
            subject_tokens_only: Restore at the subject's tokens only.
        """
        yield from self._map("hidden", prompt, subject, samples, window, noise, seed, subject_tokens_only)

    def trace_mlp(  # type: ignore[misc]
        self,
        prompt: str,
        subject: str = "",
        samples: int = 10,
        window: int = 10,
        noise: float | None = None,
        seed: int = 1,
        subject_tokens_only: bool = False,
    ) -> tuple[Json, Json]:
        """Trace MLP outputs: a Plotly figure as JSON, and the result as JSON.

        Args:
            prompt: The text that the model goes on from.
            subject: The part of it to corrupt; empty has it guessed.
            samples: Noise samples.
            window: Layers restored together.
            noise: Standard deviation of the noise; null takes the automatic level, 0 adds none.
            seed: Seed of the noise.
            subject_tokens_only: Restore at the subject's tokens only.
        """
        yield from self._map("mlp", prompt, subject, samples, window, noise, seed, subject_tokens_only)

    def trace_attention(  # type: ignore[misc]
        self,
        prompt: str,
        subject: str = "",
        samples: int = 10,
        window: int = 10,
        noise: float | None = None,
        seed: int = 1,
        subject_tokens_only: bool = False,
    ) -> tuple[Json, Json]:
        """Trace attention outputs: a Plotly figure as JSON, and the result as JSON.

        Args:
            prompt: The text that the model goes on from.
            subject: The part of it to corrupt; empty has it guessed.
            samples: Noise samples.
            window: Layers restored together.
            noise: Standard deviation of the noise; null takes the automatic level, 0 adds none.
            seed: Seed of the noise.
            subject_tokens_only: Restore at the subject's tokens only.
        """
        yield from self._map("attention", prompt, subject, samples, window, noise, seed, subject_tokens_only)

    def trace(  # type: ignore[misc]
        self,
        prompt: str,
        subject: str = "",
        kind: LayerKind = "hidden",
        samples: int = 10,
        window: int | None = None,
        noise: float | None = None,
        seed: int = 1,
        subject_tokens_only: bool = False,
        start_layer: int = 0,
        end_layer: int | None = None,
        model: str = "",
    ) -> Json:
        """Trace one prompt: the result as JSON, as `HiddenFlow.from_dict` reads it; null for cells not computed.

        Args:
            prompt: The text that the model goes on from.
            subject: The part of it to corrupt; empty has it guessed.
            kind: "hidden", "mlp" or "attention".
            samples: Noise samples.
            window: Layers restored together; null takes 1 for hidden, 10 for MLP and attention.
            noise: Standard deviation of the noise; null takes the automatic level, 0 adds none.
            seed: Seed of the noise.
            subject_tokens_only: Restore at the subject's tokens only.
            start_layer: First layer to compute.
            end_layer: One past the last layer to compute; null computes up to the last block.
            model: One of the app's models; empty takes the first.
        """
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
        )
        for update in self._updates(asked):
            if update.flow is not None:
                yield update.flow.to_dict()

    def status(self, model: str = "") -> Json:
        """How far a model is: waiting, loading, ready or failed; its automatic noise level and number of layers.

        Args:
            model: One of the app's models; empty takes the first.
        """
        try:
            return {**asdict(self.service.status(model)), "models": list(self.service.models)}
        except CausalTracerError as error:
            raise _for_clients(error) from error

    def _map(
        self,
        kind: LayerKind,
        prompt: str,
        subject: str,
        samples: int,
        window: int,
        noise: float | None,
        seed: int,
        subject_tokens_only: bool,
    ) -> Generator[tuple[Json, Json]]:
        asked = TraceInput(prompt, subject, kind, samples, window, noise, seed, subject_tokens_only)
        for update in self._updates(asked):
            if update.flow is not None:
                figure = app_figure(update.flow, filling=update.done < update.total)
                yield json.loads(figure.to_json()), update.flow.to_dict()

    def _updates(self, asked: TraceInput) -> Generator[RunUpdate]:
        try:
            with closing(thinned(self.service.trace(asked), PARTIAL_SECONDS)) as updates:
                yield from updates
        except CausalTracerError as error:
            raise _for_clients(error) from error


def _for_clients(error: CausalTracerError) -> Exception:
    """The error as it reaches a client with its message; it is the client's, so the server's log need not have it."""
    import gradio as gr

    return gr.Error(str(error), print_exception=False)
