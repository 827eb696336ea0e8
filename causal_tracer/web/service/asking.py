"""What a person or a program asks of the app: fields by name, and the records that they make.

The fields are those of `TraceRequest`, `MapSpec` and `RunOptions`, with their types, defaults and help, and a few of
the app's own. Page, links, endpoints and the log take them from `APP_FIELDS`: a new field of a record is there at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from causal_tracer.arguments import choice, flag, real_number, several, shown, whole_number
from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.errors import PromptError, SettingsError
from causal_tracer.prompts.chat import ChatText
from causal_tracer.prompts.encoding import check_text
from causal_tracer.request.record import record_fields
from causal_tracer.request.records import MapSpec, RunOptions, TraceRequest
from causal_tracer.request.sites import KINDS, SITES, LayerKind
from causal_tracer.web.service.settings import ServiceSettings, limit

Asked = Literal["hidden", "mlp", "attention", "all"]
"""One kind of map, or all three of them in one sweep."""

ASKED_KINDS: tuple[str, ...] = get_args(Asked)
TOP_TOKENS = 5
"""How many of the most probable next tokens a result keeps for each cell."""

Fields = Mapping[str, Any]
"""What is asked for, by the names of `APP_FIELDS`, as it comes in: nothing is checked yet."""

# Far more than a token has characters: longer prompts are turned away before they are tokenized.
CHARACTERS_PER_TOKEN = 50
LONGEST_ANSWER = 200
# JSON's whole numbers are exact up to it.
_LARGEST_NUMBER = 2**53
_LIMITED = {"samples": "max_samples", "batch_size": "batch_size"}


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


_RECORDS: tuple[type[Any], ...] = (TraceRequest, MapSpec, RunOptions)
ONLY_PYTHON = frozenset(
    "second metric foil direction read elsewhere placebo mean_over top_tokens positions token severed source engine "
    "audit".split()
)
"""Fields of the records that only Python has: they need objects, or figures that the page does not draw."""

# The app's maps restore: without a corruption they are empty.
APP_CORRUPTIONS = tuple(name for name, named in CORRUPTIONS.items() if named.corrupts)

# Without the objects of Python, and what is meant where a field is left out: its type, and its help where that differs.
_APP_FORMS: Mapping[str, tuple[Any, str]] = {
    "prompt": (str, ""),
    "corruption": (Literal[APP_CORRUPTIONS], "What is done to the subject's embeddings."),
    "noise": (float | None, "Standard deviation of the noise; null takes the model's automatic level, 0 adds none."),
    "samples": (int, "Noise samples."),
    "window": (
        int | None,
        f"Layers restored together; null takes {', '.join(f'{SITES[kind].window} for {kind}' for kind in KINDS)}.",
    ),
    "batch_size": (int | None, "Rows that go through the model together; null takes the app's."),
}
_OWN = {
    "kind": AppField(Asked, "hidden", "Kind", '"hidden", "mlp" or "attention", or "all" of them in one sweep.'),
    "windows": AppField(
        list[int | None], (), "Windows", "Of kind \"all\": each kind's window; empty takes the paper's."
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
    for record in _RECORDS:
        for name, info in record_fields(record).items():
            if name in ONLY_PYTHON or name in _OWN:
                continue
            kind, about = _APP_FORMS.get(name, (info.annotation, ""))
            default = None if info.is_required() or info.default_factory else info.default
            if str in (kind, *get_args(kind)):
                kind, default = str, ""
            title = info.title or name.replace("_", " ").capitalize()
            found[name] = AppField(kind, default, title, about or " ".join(str(info.description).split()), record)
    return found


APP_FIELDS: Mapping[str, AppField] = {**_of_records(), **_OWN}
"""By name."""


@dataclass(frozen=True)
class CheckedFields:
    """What fields ask for, checked as far as can be said without the model.

    Attributes:
        request: The prompt, and what is measured.
        specs: The maps, by name.
        options: How they are computed.
        model: The model's name; empty takes the app's first.
    """

    request: TraceRequest
    specs: Mapping[str, MapSpec]
    options: RunOptions
    model: Any = ""


def check_fields(fields: Fields, settings: ServiceSettings) -> CheckedFields:
    """Return the records that fields make.

    Raises:
        SettingsError: A value is none of those that it can have, or over one of the app's limits.
        PromptError: Prompt, subject or answer are no texts, or too long.
    """
    if unknown := [name for name in fields if name not in APP_FIELDS]:
        raise SettingsError(f"{shown(unknown[0])} is no field of the app. Its fields are {', '.join(APP_FIELDS)}.")
    given = {name: _plain(name, fields.get(name, field.default)) for name, field in APP_FIELDS.items()}
    given["prompt"] = _prompt(given, settings)
    given["answer"] = _answer(given["answer"])
    given["subject"] = check_text("subject", _filled(given["subject"])).strip() or None
    given["batch_size"] = settings.batch_size if given["batch_size"] is None else given["batch_size"]
    for name, setting in _LIMITED.items():
        if given[name] > (most := getattr(settings, setting)):
            raise SettingsError(
                f"{name}={shown(given[name])} is over this app's limit of {limit(setting, most)}. Give less."
            )
    made: dict[type[Any], dict[str, Any]] = {
        record: {name: given[name] for name, field in APP_FIELDS.items() if field.record is record}
        for record in _RECORDS
    }
    del made[MapSpec]["window"]
    return CheckedFields(
        TraceRequest(**made[TraceRequest], top_tokens=TOP_TOKENS),
        {kind: MapSpec(kind=kind, **window, **made[MapSpec]) for kind, window in _windows(given).items()},
        RunOptions(**made[RunOptions]),
        given["model"],
    )


def _plain(name: str, value: Any) -> Any:
    """A value as the records take it, and none of the objects and rules that only Python has.

    Forms and JSON hand on 10 as 10.0.
    """
    kind = APP_FIELDS[name].type
    kinds = {kind, *get_args(kind)}
    if value is None and type(None) in kinds:
        return None
    if get_origin(kind) is Literal:
        return choice(name, value, get_args(kind))
    if int in kinds:
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        return whole_number(name, whole, -_LARGEST_NUMBER, _LARGEST_NUMBER)
    return real_number(name, value) if float in kinds else value


def _filled(text: Any) -> Any:
    return "" if text is None else text


def _prompt(given: Mapping[str, Any], settings: ServiceSettings) -> str | ChatText:
    prompt = check_text("prompt", given["prompt"])
    if len(prompt) > CHARACTERS_PER_TOKEN * settings.max_prompt_tokens:
        raise PromptError(
            f"The prompt has {len(prompt)} characters, and this app takes at most "
            f"{limit('max_prompt_tokens', settings.max_prompt_tokens)} tokens. Shorten it."
        )
    if not flag("chat", given["chat"]):
        return prompt
    if not prompt.strip():
        raise PromptError("The prompt is empty. Give the user's message.")
    return ChatText.from_user(prompt)


def _answer(value: Any) -> str | None:
    text = check_text("answer", _filled(value))
    if len(text) > LONGEST_ANSWER:
        raise PromptError(f"The answer has {len(text)} characters. Give at most {LONGEST_ANSWER}.")
    return text if text.strip() else None


def _windows(given: Mapping[str, Any]) -> dict[LayerKind, dict[str, Any]]:
    """Each kind's window, as arguments of its map; none takes the paper's."""
    kinds = KINDS if given["kind"] == "all" else (given["kind"],)
    windows: Sequence[Any] = (given["window"],)
    if given["kind"] == "all":
        windows = several("windows", given["windows"]) or (None,) * len(kinds)
        if len(windows) != len(kinds):
            raise SettingsError(
                f"windows={shown(given['windows'])} are not one for each kind. Give {len(kinds)} or none."
            )
    plain = [_plain("window", window) for window in windows]
    return {kind: {} if each is None else {"window": each} for kind, each in zip(kinds, plain, strict=True)}
