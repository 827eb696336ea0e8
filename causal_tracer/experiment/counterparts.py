"""Other prompts of a request, aligned with the request's prompt token by token, and their activations moved to it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from causal_tracer.errors import SettingsError
from causal_tracer.model.runs import Activations
from causal_tracer.prompts.alignment import Partners, align_prompts
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.records import OtherPrompt


@dataclass(frozen=True, eq=False)
class Counterpart:
    """Another prompt, aligned with the request's prompt.

    Attributes:
        prompt: The other prompt.
        partners: For each token of the request's prompt, the aligned token of the other prompt, or None.
    """

    prompt: Prompt
    partners: Partners

    @property
    def partner_of(self) -> dict[int, int]:
        """The aligned token of the other prompt, for each token of the request's prompt that has one."""
        return {token: partner for token, partner in enumerate(self.partners) if partner is not None}


def counterpart(prompt: Prompt, other: Prompt, asked: OtherPrompt) -> Counterpart:
    """Return another prompt, aligned with a request's prompt.

    Raises:
        SettingsError: The prompts are equal, cannot be aligned as requested, or no token has a partner.
    """
    if other.input_ids == prompt.input_ids:
        raise SettingsError(f"The other prompt is the same as the prompt ({prompt.text!r}). Give a different one.")
    partners = align_prompts(prompt, other, asked.align, asked.pairs)
    if all(partner is None for partner in partners):
        raise SettingsError("No token of the prompt has a partner in the other prompt. Give at least one pair.")
    return Counterpart(other, partners)


def moved_activations(run: Activations, source_tokens: Mapping[int, int], n_tokens: int) -> Activations:
    """Return a run's activations, moved to the token positions of another run [1, n_tokens, ...], by module name.

    Args:
        run: Activations [tokens, ...] by module name.
        source_tokens: For each token of the other run that gets a value, the token of `run` to take it from. The
            other tokens get NaN.
        n_tokens: Number of tokens of the other run.
    """

    def moved(values: Tensor) -> Tensor:
        made = torch.full((1, n_tokens, *values.shape[1:]), torch.nan, dtype=values.dtype, device=values.device)
        made[0, list(source_tokens)] = values[list(source_tokens.values())]
        return made

    return {name: moved(values) for name, values in run.items()}
