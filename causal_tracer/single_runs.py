"""The methods of `CausalTracer` that read a single run instead of a sweep: the logit lens and patched runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from causal_tracer.arguments import as_list, choice, flag, function, optional
from causal_tracer.errors import SettingsError
from causal_tracer.experiment.set_up import TracingContext
from causal_tracer.request.records import MapSpec, RunOptions, Text, TraceRequest, trace_records
from causal_tracer.request.sites import SITES, SiteName
from causal_tracer.results.lens import LogitLens
from causal_tracer.results.patched import PatchedRun
from causal_tracer.tracing.lens import answer_field, noisy_lens, prompt_lens
from causal_tracer.tracing.patched import Pair, patched_run


class SingleRunCalls(ABC):
    """The methods `lens` and `patch` of a tracer."""

    @property
    @abstractmethod
    def context(self) -> TracingContext:
        """The model, tokenizer and noise level, as the engine's functions take them."""

    def lens(
        self,
        prompt: Text | TraceRequest,
        answer: str | int | None = None,
        top: int = 5,
        *,
        corrupted: bool = False,
        restored: tuple[int, int] | None = None,
        spec: MapSpec | None = None,
        options: RunOptions | None = None,
        cancelled: Callable[[], bool] | None = None,
        **settings: Any,
    ) -> LogitLens:
        """Return the logit lens of one run: the residual stream after each block, read by the final norm and head.

        The default is the clean run, which needs no subject. Runs with noise are averaged: each cell has the mean
        distribution over samples, its entropy, and the answer's rank in it.

        Args:
            prompt: The text that the model continues, a conversation, or a whole request.
            answer: The answer whose probability and rank are read, as text or as a token id. Of several tokens, only
                the first is read. None takes the request's answer, or the clean run's most probable token.
            top: Number of most probable tokens to keep for each cell.
            corrupted: Read the corrupted run instead of the clean one.
            restored: Read the run with this cell restored instead: (row, layer) of the map that `spec` describes.
            spec: The map that the cell belongs to. None makes it from `settings`; the default is hidden states.
            options: How the runs are computed. None makes them from `settings`.
            cancelled: Called before each group of cells is read; returning True stops the lens.
            settings: Any field of `TraceRequest`, `MapSpec` and `RunOptions`, such as subject="Paris" or samples=20.

        Raises:
            SettingsError, PromptError, SubjectError, TokenizerError: The arguments contradict each other or do not fit
                the model.
            ModelStructureError: The model has no final norm, or its logits depend on more than the last block's output.
            NumericsError: A run gave NaN or infinite logits.
            TraceCancelled: `cancelled` returned True.
        """
        request, spec, options = trace_records(prompt, settings, (spec, options))
        if answer is not None:
            request = replace(request, **{"answer": None, "answer_id": None, **answer_field(answer)})
        if restored is not None and len(as_list("restored", restored)) != 2:
            raise SettingsError(f"restored must be (row, layer) (given: {restored!r}).")
        cancelled = optional(function)("cancelled", cancelled) or (lambda: False)
        if not flag("corrupted", corrupted) and restored is None:
            return prompt_lens(self.context, request, top, cancelled)
        return noisy_lens(self.context, request, spec, options, top, restored, cancelled)

    def patch(
        self,
        source: Text,
        base: Text,
        pairs: Sequence[Pair],
        site: SiteName = "hidden",
        *,
        answers: Sequence[str | int] | None = None,
        top: int = 5,
    ) -> PatchedRun:
        """Run the base prompt with activations patched in from the source prompt's clean run, any cell into any cell.

        All pairs are patched in one run. Each activation is replaced where its module computes it, so that all later
        layers see it.

        Args:
            source: The prompt that activations are taken from: a text or a conversation.
            base: The prompt that they are patched into.
            pairs: One or more pairs ((source token, source layer), (base token, base layer)). Negative tokens count
                from the end. With site="head" both cells also name an attention head: (token, layer, head).
            site: Which activations: "hidden" (a block's output), "mlp", "attention" or "head".
            answers: Texts or token ids whose probabilities are read after the last token. Of several tokens, only the
                first is read. None takes the most probable tokens of the source's and the base's clean runs.
            top: Number of most probable tokens to keep for each cell of the patched run's lens.

        Raises:
            SettingsError: A pair is out of range, or two pairs have the same base cell.
            PromptError, TokenizerError: A prompt or an answer does not fit the model.
            ModelStructureError: The site was not found, or the model has no logit lens (see `lens`).
            NumericsError: A run gave NaN or infinite logits.
        """
        sites = [name for name, each in SITES.items() if not each.blocks]
        return patched_run(self.context, source, base, pairs, SITES[choice("site", site, sites)].name, answers, top)
