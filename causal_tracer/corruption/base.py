"""The form of every corruption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from causal_tracer.prompts.prompt import Prompt


class TokenEmbedding(Protocol):
    """A model as corruptions see it: what its embedding gives, and whether that is all it knows of the tokens."""

    def embed(self, token_ids: Sequence[int]) -> Tensor:
        """Return what the embedding module gives for tokens [tokens, width], float32 on the CPU."""
        ...

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean [width] and covariance [width, width] of its output over the vocabulary, float64 on the CPU."""
        ...

    def require_same_prediction(self, prompt: Prompt, token_ids: Sequence[int], embeddings: Tensor) -> None:
        """Check that the prompt with embeddings [1, subject tokens, width] at its subject stands for these tokens.

        Raises:
            ModelStructureError: The model feeds token ids to more than its embedding.
        """
        ...


@dataclass(frozen=True, eq=False)
class SubjectEmbeddings:
    """What a corruption is given.

    Attributes:
        embedded: What the embedding module gives for the subject's tokens [subject tokens, width], float32 on the CPU.
        prompt: The prompt, with its subject located.
        model: The model's embedding, for corruptions that need more of it.
        tokenizer: The model's tokenizer, where the corruption needs one.
    """

    embedded: Tensor
    prompt: Prompt
    model: TokenEmbedding
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


def described(corruption: Any) -> str:
    """What results call a corruption: its description, or else its name."""
    description = getattr(corruption, "description", None)
    named = description if isinstance(description, str) else getattr(corruption, "__name__", None)
    return named if isinstance(named, str) else type(corruption).__name__
