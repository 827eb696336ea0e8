"""How a map was made, in one line."""

from __future__ import annotations

from typing import TYPE_CHECKING

from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.results.words import audit_words

if TYPE_CHECKING:
    from causal_tracer.results.flow import HiddenFlow

# What results call the corruptions that a noise level changes, and those that a seed does not.
_WITH_LEVEL = {named.make(1, 0).description for named in CORRUPTIONS.values() if named.takes_level}
_WITHOUT_CHANCE = {named.make(1, 0).description for named in CORRUPTIONS.values() if not named.is_random}


def recipe(flow: HiddenFlow, model: str = "") -> str:
    """Return how a map was made, in one line; `model` is the model's title, by default its name."""
    settings = flow.settings
    window = "single layers" if settings.window == 1 else f"windows of {settings.window} layers"
    tokens = ", subject tokens only" if settings.subject_tokens_only else ""
    made_with, sweep = f"{model or settings.model}, {settings.dtype}", f"{settings.engine} sweep"
    return " · ".join(filter(None, (made_with, window + tokens, _corruption(flow), sweep, audit_words(flow))))


def _corruption(flow: HiddenFlow) -> str:
    """Return what was done to the subject: samples and seed where it is random, a level where it takes one."""
    settings = flow.settings
    parts = []
    if settings.corruption not in _WITHOUT_CHANCE and settings.second is None:
        samples = "1 noise sample" if settings.samples == 1 else f"{settings.samples} noise samples"
        parts.append(f"{samples}, seed {settings.seed}")
    if settings.corruption not in _WITH_LEVEL:
        return " · ".join((*parts, settings.corruption))
    rule = "given" if settings.noise_rule == "given" else f"automatic ({settings.noise_rule})"
    name = "noise" if settings.corruption == "Gaussian noise" else f"{settings.corruption},"
    return " · ".join((*parts, f"{name} {settings.noise:.4g}, {rule}"))
