"""Counterfactual prompts: another subject of the same token length in the subject's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causal_tracer.corruption.base import SubjectEmbeddings, corrupting, embedded_tokens
from causal_tracer.errors import ModelStructureError, SettingsError, SubjectError
from causal_tracer.model.runs import read_logits
from causal_tracer.prompts.encoding import check_text, encode
from causal_tracer.prompts.prompt import Prompt


@dataclass(frozen=True)
class CounterfactualSubjects:
    """The subject's tokens replaced by those of other subjects: symmetric token replacement.

    Advised over noise by Zhang & Nanda (arXiv 2309.16042): the corrupted prompt is one that the model may meet.

    Attributes:
        subjects: The other subjects; each is a sample.
    """

    subjects: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.subjects:
            raise SettingsError("No counterfactual subject is given. Give at least one.")

    @property
    def description(self) -> str:
        """What results call it."""
        return f"other subjects: {', '.join(self.subjects)}"

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`: one sample for each other subject.

        Raises:
            SubjectError: Another subject has another number of tokens, or changes tokens outside the subject.
        """
        start, end = subject.prompt.subject_range
        found = [counterfactual_ids(subject.tokenizer, subject.prompt, other) for other in self.subjects]
        embeddings = torch.stack([embedded_tokens(subject.traced, ids[start:end]) for ids in found])
        _check_only_embeddings_know_tokens(subject, found[0], embeddings[:1])
        return embeddings


def _check_only_embeddings_know_tokens(subject: SubjectEmbeddings, ids: tuple[int, ...], embeddings: Tensor) -> None:
    """Run another subject's prompt as it is and by its embeddings alone: both have to say the same.

    Raises:
        ModelStructureError: They do not: the model feeds token ids to more than its embedding.
    """
    prompt, traced = subject.prompt, subject.traced
    edits = {traced.embedding: corrupting(embeddings, prompt, torch.zeros(1, dtype=torch.long))}
    by_embedding = read_logits(traced, torch.tensor([prompt.input_ids]), edits, "corrupted").log_softmax(dim=-1)
    as_it_is = read_logits(traced, torch.tensor([ids]), {}, "counterfactual").log_softmax(dim=-1)
    best = as_it_is.topk(8).indices
    difference = float((by_embedding.gather(-1, best) - as_it_is.gather(-1, best)).abs().max())
    if difference > (0.5 if traced.dtype in (torch.bfloat16, torch.float16) else 1e-3):
        raise ModelStructureError(
            f"{type(traced.model).__name__} feeds token ids to more than its embedding: with another subject's "
            f"embeddings it says something else than for that prompt (by {difference:.2g} in log-probability). "
            "Counterfactual subjects cannot be traced on it; use noise."
        )


def counterfactual_ids(tokenizer: Any, prompt: Prompt, other: str) -> tuple[int, ...]:
    """The token ids of the prompt with another subject in the subject's place.

    Raises:
        SubjectError: They are not the prompt's ids outside the subject, or are of another number.
    """
    check_text("counterfactual subject", other, SubjectError)
    start, end = prompt.subject_range
    at = prompt.subject_start
    text = prompt.text[:at] + other + prompt.text[at + len(prompt.subject) :]
    ids = encode(tokenizer, text, prompt.special_tokens).ids
    if len(ids) != len(prompt.input_ids):
        raise SubjectError(
            f"The subject {other!r} makes a prompt of {len(ids)} tokens, and {prompt.subject!r} one of "
            f"{len(prompt.input_ids)}. Give a subject of {end - start} tokens."
        )
    if ids[:start] != prompt.input_ids[:start] or ids[end:] != prompt.input_ids[end:]:
        raise SubjectError(
            f"With the subject {other!r} the tokenizer cuts the rest of the prompt differently. Give another subject."
        )
    return ids
