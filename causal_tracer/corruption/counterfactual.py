"""Counterfactual prompts: the subject replaced by another one with the same number of tokens."""

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
    """Replaces the subject's tokens by those of other subjects (symmetric token replacement).

    Zhang & Nanda (arXiv 2309.16042) recommend it over noise, since the corrupted prompt stays a plausible text.

    Attributes:
        subjects: The other subjects. Each is one sample.
    """

    subjects: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.subjects:
            raise SettingsError("No counterfactual subject is given. Give at least one.")

    @property
    def description(self) -> str:
        """The corruption in a few words, for results."""
        return f"other subjects: {', '.join(self.subjects)}"

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """See `Corruption`. There is one sample for each other subject.

        Raises:
            SubjectError: Another subject has a different number of tokens, or changes tokens outside the subject.
            ModelStructureError: The model uses token ids outside its embedding as well.
        """
        start, end = subject.prompt.subject_range
        found = [counterfactual_ids(subject.tokenizer, subject.prompt, other) for other in self.subjects]
        embeddings = torch.stack([subject.model.embed(ids[start:end]) for ids in found])
        subject.model.require_same_prediction(subject.prompt, found[0], embeddings[:1])
        return embeddings


def counterfactual_ids(tokenizer: Any, prompt: Prompt, other: str) -> tuple[int, ...]:
    """Return the token ids of the prompt with another subject.

    Raises:
        SubjectError: The number of ids differs from the prompt's, or an id outside the subject differs.
    """
    check_text("counterfactual subject", other, SubjectError)
    start, end = prompt.subject_range
    at = prompt.subject_start
    text = prompt.text[:at] + other + prompt.text[at + len(prompt.subject) :]
    ids = encode(tokenizer, text, prompt.special_tokens).ids
    if len(ids) != len(prompt.input_ids):
        raise SubjectError(
            f"The prompt has {len(ids)} tokens with the subject {other!r}, and {len(prompt.input_ids)} with "
            f"{prompt.subject!r}. Give a subject of {end - start} tokens."
        )
    if ids[:start] != prompt.input_ids[:start] or ids[end:] != prompt.input_ids[end:]:
        raise SubjectError(f"The subject {other!r} changes the tokens of the rest of the prompt. Give another subject.")
    return ids
