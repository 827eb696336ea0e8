"""Counterfactual prompts: another subject of the same token length in the subject's place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causal_tracer.corruption.base import SubjectEmbeddings
from causal_tracer.errors import SettingsError, SubjectError
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
            ModelStructureError: The model feeds token ids to more than its embedding.
        """
        start, end = subject.prompt.subject_range
        found = [counterfactual_ids(subject.tokenizer, subject.prompt, other) for other in self.subjects]
        embeddings = torch.stack([subject.model.embed(ids[start:end]) for ids in found])
        subject.model.require_same_prediction(subject.prompt, found[0], embeddings[:1])
        return embeddings


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
