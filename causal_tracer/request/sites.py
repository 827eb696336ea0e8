"""The sites of a model that a map can restore or block, with their labels and colours, and the layers of a window."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast, get_args

from causal_tracer.arguments import choice

LayerKind = Literal["hidden", "mlp", "attention"]
"""A kind of activation: a block's output, or the output of its MLP or attention, added to the residual stream."""

KINDS: tuple[LayerKind, ...] = get_args(LayerKind)

SiteName = Literal["hidden", "mlp", "attention", "head", "knockout", "span_knockout"]
"""A site that a map restores: the activations of a layer kind, or one attention head's part of the attention. Knockout
maps block attention instead, to each token or to three spans of the prompt."""

SPANS = ("subject", "other tokens", "itself")
"""The rows of a span knockout: the subject's tokens, all other tokens, and the query tokens themselves."""


@dataclass(frozen=True)
class Site:
    """One site, with its names and colours in tables, figures, the app and the command line.

    Attributes:
        name: Its name in requests and results.
        label: Its name in tables and legends.
        patched: What is restored or blocked, for titles.
        window: Default number of consecutive layers restored together.
        color: Colour of its lines and bars.
        color_scale: Colours of its maps, from no effect to the strongest effect.
        rows: What the rows of its maps are. A map of heads is made at one token (`MapSpec.token`).
        part_of: The layer kind that the site is a part of.
        blocks: Whether attention is blocked, instead of activations restored.
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
        """The label with a capital letter, for headings."""
        return self.label[:1].upper() + self.label[1:]


# Equal steps in OKLab (Ottosson 2020) from lightness 0.985 to 0.30 in one hue: perceptually even, and ordered by
# lightness alone, for colour-blind readers and print without colour.
_PURPLES = ("#fafafa", "#e2d9f5", "#cab8ef", "#b497e7", "#9e75de", "#8952d2", "#6c3bab", "#512a82", "#371d59")
_GREENS = ("#fafafa", "#d3e3d6", "#adccb2", "#88b590", "#619e6f", "#3a874f", "#276b3b", "#1a502a", "#12361c")
_REDS = ("#fafafa", "#f3d7d4", "#eab3ae", "#de908a", "#d06c66", "#bf4744", "#9a3231", "#752322", "#501817")

# Most colour-blind readers can tell the colours of lines and bars apart (green and red by Okabe and Ito).
# Windows are those of the ROME paper (arXiv 2202.05262, Figure 1), and for knockouts of arXiv 2304.14767, section 4.
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
    """Return the layers l - floor(w/2) ... l + ceil(w/2) - 1 of a window, cut off at the ends as in ROME's code."""
    return tuple(range(max(0, layer - window // 2), min(n_layers, layer - (-window // 2))))


def require_kind(kind: str) -> LayerKind:
    """Return the layer kind after checking it.

    Raises:
        SettingsError: The kind is not "hidden", "mlp" or "attention".
    """
    return cast(LayerKind, choice("kind", kind, KINDS))


def require_site(kind: str) -> SiteName:
    """Return the name of a site after checking it.

    Raises:
        SettingsError: The name is not a key of `SITES`.
    """
    return SITES[choice("kind", kind, SITES)].name
