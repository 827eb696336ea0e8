"""Checks of the app's fields, as far as possible without the model, and the records made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from causal_tracer.arguments import choice, flag, quoted, real_number, whole_number
from causal_tracer.errors import PromptError, SettingsError
from causal_tracer.prompts.chat import ChatText
from causal_tracer.prompts.encoding import check_text
from causal_tracer.prompts.subject import replace_subject
from causal_tracer.request.map_spec import ABLATIONS
from causal_tracer.request.records import MapSpec, OtherPrompt, RunOptions, TraceRequest
from causal_tracer.request.sites import KINDS
from causal_tracer.web.service.app_fields import (
    APP_FIELDS,
    CHARACTERS_PER_TOKEN,
    LONGEST_ANSWER,
    MOST_TEXTS,
    RECORDS,
    TOP_TOKENS,
    Fields,
)
from causal_tracer.web.service.settings import ServiceSettings, limit

# JSON numbers are exact integers up to this one.
_LARGEST_NUMBER = 2**53
_LIMITED = {"samples": "max_samples", "batch_size": "batch_size"}


@dataclass(frozen=True)
class CheckedFields:
    """The records made of the app's fields, checked as far as possible without the model.

    Attributes:
        request: The request.
        specs: The maps, by name.
        options: How the maps are computed.
        model: The model's name; empty takes the app's first model.
    """

    request: TraceRequest
    specs: Mapping[str, MapSpec]
    options: RunOptions
    model: Any = ""


def check_fields(fields: Fields, settings: ServiceSettings) -> CheckedFields:
    """Return the records made of the app's fields.

    Raises:
        SettingsError: A value is invalid, or over one of the app's limits.
        PromptError: Prompt, subject or answer is not a text, or is too long.
    """
    if unknown := [name for name in fields if name not in APP_FIELDS]:
        raise SettingsError(f"The app has no field {quoted(unknown[0])}. Its fields are {', '.join(APP_FIELDS)}.")
    given = {name: _plain(name, fields.get(name, field.default)) for name, field in APP_FIELDS.items()}
    given["typed"], given["prompt"] = given["prompt"], _prompt(given, settings)
    given["answer"] = _answer("answer", given["answer"])
    given["subject"] = check_text("subject", _filled(given["subject"])).strip() or None
    given["batch_size"] = settings.batch_size if given["batch_size"] is None else given["batch_size"]
    for name, setting in _LIMITED.items():
        if given[name] > (most := getattr(settings, setting)):
            raise SettingsError(
                f"{name}={quoted(given[name])} is over this app's limit of {limit(setting, most)}. Give less."
            )
    made: dict[type[Any], dict[str, Any]] = {
        record: {name: given[name] for name, field in APP_FIELDS.items() if field.record is record}
        for record in RECORDS
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
    """Return the request's fields for the experiment: corruption, second prompt, direction, metric."""
    metric = {} if given["metric"] == "automatic" else {"metric": given["metric"]}
    direction = "corrupt" if given["patch"] == "corrupt" else "restore"
    second, foil = _second(given, settings), _answer("foil", given["foil"])
    found = {"direction": direction, "second": second, "foil": foil, **metric}
    if given["patch"] == "mean":
        found["mean_over"] = _mean_over(given, settings)
    if in_clean_run:
        corrupted = given["elsewhere"] is not None or given["corruption"] != APP_FIELDS["corruption"].default
        if corrupted or second is not None:
            raise SettingsError(
                "This map is made in the clean run, where nothing is corrupted. Leave out corruption, elsewhere and "
                "the second prompt."
            )
        found |= {"direction": "corrupt", "corruption": "none", "noise": None}
    if "metric" not in found:
        found["metric"] = "probability" if second is None else "logit difference"
    return found


def _mean_over(given: Mapping[str, Any], settings: ServiceSettings) -> tuple[str, ...]:
    """Return the prompts of a mean: one per line, or the prompt itself."""
    lines = [line for line in check_text("mean_prompts", _filled(given["mean_prompts"])).splitlines() if line.strip()]
    if given["chat"] and not lines:
        raise SettingsError("mean_prompts is empty, and a chat message cannot be averaged over. Give a prompt.")
    if len(lines) > MOST_TEXTS:
        raise SettingsError(
            f"mean_prompts has {len(lines)} lines, and this app takes at most {MOST_TEXTS}. Give fewer."
        )
    for line in lines:
        _check_length(line, settings)
    return tuple(lines) or (given["typed"],)


def _second(given: Mapping[str, Any], settings: ServiceSettings) -> OtherPrompt | None:
    """Return the second prompt: the given one, or the first prompt with another subject; None without either."""
    text, subject = (check_text(name, _filled(given[name])) for name in ("second_prompt", "second_subject"))
    if not text.strip() and not subject.strip():
        return None
    if not text.strip():
        text = replace_subject(given["typed"], given["subject"], given["occurrence"], subject.strip())
    return OtherPrompt(_prompt({**given, "prompt": text}, settings), subject.strip() or None)


def _plain(name: str, value: Any) -> Any:
    """Return a value as the records take it, without the objects that only Python has.

    Forms and JSON may give the integer 10 as 10.0.
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


def _check_length(text: str, settings: ServiceSettings) -> None:
    if len(text) > CHARACTERS_PER_TOKEN * settings.max_prompt_tokens:
        raise PromptError(
            f"The prompt has {len(text)} characters, and this app takes at most "
            f"{limit('max_prompt_tokens', settings.max_prompt_tokens)} tokens. Shorten it."
        )


def _prompt(given: Mapping[str, Any], settings: ServiceSettings) -> str | ChatText:
    prompt = check_text("prompt", given["prompt"])
    _check_length(prompt, settings)
    if not flag("chat", given["chat"]):
        return prompt
    if not prompt.strip():
        raise PromptError("The prompt is empty. Give the user's message.")
    return ChatText.from_user(prompt)


def _answer(name: str, value: Any) -> str | None:
    text = check_text(name, _filled(value))
    if len(text) > LONGEST_ANSWER:
        raise PromptError(f"The {name} has {len(text)} characters. Give at most {LONGEST_ANSWER}.")
    return text if text.strip() else None
