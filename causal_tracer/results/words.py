"""What a map is of, in words: metric, direction, site, window, control and tokens.

Every title, axis, caption, table and report takes its words from here, so that all of them say what was done.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, TypeAlias

from causal_tracer.errors import SettingsError
from causal_tracer.metrics.descriptions import METRIC_DESCRIPTIONS, MetricDescription
from causal_tracer.request.sites import KINDS

if TYPE_CHECKING:
    from causal_tracer.results.flow import HiddenFlow, TraceSettings
    from causal_tracer.tracing.heads import HeadFlow

AnyFlow: TypeAlias = "HiddenFlow | HeadFlow"
"""A map: of tokens by layers, or of heads by layers."""

KIND_NAMES: Mapping[str, str] = {"hidden": "hidden states", "mlp": "MLP", "attention": "attention", "head": "heads"}
"""A kind in a table or a legend, which have little room."""

_PATCHED = {"hidden": "hidden states", "mlp": "MLP outputs", "attention": "attention outputs"}


def metric_of(flow: AnyFlow) -> MetricDescription:
    """Return the description of a map's metric, with the better direction known.

    Where the metric does not say which values are better, the clean run's are better than the corrupted run's.
    """
    settings = flow.settings
    described = settings.metric_description or METRIC_DESCRIPTIONS.get(settings.metric)
    if described is None:
        described = MetricDescription(settings.metric, settings.metric)
    if described.higher_is_better is None:
        return replace(described, higher_is_better=flow.high_score >= flow.low_score)
    return described


def metric_label(flow: AnyFlow) -> str:
    """Return what a map's scores are, with the answer filled in: "P(Seattle)"."""
    foil = flow.settings.foil
    return metric_of(flow).labelled(display_token(flow.answer), None if foil is None else display_token(foil))


def effect_label(flow: AnyFlow) -> str:
    """Return what the patch's effect on the scores is called."""
    return "change from the clean run" if flow.settings.direction == "corrupt" else "indirect effect"


def audit_words(flow: AnyFlow) -> str:
    """Return what a map's audit found, or nothing where it was not audited."""
    audit = flow.audit
    if audit is None:
        return ""
    cells = "1 cell" if len(audit.cells) == 1 else f"{len(audit.cells)} cells"
    return f"audit: {cells} off by {audit.largest_difference:.1g} at most"


def map_title(flow: HiddenFlow) -> str:
    """Return what a map is of: "Restoring MLP outputs, windows of 10 layers, attention severed"."""
    return _title(_PATCHED[flow.kind], flow.settings)


def head_map_title(flow: HeadFlow) -> str:
    """Return what a map of attention heads is of."""
    return _title(f"single attention heads at {display_token(flow.token)!r}", flow.settings)


def named_title(name: str, flow: HiddenFlow) -> str:
    """Return a map's title after the name that it was given, where that says more than its kind."""
    return map_title(flow) if name in KINDS else f"{name}: {map_title(flow)}"


def control_of(settings: TraceSettings) -> str:
    """Return the controls of a map as a table's cell has them; empty for a plain map."""
    severed = _severed(settings.severed) if settings.severed else ""
    placebo = "placebo" if settings.placebo is not None else ""
    elsewhere = "other tokens corrupted" if settings.elsewhere is not None else ""
    return ", ".join(part for part in (severed, placebo, elsewhere) if part)


def layer_axis_title(flow: AnyFlow) -> str:
    """Return what a column of a map stands for."""
    done, window = patched_word(flow), flow.settings.window
    what = f"{done} layer" if window == 1 else f"centre of {window} {done} layers"
    return f"{what} ({KIND_NAMES[flow.kind]})"


def patched_word(flow: AnyFlow) -> str:
    """Return what was done to a cell's layers: "restored" or "corrupted"."""
    return "corrupted" if flow.settings.direction == "corrupt" else "restored"


def patched_layers(flow: HiddenFlow, layer: int) -> tuple[int, int]:
    """Return the first and the last layer that a cell patches: from l - floor(w / 2) to l + ceil(w / 2) - 1."""
    window, layers = flow.settings.window, int(flow.scores.shape[1])
    return max(0, layer - window // 2), min(layers, layer - (-window // 2)) - 1


def same_measure(*flows: AnyFlow) -> None:
    """Check that maps show the same metric in the same direction, so that their numbers can stand side by side.

    Raises:
        SettingsError: They do not.
    """
    first = flows[0]
    for other in flows[1:]:
        ours, theirs = ((metric_of(each), each.settings.direction) for each in (first, other))
        if ours != theirs:
            raise SettingsError(
                f"The maps show different things: {_measured(first)}, and {_measured(other)}. Their numbers cannot be "
                "compared or share a scale. Give maps of one metric and one direction."
            )


def token_axis_labels(result: HiddenFlow) -> list[str]:
    """The tokens as an axis shows them, those of the subject with a star."""
    start, end = result.subject_range
    return [
        display_token(token) + ("*" if start <= position < end else "")
        for position, token in enumerate(result.input_tokens)
    ]


def display_token(token: str) -> str:
    """A token's text for people: no outer blanks, and a sign for what would not be seen."""
    shown = token.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥").strip(" ")
    if any(character.isprintable() for character in shown):
        return shown
    return " ".join(f"U+{ord(character):04X}" for character in shown) or "␣"


def _title(patched: str, settings: TraceSettings) -> str:
    if settings.direction == "corrupt":
        start = f"Corrupting {patched} of the clean run"
    elif settings.placebo is not None:
        start = f"Placebo: restoring {patched} from another prompt"
    else:
        start = f"Restoring {patched}"
    parts = [start]
    if settings.window > 1:
        parts.append(f"windows of {settings.window} layers")
    if settings.severed is not None:
        parts.append(_severed(settings.severed))
    if settings.elsewhere is not None:
        parts.append("control: other tokens corrupted")
    return ", ".join(parts)


def _severed(kind: str) -> str:
    return f"{KIND_NAMES.get(kind, kind)} severed"


def _measured(flow: AnyFlow) -> str:
    return f"{flow.settings.metric}, direction {flow.settings.direction!r}"
