"""The subject's embeddings: the input of a corruption, its checked output, and the edit that puts it into a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from causal_tracer.arguments import quoted
from causal_tracer.corruption import Corruption, SubjectEmbeddings, corruption_label
from causal_tracer.errors import CausalTracerError, ModelStructureError, NumericsError, SettingsError
from causal_tracer.experiment.noise_levels import embedded_tokens, embedding_moments
from causal_tracer.model.hooks import Edit
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.runs import read_logits
from causal_tracer.prompts.prompt import Prompt


@dataclass(frozen=True, eq=False)
class ModelEmbedding:
    """The `TokenEmbedding` of a traced model."""

    traced: TracedModel

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """See `TokenEmbedding`."""
        return embedded_tokens(self.traced, token_ids)

    def moments(self) -> tuple[Tensor, Tensor]:
        """See `TokenEmbedding`."""
        return embedding_moments(self.traced)

    def require_same_prediction(self, prompt: Prompt, token_ids: Sequence[int], embeddings: Tensor) -> None:
        """Run `token_ids` directly, and the prompt with the embeddings; compare. See `TokenEmbedding`."""
        traced = self.traced
        edits = {traced.embedding: corruption_edit(embeddings, prompt, torch.zeros(1, dtype=torch.long))}
        by_embedding = read_logits(traced, torch.tensor([prompt.input_ids]), edits, "corrupted").log_softmax(dim=-1)
        as_it_is = read_logits(traced, torch.tensor([token_ids]), {}, "counterfactual").log_softmax(dim=-1)
        best = as_it_is.topk(8).indices
        difference = float((by_embedding.gather(-1, best) - as_it_is.gather(-1, best)).abs().max())
        if difference > (0.5 if traced.dtype in (torch.bfloat16, torch.float16) else 1e-3):
            raise ModelStructureError(
                f"{type(traced.model).__name__} uses token ids outside its embedding: with another subject's "
                f"embeddings it does not predict the same as with that subject's token ids (difference "
                f"{difference:.2g} in log-probability). Counterfactual subjects do not work on it. Use noise."
            )


def subject_embeddings(traced: TracedModel, prompt: Prompt, tokenizer: Any = None) -> SubjectEmbeddings:
    """Return the input of a corruption for a prompt's subject."""
    embedded = embedded_tokens(traced, prompt.input_ids[slice(*prompt.subject_range)])
    return SubjectEmbeddings(embedded, prompt, ModelEmbedding(traced), tokenizer)


def corrupted_embeddings(corruption: Corruption, subject: SubjectEmbeddings, samples: int) -> Tensor:
    """Return a corruption's output [samples, subject tokens, width] after checking it.

    Raises:
        SettingsError: The corruption failed, or returned something other than a tensor of this shape.
        NumericsError: An embedding is NaN or infinite.
    """
    name = repr(corruption_label(corruption))
    try:
        given = corruption(subject, samples)
    except (CausalTracerError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        raise SettingsError(f"The corruption {name} failed: {type(error).__name__}: {error}") from error
    shape = list(subject.embedded.shape)
    if not isinstance(given, Tensor) or given.dim() != 3 or list(given.shape[1:]) != shape or not len(given):
        found = list(given.shape) if isinstance(given, Tensor) else quoted(given)
        raise SettingsError(
            f"The corruption {name} must return a tensor [samples, {shape[0]}, {shape[1]}] (given: {found})."
        )
    given = given.detach().to("cpu", torch.float32)
    if not bool(given.isfinite().all()):
        raise NumericsError(f"The corruption {name} gave embeddings that are NaN or infinite. Lower its level.")
    return given


def corruption_edit(embeddings: Tensor, prompt: Prompt, samples: Tensor, tokens: range | None = None) -> Edit:
    """Return an edit of the embedding's output that replaces the subject's embeddings.

    Args:
        embeddings: The subject's embeddings in each sample [samples, subject tokens, width]. They are rounded once, to
            the embedding's dtype.
        prompt: The prompt, with its subject.
        samples: The sample of each batch row [rows].
        tokens: The tokens of the prompt that are run; None means all.
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
