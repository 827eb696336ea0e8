"""The answers that a model of the app gives to a prompt: its most probable ones, and the one that would be traced."""

from __future__ import annotations

from dataclasses import dataclass

from causal_tracer.errors import PromptError, SettingsError
from causal_tracer.experiment.answers import resolve_answer
from causal_tracer.experiment.set_up import TracingContext
from causal_tracer.model.runs import clean_run
from causal_tracer.prompts.decoding import decode_together, token_text
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.records import TraceRequest
from causal_tracer.results.top_tokens import TokenProbability
from causal_tracer.web.service.recent import Recent

CANDIDATES = 5
_MOST_KEPT = 256


@dataclass(frozen=True)
class ModelAnswers:
    """A model's answers to a prompt.

    Attributes:
        candidates: The most probable answers, best first.
        answer: The answer that would be traced; None if the requested one cannot be.
        notes: What the reader of this answer should know.
        problem: The reason why the requested answer cannot be traced.
    """

    candidates: tuple[TokenProbability, ...]
    answer: TokenProbability | None = None
    notes: tuple[str, ...] = ()
    problem: str = ""


class KnownAnswers:
    """A model's answers to the prompts inspected last; safe to share between threads.

    The page inspects a prompt several times: as typed, with the subject that was guessed, and at Run. The model is run
    only the first time. The app's models are never changed, so an answer stays true.
    """

    def __init__(self) -> None:
        self._known: Recent[ModelAnswers] = Recent(_MOST_KEPT)

    def answers(self, context: TracingContext, request: TraceRequest, prompt: Prompt) -> ModelAnswers:
        """Return the answers to a request's prompt.

        Raises:
            NumericsError: The clean run gave NaN or infinite logits.
        """
        asked = (request.answer, request.answer_id, request.answer_form, request.read, request.foil)
        return self._known.get((prompt.text, prompt.input_ids, asked), lambda: read_answers(context, request, prompt))


def read_answers(context: TracingContext, request: TraceRequest, prompt: Prompt) -> ModelAnswers:
    """Run a prompt, and return the model's answers to it.

    Raises:
        NumericsError: The clean run gave NaN or infinite logits.
    """
    last = len(prompt) - 1
    problem, asked = "", None
    try:
        asked = resolve_answer(context, request, prompt, ())
    except (PromptError, SettingsError) as error:
        problem = str(error)
    if asked is not None and asked.reads[0] == last:
        logits = asked.clean.logits[0]
    else:
        logits = clean_run(context.traced, prompt.input_ids, (last,), ()).logits[0]
    probabilities = logits.softmax(dim=-1)

    def candidate(token: int) -> TokenProbability:
        return TokenProbability(token, token_text(context.tokenizer, token), float(probabilities[token]))

    best = probabilities.topk(min(CANDIDATES, len(probabilities)))
    candidates = tuple(candidate(int(token)) for token in best.indices)
    if asked is None:
        return ModelAnswers(candidates, problem=problem)
    answer = candidate(asked.ids[0])
    if len(asked.ids) > 1:
        text = decode_together(context.tokenizer, asked.ids)
        answer = TokenProbability(answer.token_id, text, asked.probability)
    return ModelAnswers(candidates, answer, asked.notes)
