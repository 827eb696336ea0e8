"""Links that reproduce a result.

A link is a query string of plain names and values. Whoever opens one gets it checked like anything else that was typed:
what is no value of its name is reported and left out.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, get_args
from urllib.parse import urlencode, urlsplit, urlunsplit

from causal_tracer.corruption import AUTOMATIC_NOISE_RULE, CORRUPTIONS
from causal_tracer.errors import SettingsError
from causal_tracer.prompts.answer_forms import AnswerForm
from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.data import read_request
from causal_tracer.request.records import MapSpec, Text, TraceRequest
from causal_tracer.request.sites import KINDS
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.web.service.asking import ASKED_KINDS, CORRUPTION_CHOICES, TraceInput, shown

_SPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_WHOLE = re.compile(r"[0-9]{1,10}")
_NUMBER = re.compile(r"[0-9]{1,17}(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?")
_LONGEST_TEXT = 20_000
_ONLY_THE_PACKAGE = "This result was made in a way that only the package has, so the app has no link to it."


@dataclass(frozen=True)
class ParsedLink:
    """What a link asks for.

    Attributes:
        asked: The input, with the defaults where the link says nothing or nothing sensible.
        problems: What was left out, and why.
        given: Whether the link asks for anything at all.
        revision: The revision of the model that the link was made with; empty where it has none.
    """

    asked: TraceInput
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


def share_link(asked: TraceInput, page: str, *, revision: str | None = None) -> str:
    """The link to a page that reproduces what was asked for.

    Args:
        asked: What was asked for, valid.
        page: The page's address (`page_url`).
        revision: The model's revision, so that whoever opens the link is told if it has changed.
    """
    default = TraceInput("")
    fields: dict[str, Any] = {"prompt": asked.prompt, "subject": asked.subject or "", "model": asked.model}
    fields["revision"] = revision or ""
    fields["kind"] = asked.kind
    if isinstance(asked.answer, str):
        fields["answer"] = asked.answer
    elif asked.answer is not None:
        fields["answer_id"] = int(asked.answer)
    for name in ("samples", "seed"):
        fields[name] = _plain(getattr(asked, name))
    for name in ("window", "noise", "start_layer", "end_layer", "batch_size"):
        value = getattr(asked, name)
        fields[name] = "" if value == getattr(default, name) else _plain(value)
    if asked.kind == "all" and any(window is not None for window in asked.windows):
        fields["windows"] = ",".join("" if window is None else _plain(window) for window in asked.windows)
    for name in ("subject_tokens_only", "chat"):
        fields[name] = "1" if getattr(asked, name) else ""
    for name in ("occurrence", "corruption", "answer_form"):
        value = getattr(asked, name)
        fields[name] = "" if value == getattr(default, name) else value
    return f"{page}?{urlencode({name: value for name, value in fields.items() if value != ''})}"


def parse_link(query: Mapping[str, Any]) -> ParsedLink:
    """What the query of a page asks for. Never raises: what is wrong is in `problems`; unknown names are not ours."""
    found: dict[str, Any] = {}
    problems: list[str] = []
    revision = ""
    for name, (field, read) in _READERS.items():
        if name not in query:
            continue
        text = query[name]
        try:
            value = read(text if isinstance(text, str) else "")
        except ValueError:
            problems.append(f"{name}={shown(text)} in the link is none of its values, and was left out.")
            continue
        if name == "revision":
            revision = value
        else:
            found[field] = value
    return ParsedLink(replace(TraceInput(""), **found), tuple(problems), bool(found or problems), revision)


def input_of(flow: HiddenFlow, model: str = "") -> TraceInput:
    """Return what to ask for to get a result again.

    Args:
        flow: The result, perhaps an uploaded one.
        model: The name by which the app knows the model; empty takes the result's own.

    Raises:
        SettingsError: The result was made in a way that the app does not have, or does not say how it was made.
    """
    settings = flow.settings
    asked = _input_of_older(flow) if flow.request is None else _input_of_request(*read_request(flow.request))
    automatic = settings.noise_rule == AUTOMATIC_NOISE_RULE
    return replace(asked, model=model or settings.model, noise=None if automatic else settings.noise)


# What a request has in common with the app's input, by the same names.
_SHARED_FIELDS = (
    "kind",
    "samples",
    "window",
    "seed",
    "subject_tokens_only",
    "start_layer",
    "end_layer",
    "occurrence",
    "corruption",
    "batch_size",
    "answer_form",
)
# What the app has under other names, and what changes no number beyond rounding.
_OTHER_FIELDS = ("text", "subject", "answer", "answer_id", "engine", "audit", "top_tokens")


def _input_of_request(request: TraceRequest, spec: MapSpec) -> TraceInput:
    typed = _typed(request.text)
    only_here = [item for item in fields(request) if item.name not in (*_SHARED_FIELDS, *_OTHER_FIELDS)]
    if not (
        typed is not None
        and isinstance(request.samples, int)
        and request.corruption in CORRUPTION_CHOICES
        and all(getattr(request, item.name) == item.default for item in only_here)
        and spec == MapSpec(spec.kind, spec.window)
    ):
        raise SettingsError(_ONLY_THE_PACKAGE)
    shared: dict[str, Any] = {name: getattr(request, name) for name in _SHARED_FIELDS}
    answer = request.answer or "" if request.answer_id is None else request.answer_id
    chat = isinstance(request.text, ChatText)
    return TraceInput(typed, request.subject or "", answer=answer, chat=chat, **shared)


def _typed(text: Text) -> str | None:
    """What is typed into the page to get a text or a conversation; None where nothing is."""
    if not isinstance(text, ChatText):
        return text if isinstance(text, str) else None
    message = text.messages[-1]["content"]
    return message if text == ChatText.from_user(message) else None


def _input_of_older(flow: HiddenFlow) -> TraceInput:
    """The same of a result saved before requests were stored, read as a text: it does not tell conversations.

    Raises:
        SettingsError: The app does not have it, or the subject's occurrence is not known.
    """
    settings = flow.settings
    names = {make(settings.noise, settings.seed).description: name for name, make in CORRUPTIONS.items()}
    names["Gaussian noise"] = "gaussian"
    special = (settings.severed, settings.placebo, settings.read, settings.foil, settings.elsewhere)
    plain = (settings.metric, settings.direction, *special) == ("probability", "restore", *(None,) * len(special))
    if settings.corruption not in names or not plain:
        raise SettingsError(_ONLY_THE_PACKAGE)
    count = sum(flow.prompt.startswith(flow.subject, place) for place in range(len(flow.prompt)))
    if count > 1:
        raise SettingsError(
            f"The subject {flow.subject!r} occurs {count} times in the prompt, and this result, of an earlier version, "
            "does not store which one was traced. Trace the prompt again to get a link."
        )
    shared: dict[str, Any] = {
        name: getattr(settings, name)
        for name in _SHARED_FIELDS
        if name not in ("kind", "occurrence", "corruption", "answer_form")
    }
    shared["end_layer"] = None if settings.end_layer == flow.scores.shape[1] else settings.end_layer
    return TraceInput(
        prompt=flow.prompt,
        subject="" if flow.subject_guessed else flow.subject,
        kind=flow.kind,
        answer=flow.answer if len(flow.answer_ids) > 1 else flow.answer_id,
        # The result has the text that was read, its space included.
        answer_form="exact",
        corruption=names[settings.corruption],
        **shared,
    )


def _plain(value: float | None) -> str:
    """A number as short as it can be written and read back the same."""
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))


def _text(text: str) -> str:
    if len(text) > _LONGEST_TEXT or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError
    return text


def _number(text: str) -> float:
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise ValueError
    return value


def _whole(text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError
    return int(text)


def _windows(text: str) -> tuple[int | None, ...]:
    parts = text.split(",")
    if len(parts) != len(KINDS):
        raise ValueError
    return tuple(_whole(part) if part else None for part in parts)


def _yes(text: str) -> bool:
    if text not in ("0", "1", "true", "false"):
        raise ValueError
    return text in ("1", "true")


def _choice(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return read


def _revision(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._/-]{1,100}", text):
        raise ValueError
    return text


# From the link's name to the input's field, and what makes a value of its text.
_READERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "prompt": ("prompt", _text),
    "subject": ("subject", _text),
    "model": ("model", _text),
    "revision": ("", _revision),
    "kind": ("kind", _choice(*ASKED_KINDS)),
    "answer": ("answer", _text),
    "answer_id": ("answer", _whole),
    "samples": ("samples", _whole),
    "seed": ("seed", _whole),
    "window": ("window", _whole),
    "windows": ("windows", _windows),
    "noise": ("noise", _number),
    "start_layer": ("start_layer", _whole),
    "end_layer": ("end_layer", _whole),
    "batch_size": ("batch_size", _whole),
    "subject_tokens_only": ("subject_tokens_only", _yes),
    "chat": ("chat", _yes),
    "occurrence": ("occurrence", _choice("first", "last")),
    "answer_form": ("answer_form", _choice(*get_args(AnswerForm))),
    "corruption": ("corruption", _choice(*CORRUPTION_CHOICES)),
}
