"""The form of every corruption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from causal_tracer.errors import CausalTracerError, NumericsError, SettingsError
from causal_tracer.model.engine_mode import engine_mode
from causal_tracer.model.hooks import Edit
from causal_tracer.model.layers import TracedModel
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.arguments import shown


@dataclass(frozen=True, eq=False)
class SubjectEmbeddings:
    """What a corruption is given.

    Attributes:
        embedded: What the embedding module gives for the subject's tokens [subject tokens, width], float32 on the CPU.
        prompt: The prompt, with its subject located.
        traced: The model.
        tokenizer: Its tokenizer, where the corruption needs one.
    """

    embedded: Tensor
    prompt: Prompt
    traced: TracedModel
    tokenizer: Any = None


class Corruption(Protocol):
    """Gives the subject other embeddings, once for each sample."""

    @property
    def description(self) -> str:
        """What it does, in a few words, as results show it."""
        ...

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """The corrupted embeddings [samples, subject tokens, width], float32 on the CPU.

        A corruption without chance gives as many samples as it has, whatever was asked for. The first n of many
        samples are those that a call for n gives.
        """
        ...


def embedded_tokens(traced: TracedModel, token_ids: Sequence[int]) -> Tensor:
    """What the embedding module gives for tokens [tokens, width], float32 on the CPU."""
    ids = torch.tensor([list(token_ids)], device=traced.input_device)
    with engine_mode(traced.model):
        embedded: Tensor = traced.embedding(ids)
    return embedded[0].float().cpu()


def subject_embeddings(traced: TracedModel, prompt: Prompt, tokenizer: Any = None) -> SubjectEmbeddings:
    """What the corruption of a prompt's subject is given."""
    embedded = embedded_tokens(traced, prompt.input_ids[slice(*prompt.subject_range)])
    return SubjectEmbeddings(embedded, prompt, traced, tokenizer)


def described(corruption: Any) -> str:
    """What results call a corruption: its description, or else its name."""
    description = getattr(corruption, "description", None)
    named = description if isinstance(description, str) else getattr(corruption, "__name__", None)
    return named if isinstance(named, str) else type(corruption).__name__


def corrupted_embeddings(corruption: Corruption, subject: SubjectEmbeddings, samples: int) -> Tensor:
    """What a corruption gives [samples, subject tokens, width], checked.

    Raises:
        SettingsError: The corruption failed, or gave something else.
        NumericsError: An embedding is NaN or infinite.
    """
    name = repr(described(corruption))
    try:
        given = corruption(subject, samples)
    except (CausalTracerError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise SettingsError(f"The corruption {name} failed: {type(error).__name__}: {error}") from error
    shape = list(subject.embedded.shape)
    if not isinstance(given, Tensor) or given.dim() != 3 or list(given.shape[1:]) != shape or not len(given):
        found = list(given.shape) if isinstance(given, Tensor) else shown(given)
        raise SettingsError(
            f"The corruption {name} must return a tensor [samples, {shape[0]}, {shape[1]}] (given: {found})."
        )
    given = given.detach().to("cpu", torch.float32)
    if not bool(given.isfinite().all()):
        raise NumericsError(f"The corruption {name} gave embeddings that are NaN or infinite. Lower its level.")
    return given


def corrupting(embeddings: Tensor, prompt: Prompt, samples: Tensor, tokens: range | None = None) -> Edit:
    """The edit of the embedding that puts corrupted embeddings [samples, subject tokens, width] at the subject.

    Row r of the batch takes those of sample `samples[r]`, rounded once, to the embedding's dtype. `tokens` are the
    prompt's tokens that the run has; None means all.
    """
    start, end = prompt.subject_range
    tokens = range(len(prompt)) if tokens is None else tokens
    first, last = max(start, tokens.start), min(end, tokens.stop)

    def corrupt(embedded: Tensor) -> Tensor | None:
        if first >= last:
            return None
        corrupted = embedded.clone()
        corrupted[:, first - tokens.start : last - tokens.start] = embeddings[samples, first - start : last - start].to(
            embedded
        )
        return corrupted

    return corrupt
