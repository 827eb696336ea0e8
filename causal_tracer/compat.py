"""The methods of causal-tracer 1.1.0: the same names, arguments, argument order and numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from causal_tracer.arguments import as_list, instance
from causal_tracer.request.records import HiddenFlowQuery, MapSpec, RunOptions, TraceRequest, trace_records
from causal_tracer.request.sites import LayerKind
from causal_tracer.results.flow import HiddenFlow

Progress = Callable[[int, int], None]
"""Called with (restored runs done, total restored runs)."""

Cancelled = Callable[[], bool]
"""Called between batches; returning True stops the trace."""


class VersionOneCalls(ABC):
    """The methods of a causal-tracer 1.1.0 tracer, on top of `trace_many`."""

    @abstractmethod
    def trace_many(
        self,
        requests: Sequence[TraceRequest],
        spec: MapSpec | None = None,
        options: RunOptions | None = None,
        *,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
    ) -> list[HiddenFlow]:
        """See `CausalTracer.trace_many`."""

    def calculate_hidden_flow(
        self,
        prompt: str,
        subject: str | None = None,
        kind: LayerKind = "hidden",
        answer_id_override: int | None = None,
        samples: int = 10,
        window: int = 1,
        patch_seed: int = 1,
        batch_size: int | None = None,
        start_layer: int = 0,
        end_layer: int | None = None,
        patch_subject_tokens_only: bool = False,
        *,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
        **settings: Any,
    ) -> HiddenFlow:
        """Trace one prompt with the arguments of causal-tracer 1.1.0; `CausalTracer.trace` has the paper's windows.

        Args:
            prompt: The text that the model continues.
            subject: The part of the prompt to corrupt. None guesses it; the result then has `subject_guessed`.
            kind: Restore "hidden" states (a block's output), "mlp" or "attention" outputs.
            answer_id_override: The token id to measure. None takes the most probable next token of the clean run.
            samples: Number of noise samples. All cells use the same noise.
            window: Number of consecutive layers restored together, centred on the cell's layer.
            patch_seed: Seed of the noise.
            batch_size: Largest number of rows in a batch. None chooses it for the model, the prompt's length and the
                machine's total memory.
            start_layer: First layer to compute.
            end_layer: One past the last layer to compute; None computes up to the last block.
            patch_subject_tokens_only: Restore at the subject's tokens only.
            progress: Called with (restored runs done, total restored runs).
            cancelled: Called between batches; returning True stops the trace.
            settings: Further fields of `TraceRequest`, `MapSpec` and `RunOptions`.

        Returns:
            The map. Cells that were not computed are NaN.

        Raises:
            SettingsError, PromptError, SubjectError, TokenizerError: The arguments contradict each other or do not fit
                the model.
            NumericsError: A run gave NaN or infinite logits.
            TraceCancelled: `cancelled` returned True.
        """
        named: dict[str, Any] = {
            "subject": subject,
            "kind": kind,
            "answer_id": answer_id_override,
            "samples": samples,
            "window": window,
            "seed": patch_seed,
            "batch_size": batch_size,
            "start_layer": start_layer,
            "end_layer": end_layer,
            "subject_tokens_only": patch_subject_tokens_only,
        }
        request, spec, options = trace_records(prompt, {**settings, **named})
        return self.trace_many([request], spec, options, progress=progress, cancelled=cancelled)[0]

    def calculate_hidden_flows(
        self,
        queries: Sequence[str | HiddenFlowQuery],
        samples: int = 10,
        window: int = 1,
        kind: LayerKind = "hidden",
        patch_seed: int = 1,
        batch_size: int | None = None,
        start_layer: int = 0,
        end_layer: int | None = None,
        patch_subject_tokens_only: bool = False,
        *,
        progress: Progress | None = None,
        cancelled: Cancelled | None = None,
        **settings: Any,
    ) -> list[HiddenFlow]:
        """Trace several prompts of any lengths. Each result equals that of tracing its prompt alone.

        The arguments are those of `calculate_hidden_flow`, in the order of this method in causal-tracer 1.1.0.
        """
        named: dict[str, Any] = {
            "kind": kind,
            "samples": samples,
            "window": window,
            "seed": patch_seed,
            "batch_size": batch_size,
            "start_layer": start_layer,
            "end_layer": end_layer,
            "subject_tokens_only": patch_subject_tokens_only,
        }
        records = [
            trace_records(
                query.text, {**settings, **named, "subject": query.subject, "answer_id": query.override_answer_id}
            )
            for query in as_queries("queries", queries)
        ]
        if not records:
            return []
        _, spec, options = records[0]
        return self.trace_many(
            [request for request, _, _ in records], spec, options, progress=progress, cancelled=cancelled
        )


def as_queries(name: str, given: Sequence[str | HiddenFlowQuery]) -> list[HiddenFlowQuery]:
    """Return the prompts as `HiddenFlowQuery` records; a string becomes a query for that text.

    Raises:
        SettingsError: An item is neither a string nor a `HiddenFlowQuery`.
    """
    return [
        HiddenFlowQuery(item) if isinstance(item, str) else instance(f"Each of {name}", item, HiddenFlowQuery)
        for item in as_list(name, given)
    ]
