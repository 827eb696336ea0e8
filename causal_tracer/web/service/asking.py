"""What a person or a program asks of the app: fields by name, and the records that they make.

The fields are those of `TraceRequest`, `MapSpec` and `RunOptions`, with their types, defaults and help, and a few of
the app's own. Page, links, endpoints and the log take them from `APP_FIELDS`: a new field of a record is there at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from causal_tracer.arguments import choice, flag, real_number, shown, whole_number
from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.errors import PromptError, SettingsError
from causal_tracer.metrics.metric import METRICS
from causal_tracer.prompts.chat import ChatText
from causal_tracer.prompts.encoding import check_text
from causal_tracer.prompts.subject import with_another_subject
from causal_tracer.request.map_spec import ABLATIONS
from causal_tracer.request.record import record_fields
from causal_tracer.request.records import MapSpec, OtherPrompt, RunOptions, TraceRequest
from causal_tracer.request.sites import KINDS, SITES
from causal_tracer.web.service.settings import ServiceSettings, limit

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
    for record in _RECORDS:
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
    given["typed"], given["prompt"] = given["prompt"], _prompt(given, settings)
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
    specs = _maps(given, made[MapSpec])
    request = {**made[TraceRequest], **_experiment(given, settings, next(iter(specs.values())).in_clean_run)}
    return CheckedFields(
        TraceRequest(**request, top_tokens=TOP_TOKENS), specs, RunOptions(**made[RunOptions]), given["model"]
    )


def _maps(given: Mapping[str, Any], settings: dict[str, Any]) -> dict[str, MapSpec]:
    kinds = KINDS if given["kind"] == "all" else (given["kind"],)
    chosen = {
        **settings,
        "severed": None if given["severed"] == "none" else given["severed"],
        "source": given["patch"] if given["patch"] in ABLATIONS else "clean",
    }
    if given["window"] is None:
        del chosen["window"]
    return {kind: MapSpec(kind=kind, **chosen) for kind in kinds}


def _experiment(given: Mapping[str, Any], settings: ServiceSettings, in_clean_run: bool) -> dict[str, Any]:
    """What follows from the fields of the experiment: corruption, second prompt, direction, metric."""
    metric = {} if given["metric"] == "automatic" else {"metric": given["metric"]}
    foil = {"foil": check_text("foil", _filled(given["foil"])).strip("\n") or None}
    lines = [line for line in check_text("mean_prompts", _filled(given["mean_prompts"])).splitlines() if line.strip()]
    direction = "corrupt" if given["patch"] == "corrupt" else "restore"
    found = {"direction": direction, "second": _second(given, settings), **metric, **foil}
    if given["patch"] == "mean":
        if given["chat"] and not lines:
            raise SettingsError("mean_prompts is empty, and a chat message is no prompt to average over. Give one.")
        found["mean_over"] = tuple(lines) or (given["typed"],)
    if in_clean_run:
        # Nothing is corrupted there.
        found |= {"direction": "corrupt", "corruption": "none", "noise": None, "elsewhere": None, "second": None}
    if "metric" not in found:
        found["metric"] = "probability" if found["second"] is None else "logit difference"
    return found


def _second(given: Mapping[str, Any], settings: ServiceSettings) -> OtherPrompt | None:
    """The second prompt, as it is given or with another subject in the first one's place."""
    text, subject = (check_text(name, _filled(given[name])) for name in ("second_prompt", "second_subject"))
    if not text.strip() and not subject.strip():
        return None
    if not text.strip():
        text = with_another_subject(given["typed"], given["subject"], given["occurrence"], subject.strip())
    return OtherPrompt(_prompt({**given, "prompt": text}, settings), subject.strip() or None)


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
