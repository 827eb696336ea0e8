"""Which token of another prompt stands for which token of this one, for placebo restorations."""

from __future__ import annotations

import torch
from torch import Tensor

from causal_tracer.prompts.prompt import Prompt


def aligned_positions(prompt: Prompt, other: Prompt) -> Tensor:
    """For each token of a prompt, the token of the other that has its role [tokens].

    Subjects are aligned at their last tokens and the texts after them at their ends; what the other prompt lacks is
    its nearest token of the same part.
    """
    start, end = prompt.subject_range
    other_start, other_end = other.subject_range
    places = []
    for token in range(len(prompt)):
        if token < start:
            place = max(0, min(token, other_start - 1))
        elif token == start:
            place = other_start
        elif token < end:
            place = max(other_start, other_end - (end - token))
        elif token == end and end < len(prompt) - 1 and other_end < len(other):
            place = other_end
        else:
            place = max(min(other_end, len(other) - 1), len(other) - (len(prompt) - token))
        places.append(place)
    return torch.tensor(places)
