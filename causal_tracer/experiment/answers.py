"""The answer that a request asks for: its tokens, and the clean run that it is read in."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from causal_tracer.errors import PromptError, SettingsError
from causal_tracer.model.runs import CleanRun, clean_run
from causal_tracer.prompts.answer_forms import choose, choose_like, continuations, log_probability
from causal_tracer.prompts.prompt import Prompt

if TYPE_CHECKING:
    from causal_tracer.experiment.set_up import TracingContext
    from causal_tracer.request.records import TraceRequest


class _Runs:
    """The clean runs of a prompt with tokens of answers after it."""

    def __init__(self, context: TracingContext, prompt: Prompt, read: int):
        self._context = context
        self._prompt = prompt
        self.read = read
        self._known: dict[tuple[int, ...], tuple[Prompt, CleanRun]] = {}

    def after(self, forced: tuple[int, ...]) -> tuple[Prompt, CleanRun]:
        """The prompt with these tokens after the one read, and its clean run."""
        if forced not in self._known:
            limit = self._context.traced.context_length
            # Without more tokens, the whole prompt: its clean run is needed anyway.
            prompt, end = self._prompt, self.read + 1 if forced else len(self._prompt)
            sequence = replace(
                prompt,
                input_ids=prompt.input_ids[:end] + forced,
                tokens=prompt.tokens[:end] + ("",) * len(forced),
            )
            if limit is not None and len(sequence) > limit:
                raise PromptError(
                    f"Prompt and answer have {len(sequence)} tokens, and the model takes at most {limit}."
                )
            reads = tuple(range(self.read, self.read + len(forced) + 1))
            self._known[forced] = sequence, clean_run(self._context.traced, sequence.input_ids, reads)
        return self._known[forced]

    def logits_after(self, forced: tuple[int, ...]) -> Tensor:
        """See `LogitsAfter`."""
        return self.after(forced)[1].logits


@dataclass(frozen=True, eq=False)
class AskedAnswer:
    """The answer that a request asks for.

    Attributes:
        ids: Its tokens.
        sequence: What is run: the prompt with the answer's tokens but the last after it.
        clean: The clean run of the sequence.
        reads: The positions whose next tokens are read.
        foil_id: The first token of the request's foil, if it has one.
        notes: What a reader of the result has to know of the answer.
    """

    ids: tuple[int, ...]
    sequence: Prompt
    clean: CleanRun
    reads: tuple[int, ...]
    foil_id: int | None
    notes: tuple[str, ...]

    @property
    def probability(self) -> float:
        """Of all the answer's tokens in the clean run."""
        return math.exp(log_probability(self.clean.logits, self.ids))


def asked_answer(context: TracingContext, request: TraceRequest, prompt: Prompt) -> AskedAnswer:
    """Return the answer of a request: the one given by id or as text, or the model's own.

    A foil is read in the answer's form, with a space before it or without; beside an answer that is not given as text,
    in its own more probable form.

    Raises:
        SettingsError: The answer or the position to read does not fit the prompt or the model.
        PromptError: The answer or the foil cannot follow the prompt.
        NumericsError: The clean run gave NaN or infinite logits.
    """
    last = len(prompt) - 1
    read = last if request.read is None else request.read
    if not 0 <= read <= last:
        raise SettingsError(f"read={read} is no token of the prompt, which has {len(prompt)}. Give 0 to {last}.")
    runs, form = _Runs(context, prompt, read), None
    ids: tuple[int, ...] = ()
    if request.answer is not None:
        forms = continuations(context.tokenizer, prompt, request.answer, request.answer_form, read=read)
        form = choose(forms, runs.logits_after)
        ids = form.ids
    elif request.answer_id is not None:
        ids = (_checked_id(request.answer_id, context.traced.vocab_size),)
    if len(ids) > 1 and read != last:
        raise SettingsError(
            f"The answer {request.answer!r} has {len(ids)} tokens, which are read after the whole prompt. Leave "
            "`read` out, or give a single token as answer_id."
        )
    sequence, clean = runs.after(ids[:-1])
    foil_id = None
    if request.foil is not None:
        forms = continuations(context.tokenizer, prompt, request.foil, request.answer_form, read=read, name="foil")
        foil_id = (choose(forms, runs.logits_after) if form is None else choose_like(forms, form)).ids[0]
    return AskedAnswer(
        ids=ids or (clean.top_id,),
        sequence=sequence,
        clean=clean,
        reads=tuple(range(read, read + max(1, len(ids)))),
        foil_id=foil_id,
        notes=(form.note,) if form is not None and form.note else (),
    )


def _checked_id(answer_id: int, vocab_size: int) -> int:
    if not 0 <= answer_id < vocab_size:
        raise SettingsError(f"Answer id {answer_id} is not in the vocabulary. Its ids are 0 to {vocab_size - 1}.")
    return answer_id
