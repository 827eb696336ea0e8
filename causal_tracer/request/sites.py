"""The sites of a model: what a map restores or blocks, how each is named and drawn, and the layers of a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from causal_tracer.arguments import choice

LayerKind = Literal["hidden", "mlp", "attention"]
"""Which activations: a block's output, or what its MLP or attention adds to the residual stream."""

KINDS: tuple[LayerKind, ...] = get_args(LayerKind)

SiteName = Literal["hidden", "mlp", "attention", "head", "knockout", "span_knockout"]
"""What a map restores: activations of a layer kind, or a single attention head's share of the attention. Knockouts
block attention instead, to each token or to three spans of the prompt."""

SPANS = ("subject", "other tokens", "itself")
"""The rows of a map of spans: the subject, all other tokens but the querying ones, and the querying tokens."""


@dataclass(frozen=True)
class Site:
    """One site, as tables, figures, the app and the command line present it.

    Attributes:
        name: What it is called in requests and results.
        label: What tables and legends call it.
        patched: What is restored or blocked, as titles write it.
        window: Number of consecutive layers restored together by default.
        color: The colour of its lines and bars.
        color_scale: The colours of its maps, from no effect to the strongest.
        rows: What the rows of its maps are. A map of heads is made at one token (`MapSpec.token`).
        part_of: The site that it is a part of.
        blocks: Whether attention is blocked, rather than activations restored.
    """

    name: SiteName
    label: str
    patched: str
    window: int
    color: str
    color_scale: tuple[str, ...]
    rows: Literal["tokens", "heads", "spans"] = "tokens"
    part_of: LayerKind | None = None
    blocks: bool = False

    @property
    def title(self) -> str:
        """The label as a heading writes it."""
        return self.label[:1].upper() + self.label[1:]


# Scales: steps of equal size in OKLab (Ottosson 2020), lightness 0.985 to 0.30 in one hue. They are even to the eye,
# and in order for colour-blind readers and on paper, where only lightness is left.
_PURPLES = ("#fafafa", "#e2d9f5", "#cab8ef", "#b497e7", "#9e75de", "#8952d2", "#6c3bab", "#512a82", "#371d59")
_GREENS = ("#fafafa", "#d3e3d6", "#adccb2", "#88b590", "#619e6f", "#3a874f", "#276b3b", "#1a502a", "#12361c")
_REDS = ("#fafafa", "#f3d7d4", "#eab3ae", "#de908a", "#d06c66", "#bf4744", "#9a3231", "#752322", "#501817")

# Colours of lines and bars: most colour-blind readers can tell them apart (green and red by Okabe and Ito).
# Windows: those of the ROME paper (arXiv 2202.05262, Figure 1); of knockouts, arXiv 2304.14767, section 4.
SITES: Mapping[str, Site] = {
    site.name: site
    for site in (
        Site("hidden", "hidden states", "hidden states", 1, "#7F6BB0", _PURPLES),
        Site("mlp", "MLP", "MLP outputs", 10, "#009E73", _GREENS),
        Site("attention", "attention", "attention outputs", 10, "#D55E00", _REDS),
        Site("head", "heads", "single attention heads", 1, "#D55E00", _REDS, "heads", "attention"),
        Site("knockout", "attention knockout", "attention to each token", 9, "#D55E00", _REDS, blocks=True),
        Site("span_knockout", "span knockout", "attention to spans", 9, "#D55E00", _REDS, "spans", blocks=True),
    )
}
"""All sites, by name."""


def window_layers(layer: int, window: int, n_layers: int) -> tuple[int, ...]:
    """The layers restored together: l - floor(w/2) ... l + ceil(w/2) - 1, cut at the ends, as ROME's code does."""
    return tuple(range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2))))


def require_kind(kind: str) -> LayerKind:
    """Check a layer kind and return it.

    Raises:
        SettingsError: It is none of "hidden", "mlp", "attention".
    """
    return cast(LayerKind, choice("kind", kind, KINDS))


def require_site(kind: str) -> SiteName:
    """Check the name of a site and return it.

    Raises:
        SettingsError: It is not a key of `SITES`.
    """
    return SITES[choice("kind", kind, SITES)].name
