"""Links that reproduce a result.

A link is a query string of plain names and values. Whoever opens one gets it checked like anything else that was typed:
what is no value of its name is reported and left out.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin
from urllib.parse import urlencode, urlsplit, urlunsplit

from causal_tracer.arguments import choice, shown
from causal_tracer.corruption import AUTOMATIC_NOISE_RULE
from causal_tracer.errors import CausalTracerError, SettingsError
from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.record import changed_fields, record_fields
from causal_tracer.request.records import MapSpec, OtherPrompt, StoredRequest, Text, TraceRequest
from causal_tracer.request.sites import SITES
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.web.service.asking import APP_FIELDS, ONLY_RECORDS, Fields

_SPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_LONGEST_TEXT = 20_000
_ONLY_THE_PACKAGE = "This result was made in a way that only the package has, so the app has no link to it."


@dataclass(frozen=True)
class ParsedLink:
    """What a link asks for.

    Attributes:
        fields: What the link has a sensible value for.
        problems: What was left out, and why.
        given: Whether the link asks for anything at all.
        revision: The revision of the model that the link was made with; empty where it has none.
    """

    fields: Fields
    problems: tuple[str, ...] = ()
    given: bool = False
    revision: str = ""


def page_url(request_url: str, environ: Mapping[str, str] = os.environ) -> str:
    """The address of the page without its query: on a Space the Space page's own, which hands its query on.

    Empty, for a link to the page that it stands on, where `request_url` is no address of a page.
    """
    space = environ.get("SPACE_ID", "")
    if _SPACE.fullmatch(space):
        return f"https://huggingface.co/spaces/{space}"
    parts = urlsplit(request_url)
    if parts.scheme not in ("http", "https"):
        return ""
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


# What a reader looks for comes first.
_FIRST = ("prompt", "subject", "model", "kind")
_ORDER = (*_FIRST, *(name for name in APP_FIELDS if name not in _FIRST))


def share_link(fields: Fields, page: str, *, revision: str | None = None) -> str:
    """Return the link to a page that reproduces what was asked for.

    Args:
        fields: What was asked for, valid.
        page: The page's address (`page_url`).
        revision: The model's revision, so that whoever opens the link is told if it has changed.
    """
    said = {name: _written(fields[name]) for name in _ORDER if name in fields and _worth_saying(name, fields[name])}
    return f"{page}?{urlencode({**said, **({'revision': revision} if revision else {})})}"


def parse_link(query: Mapping[str, Any]) -> ParsedLink:
    """Return what the query of a page asks for. Never raises: what is wrong is in `problems`."""
    found: dict[str, Any] = {}
    problems: list[str] = []
    for name in (*APP_FIELDS, "revision"):
        if name not in query:
            continue
        text = query[name]
        try:
            found[name] = _read(name, text if isinstance(text, str) else "")
        except (ValueError, CausalTracerError):
            problems.append(f"{name}={shown(text)} in the link is none of its values, and was left out.")
    revision = found.pop("revision", "")
    return ParsedLink(found, tuple(problems), bool(found or problems), revision)


def fields_of(flow: HiddenFlow, model: str = "") -> dict[str, Any]:
    """Return what to ask the app for to get a result again.

    Args:
        flow: The result, perhaps an uploaded one.
        model: The name by which the app knows the model; empty takes the result's own.

    Raises:
        SettingsError: The result was made in a way that the app does not have, or does not store how it was made.
    """
    noise = None if flow.settings.noise_rule == AUTOMATIC_NOISE_RULE else flow.settings.noise
    return asked_fields(flow.stored_request(), model or flow.settings.model, noise)


def asked_fields(stored: StoredRequest, model: str, noise: Any) -> dict[str, Any]:
    """Return what to ask the app for to get what a stored request asks for, with a noise level or None for automatic.

    Raises:
        SettingsError: The request asks for what the app does not have.
    """
    found: dict[str, Any] = {"kind": stored.map.kind, "model": model}
    for record in (stored.request, stored.map, stored.options):
        if changed_fields(record).keys() & ONLY_RECORDS - _CHANGES_NO_NUMBER:
            raise SettingsError(_ONLY_THE_PACKAGE)
        found |= {name: getattr(record, name) for name, field in APP_FIELDS.items() if field.record is type(record)}
    text = _typed(stored.request.prompt)
    if text is None or not isinstance(found["samples"], int) or not isinstance(found["corruption"], str):
        raise SettingsError(_ONLY_THE_PACKAGE)
    if not isinstance(noise, float | int | None):
        raise SettingsError(_ONLY_THE_PACKAGE)
    found |= {"prompt": text, "chat": isinstance(stored.request.prompt, ChatText), "noise": noise}
    return found | _experiment(stored.request, stored.map)


_CHANGES_NO_NUMBER = {"engine", "audit", "top_tokens"}


def _experiment(request: TraceRequest, spec: MapSpec) -> dict[str, Any]:
    """The app's own fields of a result: what was patched, the second prompt, and what is left to its default.

    Raises:
        SettingsError: The app has no fields for it.
    """
    usual = "probability" if request.second is None else "logit difference"
    found = {
        "metric": "automatic" if request.metric == usual else request.metric,
        "severed": spec.severed or "none",
        "window": None if spec.window == SITES[spec.kind].window else spec.window,
        "patch": spec.source if spec.ablates else "restore" if spec.in_clean_run else request.direction,
    }
    objects = not isinstance(request.metric, str) or isinstance(spec.token, tuple) or spec.source == "placebo"
    if objects or (spec.in_clean_run and (request.corruption != "none" or request.direction != "corrupt")):
        raise SettingsError(_ONLY_THE_PACKAGE)
    if spec.in_clean_run:
        found |= {"corruption": APP_FIELDS["corruption"].default, "noise": None}
    if request.second is not None:
        text = _typed(request.second.text)
        if text is None or request.second != OtherPrompt(request.second.text, request.second.subject):
            raise SettingsError(_ONLY_THE_PACKAGE)
        found |= {"second_prompt": text, "second_subject": request.second.subject or "", "noise": None}
    if request.mean_over:
        if any("\n" in each for each in request.mean_over):
            raise SettingsError(_ONLY_THE_PACKAGE)
        found["mean_prompts"] = "\n".join(request.mean_over)
    return found


def _typed(text: Text) -> str | None:
    """What is typed into the page to get a text or a conversation; None where nothing is."""
    if not isinstance(text, ChatText):
        return text if isinstance(text, str) else None
    message = text.messages[-1]["content"]
    return message if text == ChatText.from_user(message) else None


def _worth_saying(name: str, value: Any) -> bool:
    """Whether a link names a value: where it is not the default, and always what a reader wants to see there."""
    shown_always = name in ("kind", "samples", "seed")
    return value not in (None, "", ()) and (shown_always or value != APP_FIELDS[name].default)


def _written(value: Any) -> str:
    """A value as short as it can be written and read back the same."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int | float):
        return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))
    return str(value)


def _read(name: str, text: str) -> Any:
    """The value that a link's text stands for.

    Raises:
        ValueError, CausalTracerError: It stands for none that the field can have.
    """
    if name == "revision":
        return _matched(r"[A-Za-z0-9._/-]{1,100}", text)
    field = APP_FIELDS[name]
    if get_origin(field.type) is Literal:
        return choice(name, text, get_args(field.type))
    kinds = {field.type, *get_args(field.type)}
    value: Any = text
    if bool in kinds:
        value = {"0": False, "1": True, "false": False, "true": True}.get(text)
    elif int in kinds:
        value = int(_matched("-?[0-9]{1,10}", text))
    elif float in kinds:
        value = float(_matched(r"[0-9]{1,17}(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?", text))
    elif len(text) > _LONGEST_TEXT or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError
    # A token is right for some kinds only, which the link names elsewhere.
    if field.record is not None and name not in ("prompt", "token"):
        _check(field.record, name, value)
    return value


def _check(record: type[Any], name: str, value: Any) -> None:
    """Let the record refuse a value of one of its fields."""
    needed = {"prompt": "x"} if "prompt" in record_fields(record) else {}
    record(**needed, **{name: value})


def _matched(pattern: str, text: str) -> str:
    if not re.fullmatch(pattern, text):
        raise ValueError
    return text
