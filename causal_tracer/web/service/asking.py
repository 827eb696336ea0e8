"""What a person or a program asks of the app: fields by name, and the records that they make.

The fields are those of `TraceRequest`, `MapSpec` and `RunOptions`, with their types, defaults and help, and a few of
the app's own. Page, links, endpoints and the log take them from `APP_FIELDS`: a new field of a record is there at once.
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

Asked = Literal["hidden", "mlp", "attention", "all", "head", "knockout", "span_knockout"]
"""One kind of map, or the first three of them in one sweep."""

ASKED_KINDS: tuple[str, ...] = get_args(Asked)
TOP_TOKENS = 5
"""How many of the most probable next tokens a result keeps for each cell."""

Fields = Mapping[str, Any]
"""What is asked for, by the names of `APP_FIELDS`, as it comes in: nothing is checked yet."""

# Far more than a token has characters: longer prompts are turned away before they are tokenized.
CHARACTERS_PER_TOKEN = 50
LONGEST_ANSWER = 200
MOST_TEXTS = 100
"""Texts that a mean is over, or answers of a patched run."""


@dataclass(frozen=True)
class AppField:
    """A field of the app.

    Attributes:
        type: Of its values, as programs see it.
        default: What is taken where it is left out.
        title: What the page calls it.
        help: What it means.
        record: The record that it is a field of; None for the app's own.
    """

    type: Any
    default: Any
    title: str
    help: str
    record: type[Any] | None = None


RECORDS: tuple[type[Any], ...] = (TraceRequest, MapSpec, RunOptions)
"""The records whose fields the app has."""
"""The records whose fields the app has."""
WITHOUT_A_FIELD = frozenset("second direction mean_over source".split())
"""Fields of the records that follow from the app's own."""

ONLY_RECORDS = frozenset("read placebo top_tokens positions engine audit".split())
"""Fields of the records that the page does not have."""

PatchRule = Literal["restore", "corrupt", "zero", "mean"]
"""What is put where: clean activations into the corrupted run, corrupted ones into the clean run, or zero or a mean
into the clean run."""

# The app's maps restore: without a corruption they are empty.
APP_CORRUPTIONS = tuple(name for name, named in CORRUPTIONS.items() if named.corrupts)

# Without the objects of Python, and what is meant where a field is left out: its type, and its help where that differs.
_APP_FORMS: Mapping[str, tuple[Any, str]] = {
    "prompt": (str, ""),
    "corruption": (Literal[APP_CORRUPTIONS], "What is done to the subject's embeddings."),
    "metric": (
        Literal["automatic", *METRICS],
        "What is read; automatic takes the probability, with a second prompt the logit difference.",
    ),
    "severed": (
        Literal["none", "mlp", "attention"],
        "Hold these outputs at the restored token at the corrupted run's values, in all layers (ROME, Figure 3).",
    ),
    "token": (
        int | None,
        "Of heads: the token at which they are restored. Of knockouts: the token that may not attend. Negative numbers "
        "count from the end; null takes the last.",
    ),
    "noise": (float | None, "Standard deviation of the noise; null takes the model's automatic level, 0 adds none."),
    "samples": (int, "Noise samples."),
    "window": (
        int | None,
        "Layers restored or blocked together; null takes "
        f"{', '.join(f'{site.window} for {site.label}' for site in SITES.values())}.",
    ),
    "batch_size": (int | None, "Rows that go through the model together; null takes the app's."),
}
_APP_DEFAULTS = {"metric": "automatic", "severed": "none"}
_OWN = {
    "kind": AppField(
        Asked,
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
        str, "", "Second prompt", "A prompt that is run in place of a corrupted one; empty takes none."
    ),
    "second_subject": AppField(
        str,
        "",
        "Its subject",
        "The second prompt's subject; empty has it guessed. Without a second prompt: a subject that takes the place of "
        "the prompt's, which makes the second prompt.",
    ),
    "mean_prompts": AppField(
        str,
        "",
        "Prompts to average over",
        'For patch "mean": prompts, one in each line; empty takes the prompt itself.',
    ),
    "model": AppField(str, "", "Model", "One of the app's models (/models); empty takes the first."),
    "chat": AppField(
        bool,
        False,
        "Chat message",
        "The prompt is a user's message, written by the model's chat template (/models says which have one); the "
        "answer is the start of the assistant's.",
    ),
}


def _of_records() -> dict[str, AppField]:
    found: dict[str, AppField] = {}
    for record in RECORDS:
        for name, info in record_fields(record).items():
            if name in ONLY_RECORDS | WITHOUT_A_FIELD or name in _OWN:
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
"""By name."""
