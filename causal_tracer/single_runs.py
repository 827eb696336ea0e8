"""What a tracer reads off single runs: the logit lens, and patched runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from causal_tracer.arguments import choice, flag, several
from causal_tracer.errors import SettingsError
from causal_tracer.experiment.set_up import TracingContext
from causal_tracer.request.records import MapSpec, RunOptions, Text, TraceRequest, trace_records
from causal_tracer.request.sites import SITES, SiteName
from causal_tracer.results.lens import LogitLens
from causal_tracer.results.patched import PatchedRun
from causal_tracer.tracing.lens import answer_field, noisy_lens, prompt_lens
from causal_tracer.tracing.patched import Pair, patched_run


class SingleRunCalls(ABC):
    """The calls of a tracer that read a single run, without a sweep."""

    @property
    @abstractmethod
    def context(self) -> TracingContext:
        """Model, tokenizer and noise, as the functions of the engine take them."""

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
        **settings: Any,
    ) -> LogitLens:
        """Read the residual stream after each block through the model's own final norm and head.

        By default of the clean run, which needs no subject. Runs with noise are averaged: each cell shows the mean of
        the probabilities over samples, with the entropy and the answer's rank of that mean.

        Args:
            prompt: The text that the model goes on from, a conversation, or a whole request.
            answer: The answer whose probability and rank are read, as a text or a token id; of several tokens, its
                first one. None takes that of the request, or the clean run's most probable token.
            top: How many of the most probable tokens are kept.
            corrupted: Read the corrupted run instead.
            restored: Read the run of this cell instead: (row, layer) of the map that `spec` describes.
            spec: The map that the cell is of, where it is not given by `settings`; by default hidden states.
            options: How the runs are computed, where that is not given by `settings`.
            settings: Any field of `TraceRequest`, `MapSpec` and `RunOptions`, such as subject="Paris" or samples=20.

        Raises:
            SettingsError, PromptError, SubjectError, TokenizerError: The arguments do not fit together or the model.
            ModelStructureError: The model has no final norm, or its logits depend on more than the last block's output.
            NumericsError: A run gave NaN or infinite logits.
        """
        request, spec, options = trace_records(prompt, settings, (spec, options))
        if answer is not None:
            request = replace(request, **{"answer": None, "answer_id": None, **answer_field(answer)})
        if restored is not None and len(several("restored", restored)) != 2:
            raise SettingsError(f"restored must be (row, layer) (given: {restored!r}).")
        if not flag("corrupted", corrupted) and restored is None:
            return prompt_lens(self.context, request, top)
        return noisy_lens(self.context, request, spec, options, top, restored)

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
        """Run a prompt with activations of another prompt's clean run in it: any cell into any cell.

        All pairs are put into one run. A value is put in where its module returns it, so that all later layers see it.

        Args:
            source: The prompt whose activations are taken: a text or a conversation.
            base: The prompt that is run with them.
            pairs: ((source token, source layer), (base token, base layer)), one or more. Negative tokens count from the
                end. With site="head" both ends have an attention head as well: (token, layer, head).
            site: Which activations: "hidden" (a block's output), "mlp", "attention" or "head".
            answers: Texts or token ids whose probabilities are read after the last token; of several tokens, the first
                one. None takes the most probable token of the source's run and of the base's.
            top: How many of the most probable tokens the patched run's lens keeps.

        Raises:
            SettingsError: A pair is out of range, or two have the same base cell.
            PromptError, TokenizerError: A prompt or an answer does not fit the model.
            ModelStructureError: The site was not found, or the model has no logit lens (see `lens`).
            NumericsError: A run gave NaN or infinite logits.
        """
        sites = [name for name, each in SITES.items() if not each.blocks]
        return patched_run(self.context, source, base, pairs, SITES[choice("site", site, sites)].name, answers, top)
