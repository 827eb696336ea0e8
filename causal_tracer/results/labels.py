"""Texts that describe a map: titles and labels for its metric, direction, site, window, controls and tokens.

All titles, axes, captions, tables and reports use these texts, so that they agree.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING
from unicodedata import bidirectional

from causal_tracer.corruption import NoCorruption
from causal_tracer.errors import SettingsError
from causal_tracer.metrics.descriptions import METRIC_DESCRIPTIONS, MetricDescription
from causal_tracer.request.sites import SITES, SPANS, window_layers

if TYPE_CHECKING:
    from causal_tracer.results.flow import HiddenFlow, TraceSettings

_RIGHT_TO_LEFT = {"R", "AL", "AN"}


def metric_of(flow: HiddenFlow) -> MetricDescription:
    """Return the description of a map's metric, always with `higher_is_better` set.

    If the metric leaves it open, the clean run's value counts as better than the corrupted run's.
    """
    settings = flow.settings
    described = settings.metric_description or METRIC_DESCRIPTIONS.get(settings.metric)
    if described is None:
        described = MetricDescription(settings.metric, settings.metric)
    if described.higher_is_better is None:
        return replace(described, higher_is_better=flow.high_score >= flow.low_score)
    return described


def metric_label(flow: HiddenFlow) -> str:
    """Return the label of a map's scores, with the answer filled in: "P(Seattle)"."""
    foil = flow.settings.foil
    named = None if foil is None else bidi_isolated(display_token(foil))
    return metric_of(flow).labelled(bidi_isolated(display_token(flow.answer)), named)


def effect_label(flow: HiddenFlow) -> str:
    """Return the name of a map's effects: "indirect effect", or "change from the clean run"."""
    return "change from the clean run" if flow.settings.direction == "corrupt" else "indirect effect"


def audit_words(flow: HiddenFlow) -> str:
    """Return the result of a map's audit in a few words; empty if the map was not audited."""
    audit = flow.audit
    if audit is None:
        return ""
    cells = "1 cell" if len(audit.cells) == 1 else f"{len(audit.cells)} cells"
    return f"audit: {cells} computed again, largest difference {audit.largest_difference:.1g}"


def map_title(flow: HiddenFlow) -> str:
    """Return a map's title, such as "Restoring MLP outputs, windows of 10 layers, attention severed"."""
    site, tokens = SITES[flow.kind], _at_tokens(flow)
    if site.blocks:
        what, _, keys = site.patched.partition(" to ")
        return _title(f"Blocking {what} from {tokens} to {keys}", flow.settings)
    patched = f"{site.patched} at {tokens}" if tokens else site.patched
    return _title(_patching(patched, flow.settings), flow.settings)


def _patching(patched: str, settings: TraceSettings) -> str:
    if settings.ablation is not None:
        return f"Setting {patched} to {_constant(settings.ablation)}"
    if settings.direction == "corrupt":
        corrupting = f"Corrupting {patched} of the clean run"
        return corrupting if settings.second is None else f"Putting {patched} of the second prompt into the clean run"
    if settings.placebo is not None:
        return f"Placebo: restoring {patched} from another prompt"
    return f"Restoring {patched}" + ("" if settings.second is None else " in the second prompt")


def named_title(name: str, flow: HiddenFlow) -> str:
    """Return a map's title. The map's name comes first, if it differs from the kind."""
    return map_title(flow) if name in SITES else f"{name}: {map_title(flow)}"


def control_of(settings: TraceSettings) -> str:
    """Return the table's column "control": controls, second prompt and ablation. Empty for a plain map."""
    severed = _severed(settings.severed) if settings.severed else ""
    placebo = "placebo" if settings.placebo is not None else ""
    elsewhere = "other tokens corrupted" if settings.elsewhere is not None else ""
    second = "second prompt" if settings.second is not None else ""
    ablation = "" if settings.ablation is None else f"set to {_constant(settings.ablation)}"
    return ", ".join(part for part in (severed, placebo, elsewhere, second, ablation) if part)


def layer_axis_title(flow: HiddenFlow) -> str:
    """Return the title of a map's layer axis, such as "restored layer (MLP)"."""
    done, window = patched_word(flow), flow.settings.window
    what = f"{done} layer" if window == 1 else f"centre of {window} {done} layers"
    return f"{what} ({SITES[flow.kind].label})"


def patched_word(flow: HiddenFlow) -> str:
    """Return the verb for a cell's layers: "restored", "corrupted", "patched", "ablated" or "blocked"."""
    settings = flow.settings
    if SITES[flow.kind].blocks:
        return "blocked"
    if settings.ablation is not None:
        return "ablated"
    if settings.direction == "restore":
        return "restored"
    return "corrupted" if settings.second is None else "patched"


def made_in_clean_run(flow: HiddenFlow) -> bool:
    """Return whether a map changes the clean run by ablation or by blocking attention, without a corrupted run."""
    return flow.settings.ablation is not None or SITES[flow.kind].blocks


def low_run_name(settings: TraceSettings) -> str | None:
    """Return the name of the run behind `low_score`: "corrupted" or "second prompt"; None if nothing was corrupted."""
    if settings.second is not None:
        return "second prompt"
    return None if settings.corruption == NoCorruption().description else "corrupted"


def runs_line(flow: HiddenFlow, format_value: Callable[[float], str]) -> str:
    """Return the metric in the clean run and in the run of `low_score`: "clean 0.9, corrupted 0.1".

    Args:
        flow: The map.
        format_value: Formats a value of the metric.
    """
    clean, low = f"clean {format_value(flow.high_score)}", low_run_name(flow.settings)
    return clean if low is None else f"{clean}, {low} {format_value(flow.low_score)}"


def patched_layers(flow: HiddenFlow, layer: int) -> tuple[int, int]:
    """Return the first and the last layer that a cell patches or blocks."""
    layers = window_layers(layer, flow.settings.window, int(flow.scores.shape[1]))
    return layers[0], layers[-1]


def require_same_metric(*flows: HiddenFlow) -> None:
    """Check that maps have the same metric and the same direction, so that their numbers can be compared.

    Raises:
        SettingsError: The maps differ in metric or direction.
    """
    first = flows[0]
    for other in flows[1:]:
        ours, theirs = ((metric_of(each), each.settings.direction) for each in (first, other))
        if ours != theirs:
            raise SettingsError(
                f"The maps differ in metric or direction: {_measured(first)}, and {_measured(other)}. Their numbers "
                "cannot be compared or share a colour scale. Give maps of one metric and one direction."
            )


def row_names(flow: HiddenFlow) -> list[str]:
    """Return the names of a map's rows: each token's text, "head 3", or the name of a span."""
    rows = SITES[flow.kind].rows
    if rows == "spans":
        return list(SPANS)
    if rows == "heads":
        return [f"head {head}" for head in range(flow.scores.shape[0])]
    return [display_token(token) for token in flow.input_tokens]


def axis_labels(flow: HiddenFlow) -> list[str]:
    """Return the labels of a map's rows for an axis. The subject's tokens end with a star."""
    subject = range(*flow.subject_range) if SITES[flow.kind].rows == "tokens" else ()
    return [name + ("*" if row in subject else "") for row, name in enumerate(row_names(flow))]


def display_token(token: str) -> str:
    """Return a token's text for display, without outer spaces and with signs for invisible characters."""
    shown = token.replace("\r", "").replace("\n", "⏎").replace("\t", "⇥").strip(" ")
    if any(character.isprintable() for character in shown):
        return shown
    return " ".join(f"U+{ord(character):04X}" for character in shown) or "␣"


def bidi_isolated(text: str) -> str:
    """Return a text between Unicode isolate marks if it has right-to-left letters, else unchanged.

    Without the marks, right-to-left letters would reorder the numbers that follow them. The marks are FIRST STRONG
    ISOLATE (U+2068) and POP DIRECTIONAL ISOLATE (U+2069).
    """
    if any(bidirectional(character) in _RIGHT_TO_LEFT for character in text):
        return f"\u2068{text}\u2069"
    return text


def probability_label(token: str) -> str:
    """Return the label of a token's probability: "P(Seattle)"."""
    return METRIC_DESCRIPTIONS["probability"].labelled(bidi_isolated(display_token(token)))


def _at_tokens(flow: HiddenFlow) -> str:
    """Return the tokens of `settings.at_tokens` in quotes; empty for maps that are made at each token."""
    return " and ".join(repr(display_token(flow.input_tokens[token])) for token in flow.settings.at_tokens)


def _title(start: str, settings: TraceSettings) -> str:
    parts = [start]
    if settings.window > 1:
        parts.append(f"windows of {settings.window} layers")
    if settings.severed is not None:
        parts.append(_severed(settings.severed))
    if settings.elsewhere is not None:
        parts.append("control: other tokens corrupted")
    return ", ".join(parts)


def _constant(ablation: str) -> str:
    return ablation if ablation == "zero" else f"their {ablation}"


def _severed(kind: str) -> str:
    return f"{SITES[kind].label if kind in SITES else kind} severed"


def _measured(flow: HiddenFlow) -> str:
    return f"{flow.settings.metric}, direction {flow.settings.direction!r}"
