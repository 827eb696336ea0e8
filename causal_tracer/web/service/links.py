"""Links that reproduce a result.

A link is a query string of plain names and values. It is checked like typed input: invalid values are reported and
left out.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin
from urllib.parse import urlencode, urlsplit, urlunsplit

from causal_tracer.arguments import choice, quoted
from causal_tracer.corruption import AUTOMATIC_NOISE_RULE
from causal_tracer.errors import CausalTracerError, SettingsError
from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.record import changed_fields, record_fields
from causal_tracer.request.records import MapSpec, OtherPrompt, StoredRequest, Text, TraceRequest
from causal_tracer.request.sites import SITES
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.web.service.app_fields import APP_FIELDS, ONLY_RECORDS, Fields

_SPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_LONGEST_TEXT = 20_000
_ONLY_THE_PACKAGE = "This result was made with settings that only the package has, so the app has no link to it."


@dataclass(frozen=True)
class ParsedLink:
    """The content of a link.

    Attributes:
        fields: The fields for which the link has a valid value.
        problems: Messages about the values that were left out.
        given: Whether the link has any field.
        revision: The model's revision with which the link was made; empty if it names none.
    """

    fields: Fields
    problems: tuple[str, ...] = ()
    given: bool = False
    revision: str = ""


def page_url(request_url: str, environ: Mapping[str, str] = os.environ) -> str:
    """Return the page's address without its query; on a Space, the Space's address, which passes its query on.

    If `request_url` is not an http(s) address, the result is empty: the link is then relative to the page it is on.
    """
    space = environ.get("SPACE_ID", "")
    if _SPACE.fullmatch(space):
        return f"https://huggingface.co/spaces/{space}"
    parts = urlsplit(request_url)
    if parts.scheme not in ("http", "https"):
        return ""
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


# The fields that a reader looks for come first.
_FIRST = ("prompt", "subject", "model", "kind")
_ORDER = (*_FIRST, *(name for name in APP_FIELDS if name not in _FIRST))


def share_link(fields: Fields, page: str, *, revision: str | None = None) -> str:
    """Return the link that reproduces a request.

    Args:
        fields: The request's fields, valid.
        page: The page's address (`page_url`).
        revision: The model's revision. Who opens the link later is warned if the app has another one.
    """
    said = {name: _written(fields[name]) for name in _ORDER if name in fields and _worth_saying(name, fields[name])}
    return f"{page}?{urlencode(with_revision(said, revision))}"


def with_revision(values: Mapping[str, Any], revision: str | None) -> dict[str, Any]:
    """Return the values of a link with the model's revision added, if it has one that a link can name."""
    named = linked_revision(revision)
    return {**values, **({"revision": named} if named else {})}


def read_revision(text: str) -> str:
    """Return the revision that a link names, after a check of its characters and length.

    Raises:
        SettingsError: The text is not a valid revision.
    """
    if not linked_revision(text):
        raise SettingsError(
            f"revision={quoted(text)} is not a valid revision. It must have 1 to 100 of A-Z, a-z, 0-9 and ._/-."
        )
    return text


def revision_problem(revision: str, here: str | None) -> str:
    """Return the warning about a link whose revision differs from the app's (`here`); empty if it does not differ."""
    if not revision or here in (None, revision):
        return ""
    return f"The link was made with revision {revision} of the model, and this app has {here}. Numbers may differ."


def linked_revision(revision: str | None) -> str:
    """Return a model's revision if a link can name it; else an empty text."""
    return revision if revision and re.fullmatch(r"[A-Za-z0-9._/-]{1,100}", revision) else ""


def parse_link(query: Mapping[str, Any]) -> ParsedLink:
    """Return the content of a page's query. Never raises: invalid values are reported in `problems`."""
    found: dict[str, Any] = {}
    problems: list[str] = []
    for name in (*APP_FIELDS, "revision"):
        if name not in query:
            continue
        text = query[name]
        try:
            found[name] = _read(name, text if isinstance(text, str) else "")
        except (ValueError, CausalTracerError):
            problems.append(f"{name}={quoted(text)} in the link is not a valid value, and was left out.")
    revision = found.pop("revision", "")
    return ParsedLink(found, tuple(problems), bool(found or problems), revision)


def fields_of(flow: HiddenFlow, model: str = "") -> dict[str, Any]:
    """Return the app's fields that give a result again.

    Args:
        flow: The result, perhaps an uploaded one.
        model: The name by which the app knows the model; empty takes the result's own.

    Raises:
        SettingsError: The result has settings that the app does not have, or does not store its settings.
    """
    noise = None if flow.settings.noise_rule == AUTOMATIC_NOISE_RULE else flow.settings.noise
    return asked_fields(flow.stored_request(), model or flow.settings.model, noise)


def asked_fields(stored: StoredRequest, model: str, noise: Any) -> dict[str, Any]:
    """Return the app's fields of a stored request, with a noise level or None for the automatic one.

    Raises:
        SettingsError: The request has settings that the app does not have.
    """
    found: dict[str, Any] = {"kind": stored.map.kind, "model": model}
    for record in (stored.request, stored.map, stored.options):
        if changed_fields(record).keys() & ONLY_RECORDS - _CHANGES_NO_NUMBER:
            raise SettingsError(_ONLY_THE_PACKAGE)
        found |= {name: getattr(record, name) for name, field in APP_FIELDS.items() if field.record is type(record)}
    text = typed_text(stored.request.prompt)
    if text is None or not isinstance(found["samples"], int) or not isinstance(found["corruption"], str):
        raise SettingsError(_ONLY_THE_PACKAGE)
    if not isinstance(noise, float | int | None):
        raise SettingsError(_ONLY_THE_PACKAGE)
    found |= {"prompt": text, "chat": isinstance(stored.request.prompt, ChatText), "noise": noise}
    return found | _experiment(stored.request, stored.map)


_CHANGES_NO_NUMBER = {"engine", "audit", "top_tokens"}


def _experiment(request: TraceRequest, spec: MapSpec) -> dict[str, Any]:
    """Return the app's own fields of a request: patch, second prompt, metric, window and severed paths.

    Raises:
        SettingsError: The app's fields cannot describe the request.
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
        text = typed_text(request.second.text)
        if text is None or request.second != OtherPrompt(request.second.text, request.second.subject):
            raise SettingsError(_ONLY_THE_PACKAGE)
        found |= {"second_prompt": text, "second_subject": request.second.subject or "", "noise": None}
    if request.mean_over:
        if any("\n" in each for each in request.mean_over):
            raise SettingsError(_ONLY_THE_PACKAGE)
        found["mean_prompts"] = "\n".join(request.mean_over)
    return found


def typed_text(text: Text) -> str | None:
    """Return the text to type into the page for a prompt; None if the page cannot give this conversation."""
    if not isinstance(text, ChatText):
        return text if isinstance(text, str) else None
    message = text.messages[-1]["content"]
    return message if text == ChatText.from_user(message) else None


def _worth_saying(name: str, value: Any) -> bool:
    """Return whether a link names a value: if it is not the default, and always for kind, samples and seed."""
    shown_always = name in ("kind", "samples", "seed")
    return value not in (None, "", ()) and (shown_always or value != APP_FIELDS[name].default)


def _written(value: Any) -> str:
    """Return a value as the shortest text that reads back as the same value."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, int | float):
        return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))
    return str(value)


def _read(name: str, text: str) -> Any:
    """Return the value of a text in a link.

    Raises:
        ValueError, CausalTracerError: The text is not a valid value of the field.
    """
    if name == "revision":
        return read_revision(text)
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
    # Only some kinds of map take a token, and the kind is another field of the link.
    if field.record is not None and name not in ("prompt", "token"):
        _check(field.record, name, value)
    return value


def _check(record: type[Any], name: str, value: Any) -> None:
    """Check a value of one field of a record by making the record."""
    needed = {"prompt": "x"} if "prompt" in record_fields(record) else {}
    record(**needed, **{name: value})


def _matched(pattern: str, text: str) -> str:
    if not re.fullmatch(pattern, text):
        raise ValueError
    return text
