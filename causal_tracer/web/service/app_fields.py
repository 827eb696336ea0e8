"""The app's fields: name, type, default, title and help of everything that the page or a program can set.

The fields are those of `TraceRequest`, `MapSpec` and `RunOptions`, and a few of the app's own. Page, links, endpoints
and log take them from `APP_FIELDS`, so a new field of a record appears in all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.metrics.metric import METRICS
from causal_tracer.request.record import record_fields
from causal_tracer.request.records import MapSpec, RunOptions, TraceRequest
from causal_tracer.request.sites import SITES

RunKind = Literal["hidden", "mlp", "attention", "all", "head", "knockout", "span_knockout"]
"""A kind of map, or "all": the first three kinds in one sweep."""

RUN_KINDS: tuple[str, ...] = get_args(RunKind)
TOP_TOKENS = 5
"""Number of most probable next tokens that a result keeps for each cell."""

Fields = Mapping[str, Any]
"""Requested values, by the names of `APP_FIELDS`, not checked yet."""

# Far more characters than a token has: longer prompts are refused before they are tokenized.
CHARACTERS_PER_TOKEN = 50
LONGEST_ANSWER = 200
MOST_TEXTS = 100
"""The most prompts of a mean, and the most answers of a patched run."""


@dataclass(frozen=True)
class AppField:
    """A field of the app.

    Attributes:
        type: The type of its values, as published to programs.
        default: The value if the field is left out.
        title: The field's name on the page.
        help: The field's meaning.
        record: The record that the field belongs to; None for the app's own fields.
    """

    type: Any
    default: Any
    title: str
    help: str
    record: type[Any] | None = None


RECORDS: tuple[type[Any], ...] = (TraceRequest, MapSpec, RunOptions)
"""The records whose fields the app has."""

DERIVED_FIELDS = frozenset("second direction mean_over source".split())
"""Fields of the records that the app derives from its own fields."""

ONLY_RECORDS = frozenset("read placebo top_tokens positions engine audit".split())
"""Fields of the records that the page does not have."""

PatchRule = Literal["restore", "corrupt", "zero", "mean"]
"""The patch: clean activations into the corrupted run, corrupted activations into the clean run, or zero or a mean into
the clean run."""

# Without "none": a restoring map without a corruption would be empty.
APP_CORRUPTIONS = tuple(name for name, named in CORRUPTIONS.items() if named.corrupts)

# Types for forms and JSON, without Python's objects; and the help, if it differs from the record's.
_APP_FORMS: Mapping[str, tuple[Any, str]] = {
    "prompt": (str, ""),
    "corruption": (Literal[APP_CORRUPTIONS], "How the subject's embeddings are corrupted."),
    "metric": (
        Literal["automatic", *METRICS],
        "The metric of each run. automatic takes the probability, or with a second prompt the logit difference.",
    ),
    "severed": (
        Literal["none", "mlp", "attention"],
        "Hold these outputs at the restored token at the corrupted run's values, in all layers (ROME, Figure 3).",
    ),
    "token": (
        int | None,
        "For heads, the token at which they are restored; for knockouts, the token whose attention is blocked. "
        "Negative numbers count from the end; null takes the last token.",
    ),
    "noise": (float | None, "Standard deviation of the noise; null takes the model's automatic level, 0 adds none."),
    "samples": (int, "Number of noise samples."),
    "window": (
        int | None,
        "Number of layers restored or blocked together; null takes "
        f"{', '.join(f'{site.window} for {site.label}' for site in SITES.values())}.",
    ),
    "batch_size": (int | None, "Batch rows of one forward pass; null takes the app's own value."),
}
_APP_DEFAULTS = {"metric": "automatic", "severed": "none"}
_OWN = {
    "kind": AppField(
        RunKind,
        "hidden",
        "Kind",
        'One of "hidden", "mlp", "attention", "head", "knockout" and "span_knockout"; or "all", the first three in one '
        "sweep.",
    ),
    "patch": AppField(
        PatchRule,
        "restore",
        "Patch",
        '"restore" puts clean activations into the corrupted run, "corrupt" corrupted ones into the clean run; "zero" '
        'and "mean" set activations to zero, or to their mean over mean_prompts, in the clean run.',
    ),
    "second_prompt": AppField(
        str, "", "Second prompt", "A prompt that is run instead of the corrupted prompt; empty for none."
    ),
    "second_subject": AppField(
        str,
        "",
        "Its subject",
        "The second prompt's subject; if empty, it is guessed. Without a second prompt: the subject that replaces the "
        "prompt's own, which gives the second prompt.",
    ),
    "mean_prompts": AppField(
        str,
        "",
        "Prompts to average over",
        'For patch "mean": the prompts to average over, one per line; empty takes the prompt itself.',
    ),
    "model": AppField(str, "", "Model", "One of the app's models (/models); empty takes the first."),
    "chat": AppField(
        bool,
        False,
        "Chat message",
        "Format the prompt as a user's message with the model's chat template (/models says which models have one). "
        "The answer is then the start of the assistant's reply.",
    ),
}


def _of_records() -> dict[str, AppField]:
    found: dict[str, AppField] = {}
    for record in RECORDS:
        for name, info in record_fields(record).items():
            if name in ONLY_RECORDS | DERIVED_FIELDS or name in _OWN:
                continue
            kind, about = _APP_FORMS.get(name, (info.annotation, ""))
            default = None if info.is_required() or info.default_factory else info.default
            if str in (kind, *get_args(kind)):
                kind, default = str, ""
            default = _APP_DEFAULTS.get(name, default)
            title = info.title or name.replace("_", " ").capitalize()
            found[name] = AppField(kind, default, title, about or " ".join(str(info.description).split()), record)
    return found


APP_FIELDS: Mapping[str, AppField] = {**_of_records(), **_OWN}
"""The app's fields, by name."""
