"""The sites of a model, and the layers that a window holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, get_args

from causal_tracer.arguments import shown
from causal_tracer.errors import SettingsError

LayerKind = Literal["hidden", "mlp", "attention"]
"""Which activations: a block's output, or what its MLP or attention adds to the residual stream."""

KINDS: tuple[LayerKind, ...] = get_args(LayerKind)


DEFAULT_WINDOWS: Mapping[LayerKind, int] = {"hidden": 1, "mlp": 10, "attention": 10}
"""The windows of the ROME paper (arXiv 2202.05262, Figure 1): single hidden states, ten MLP or attention layers."""


def window_layers(layer: int, window: int, n_layers: int) -> tuple[int, ...]:
    """The layers restored together: l - floor(w/2) ... l + ceil(w/2) - 1, cut at the ends, as ROME's code does."""
    return tuple(range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2))))


def require_kind(kind: str) -> LayerKind:
    """The kind, checked.

    Raises:
        SettingsError: It is none of "hidden", "mlp", "attention".
    """
    for known in KINDS:
        if isinstance(kind, str) and kind == known:
            return known
    raise SettingsError(f"kind={shown(kind)} is not known. The kinds are {', '.join(map(repr, KINDS))}.")
