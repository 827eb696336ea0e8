"""The answer of a request: its tokens, and the clean run in which it is read."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING

from torch import Tensor

from causal_tracer.errors import PromptError, SettingsError
from causal_tracer.model.runs import CleanRun, clean_run
from causal_tracer.prompts.answer_forms import choose_form, choose_matching_form, continuations, log_probability
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.sites import KINDS, SiteName

if TYPE_CHECKING:
    from causal_tracer.experiment.set_up import TracingContext
    from causal_tracer.request.records import TraceRequest


@dataclass(frozen=True, eq=False)
class ResolvedAnswer:
    """The answer of a request as tokens, with its clean run.

    Attributes:
        ids: The answer's token ids.
        sequence: The prompt, followed by all tokens of the answer except the last.
        clean: The clean run of the sequence.
        reads: The positions whose next tokens are read.
        foil_id: The first token id of the request's foil, if it has one.
        notes: Notes on the answer for the result.
    """

    ids: tuple[int, ...]
    sequence: Prompt
    clean: CleanRun
    reads: tuple[int, ...]
    foil_id: int | None
    notes: tuple[str, ...]

    @property
    def probability(self) -> float:
        """The probability of the answer (all of its tokens) in the clean run."""
        return math.exp(log_probability(self.clean.logits, self.ids))


def resolve_answer(
    context: TracingContext, request: TraceRequest, prompt: Prompt, sites: Iterable[SiteName] = KINDS
) -> ResolvedAnswer:
    """Return the answer of a request: the one given as id or text, or the clean run's most probable token.

    A foil is read in the same form as the answer, with or without a space before it. If the answer is not given as
    text, the more probable form of the foil is read.

    Args:
        context: The model.
        request: The request.
        prompt: The request's prompt.
        sites: The sites whose activations the clean run records.

    Raises:
        SettingsError: The answer or the position to read does not fit the prompt or the model.
        PromptError: The answer or the foil cannot follow the prompt.
        NumericsError: The clean run gave NaN or infinite logits.
    """
    last = len(prompt) - 1
    read = last if request.read is None else request.read
    if not 0 <= read <= last:
        raise SettingsError(f"read={read} is out of range: the prompt has {len(prompt)} tokens (0 to {last}).")
    run_after, form = _runs(context, prompt, read, tuple(sites)), None

    def logits_after(forced: tuple[int, ...]) -> Tensor:
        return run_after(forced)[1].logits

    ids: tuple[int, ...] = ()
    if request.answer is not None:
        forms = continuations(context.tokenizer, prompt, request.answer, request.answer_form, read=read)
        form = choose_form(forms, logits_after)
        ids = form.ids
    elif request.answer_id is not None:
        size = context.traced.vocab_size
        if not 0 <= request.answer_id < size:
            raise SettingsError(f"answer_id={request.answer_id} is out of range. The model's ids are 0 to {size - 1}.")
        ids = (request.answer_id,)
    if len(ids) > 1 and read != last:
        raise SettingsError(
            f"The answer {request.answer!r} has {len(ids)} tokens, and several tokens can be read after the whole "
            "prompt only. Leave out `read`, or give a single token as answer_id."
        )
    sequence, clean = run_after(ids[:-1])
    foil_id = None
    if request.foil is not None:
        forms = continuations(context.tokenizer, prompt, request.foil, request.answer_form, read=read, name="foil")
        foil_id = (choose_form(forms, logits_after) if form is None else choose_matching_form(forms, form)).ids[0]
    return ResolvedAnswer(
        ids=ids or (clean.top_id,),
        sequence=sequence,
        clean=clean,
        reads=tuple(range(read, read + max(1, len(ids)))),
        foil_id=foil_id,
        notes=(form.note,) if form is not None and form.note else (),
    )


def _runs(
    context: TracingContext, prompt: Prompt, read: int, sites: tuple[SiteName, ...]
) -> Callable[[tuple[int, ...]], tuple[Prompt, CleanRun]]:
    """Return a function that inserts answer tokens after the position read, and returns the prompt and clean run."""

    @cache
    def after(forced: tuple[int, ...]) -> tuple[Prompt, CleanRun]:
        limit = context.traced.context_length
        # Without answer tokens the whole prompt is run, since its clean run is needed anyway.
        end = read + 1 if forced else len(prompt)
        sequence = replace(
            prompt,
            input_ids=prompt.input_ids[:end] + forced,
            tokens=prompt.tokens[:end] + ("",) * len(forced),
        )
        if limit is not None and len(sequence) > limit:
            raise PromptError(
                f"Prompt and answer have {len(sequence)} tokens, and the model takes at most {limit}. "
                "Shorten the prompt."
            )
        reads = tuple(range(read, read + len(forced) + 1))
        return sequence, clean_run(context.traced, sequence.input_ids, reads, sites)

    return after
