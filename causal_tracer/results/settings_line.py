"""The main settings of a map in one line of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.results.labels import audit_words

if TYPE_CHECKING:
    from causal_tracer.results.flow import HiddenFlow

# The descriptions, in results, of corruptions that depend on a noise level, and of those that ignore the seed.
_WITH_LEVEL = {named.make(1, 0).description for named in CORRUPTIONS.values() if named.takes_level}
_WITHOUT_CHANCE = {named.make(1, 0).description for named in CORRUPTIONS.values() if not named.is_random}


def settings_line(flow: HiddenFlow, model: str = "") -> str:
    """Return the model, window, corruption, sweep and audit of a map in one line.

    Args:
        flow: The map.
        model: The model's title; "" takes the model's name.
    """
    settings = flow.settings
    window = "single layers" if settings.window == 1 else f"windows of {settings.window} layers"
    tokens = ", subject tokens only" if settings.subject_tokens_only else ""
    made_with, sweep = f"{model or settings.model}, {settings.dtype}", f"{settings.engine} sweep"
    return " · ".join(filter(None, (made_with, window + tokens, _corruption(flow), sweep, audit_words(flow))))


def _corruption(flow: HiddenFlow) -> str:
    """Return the corruption, with samples and seed if it is random, and with the noise level if it takes one."""
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
