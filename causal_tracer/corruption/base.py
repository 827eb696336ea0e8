"""The `Corruption` protocol, and the input of a corruption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from causal_tracer.prompts.prompt import Prompt


class TokenEmbedding(Protocol):
    """The token embedding of a model, for corruptions that need more than the subject's own embeddings."""

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Return the embedding module's output for tokens [tokens, width], float32 on the CPU."""
        ...

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean [width] and covariance [width, width] of its output over the vocabulary, float64 on the CPU."""
        ...

    def require_same_prediction(self, prompt: Prompt, token_ids: Sequence[int], embeddings: Tensor) -> None:
        """Check that a run of the prompt with other subject embeddings predicts the same as a run of `token_ids`.

        Args:
            prompt: The prompt.
            token_ids: The prompt's token ids with another subject.
            embeddings: The other subject's embeddings [1, subject tokens, width].

        Raises:
            ModelStructureError: The model uses token ids outside its embedding as well.
        """
        ...


@dataclass(frozen=True, eq=False)
class SubjectEmbeddings:
    """The input of a corruption.

    Attributes:
        embedded: The embedding module's output for the subject's tokens [subject tokens, width], float32 on the CPU.
        prompt: The prompt, with its subject located.
        model: The model's embedding, for corruptions that embed other tokens or use statistics of the vocabulary.
        tokenizer: The model's tokenizer, for corruptions that need one.
    """

    embedded: Tensor
    prompt: Prompt
    model: TokenEmbedding
    tokenizer: Any = None


class Corruption(Protocol):
    """Replaces the subject's embeddings, once for each sample."""

    @property
    def description(self) -> str:
        """The corruption in a few words, for results."""
        ...

    def __call__(self, subject: SubjectEmbeddings, samples: int) -> Tensor:
        """Return the corrupted embeddings [samples, subject tokens, width], float32 on the CPU.

        A corruption that is not random has a fixed number of samples and ignores `samples`.
        For a random one, the first n of more samples must equal those of a call with samples=n.
        """
        ...


def corruption_label(corruption: Any) -> str:
    """Return a corruption's name for results: its `description`, or else its function or class name."""
    description = getattr(corruption, "description", None)
    named = description if isinstance(description, str) else getattr(corruption, "__name__", None)
    return named if isinstance(named, str) else type(corruption).__name__
