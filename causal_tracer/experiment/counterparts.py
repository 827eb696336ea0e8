"""Other prompts of a request: their tokens beside those of the prompt, and their activations at the prompt's tokens."""

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
    """Another prompt, and its tokens that stand for those of the request's prompt.

    Attributes:
        prompt: The other prompt.
        partners: For each token of the request's prompt, its token; None where there is none.
    """

    prompt: Prompt
    partners: Partners

    @property
    def places(self) -> dict[int, int]:
        """The partner of each token that has one."""
        return {token: partner for token, partner in enumerate(self.partners) if partner is not None}


def counterpart(prompt: Prompt, other: Prompt, asked: OtherPrompt) -> Counterpart:
    """Return another prompt, aligned with a request's prompt.

    Raises:
        SettingsError: The prompts are the same, cannot be aligned as asked for, or no token has a partner.
    """
    if other.input_ids == prompt.input_ids:
        raise SettingsError(f"The other prompt is the prompt itself ({prompt.text!r}). Give another one.")
    partners = align_prompts(prompt, other, asked.align, asked.pairs)
    if all(partner is None for partner in partners):
        raise SettingsError("No token of the prompt has a partner in the other prompt. Give at least one pair.")
    return Counterpart(other, partners)


def placed(run: Activations, places: Mapping[int, int], n_tokens: int) -> Activations:
    """Return a run's activations at the tokens of another one [1, n_tokens, ...], by name.

    Args:
        run: Activations [tokens, ...].
        places: For tokens of the other run, the token of `run` whose activation is put there. The rest is NaN.
        n_tokens: Tokens of the other run.
    """

    def moved(values: Tensor) -> Tensor:
        made = torch.full((1, n_tokens, *values.shape[1:]), torch.nan, dtype=values.dtype, device=values.device)
        made[0, list(places)] = values[list(places.values())]
        return made

    return {name: moved(values) for name, values in run.items()}
