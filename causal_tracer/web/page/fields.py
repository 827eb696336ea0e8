"""Conversion between the values of the page's fields and the fields that the service takes (`APP_FIELDS`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from causal_tracer.errors import SettingsError
from causal_tracer.plots.heatmap import display_token
from causal_tracer.request.map_spec import ABLATIONS
from causal_tracer.request.sites import SITES
from causal_tracer.web.service.app_fields import APP_FIELDS, Fields
from causal_tracer.web.service.inspection import Inspection, subject_of_tokens


@dataclass(frozen=True)
class Picked:
    """The parts of a click's choice that the text fields cannot hold. They apply while those fields stay unchanged.

    Attributes:
        prompt: The prompt in which the choice was made.
        subject: The chosen subject.
        occurrence: Which occurrence is meant, if the prompt has the subject more than once.
        answer: The chosen answer's text.
        answer_id: The chosen answer's token; None if no token was chosen.
        answer_form: As in `TraceRequest`. The page has no field for it, but a link may set it.
    """

    prompt: str = ""
    subject: str = ""
    occurrence: str = "last"
    answer: str = ""
    answer_id: int | None = None
    answer_form: str = "auto"


# The answer field's notation for a token that is given by its id.
_NAMED_TOKEN = re.compile(r"token (\d{1,15})")

ANOTHER_SUBJECT, SECOND_PROMPT = "another subject", "a second prompt"
"""Further choices in the page's list of corruptions: a second prompt is run instead of the corrupted one."""

MAIN_FIELDS = ("model", "prompt", "subject", "answer", "chat")
# Set by clicks, by links, or by the tab that is run.
_WITHOUT_COMPONENT = {"kind", "occurrence", "answer_id", "answer_form"}

OTHER_FIELDS = tuple(name for name in APP_FIELDS if name not in {*MAIN_FIELDS, *_WITHOUT_COMPONENT})
"""All other fields with a component on the page, which depends on the field's type."""

FIELD_NAMES = (*MAIN_FIELDS, *OTHER_FIELDS)
"""The page's fields, in the order in which event handlers receive their values."""


def is_optional(name: str) -> bool:
    """Return whether a field is a number that may be left out."""
    return type(None) in get_args(APP_FIELDS[name].type)


_OPTIONAL_NUMBERS = {name: APP_FIELDS[name].title for name in OTHER_FIELDS if is_optional(name)}


def asked_for(kind: str, picked: Picked, *values: Any) -> dict[str, Any]:
    """Return the fields that the page asks for, by the names of `APP_FIELDS`.

    Args:
        kind: The kind of map: the tab that is run.
        picked: The choices made by clicking.
        values: The values of the page's fields, in the order of `FIELD_NAMES`.

    Raises:
        SettingsError: A field that takes a number holds something else.
    """
    given = dict(zip(FIELD_NAMES, values, strict=True))
    for name, title in _OPTIONAL_NUMBERS.items():
        given[name] = optional_number(title, given[name])
    given |= _corrupted_by(given)
    given |= _defaults_of_unused(kind, given["patch"])
    text = given.pop("answer") or ""
    same_prompt = picked.prompt == given["prompt"]
    same_answer = same_prompt and picked.answer == text
    by_id = same_answer and picked.answer_id is not None
    named = _NAMED_TOKEN.fullmatch(text.strip())
    token = picked.answer_id if by_id else int(named[1]) if named else None
    return {
        **given,
        "kind": kind,
        "answer": text if token is None else "",
        "answer_id": token,
        "answer_form": picked.answer_form if same_answer else "auto",
        "occurrence": picked.occurrence if same_prompt and picked.subject == given["subject"] else "last",
    }


def _corrupted_by(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the corruption and second prompt chosen in the page's list, with the other choices' fields cleared."""
    choice = given["corruption"]
    if choice not in (ANOTHER_SUBJECT, SECOND_PROMPT):
        return {"second_prompt": "", "second_subject": ""}
    default = APP_FIELDS["corruption"].default
    other = {} if choice == SECOND_PROMPT else {"second_prompt": ""}
    return {"corruption": default, "noise": None, "elsewhere": None, **other}


def _defaults_of_unused(kind: str, patch: str) -> dict[str, Any]:
    """Return the defaults of fields that do not apply to a map; the page keeps their values for its other tabs."""
    site = SITES.get(kind)
    names: set[str] = set()
    if site is None or (site.rows == "tokens" and not site.blocks):
        names |= {"token"}
    if site is not None and site.rows != "tokens":
        names |= {"subject_tokens_only"}
    if site is not None and site.blocks:
        names |= {"severed", "patch"}
    if patch in ABLATIONS or (site is not None and site.blocks):
        # In the clean run nothing is corrupted.
        names |= {"corruption", "noise", "elsewhere", "second_prompt", "second_subject"}
    return {name: APP_FIELDS[name].default for name in names}


def field_values(asked: Fields) -> tuple[Any, ...]:
    """Return the page's values of requested fields, in the order of `FIELD_NAMES`: the inverse of `asked_for`."""
    asked = {**{name: field.default for name, field in APP_FIELDS.items()}, **asked}
    second = SECOND_PROMPT if asked["second_prompt"] else ANOTHER_SUBJECT if asked["second_subject"] else None
    shown = {
        **{name: asked[name] for name in FIELD_NAMES if name in asked},
        **{name: "" if asked[name] is None else f"{asked[name]:g}" for name in _OPTIONAL_NUMBERS},
        "answer": _answer_text(asked),
        "corruption": second or asked["corruption"],
    }
    return tuple(shown[name] for name in FIELD_NAMES)


def picked_by(asked: Fields) -> Picked:
    """Return the choices of a link that the page's fields do not show."""
    kept = {name: asked[name] for name in ("subject", "occurrence", "answer_id", "answer_form") if name in asked}
    return Picked(prompt=asked["prompt"], answer=_answer_text(asked), **kept)


def _answer_text(asked: Fields) -> str:
    token = asked.get("answer_id")
    return asked.get("answer") or "" if token is None else f"token {token}"


def optional_number(title: str, text: Any) -> float | None:
    """Return the number in a text field; None if the field is empty.

    A text field, since Gradio's number field gives 0 when it is empty, and 0 is a valid noise level.

    Raises:
        SettingsError: The text is not a number.
    """
    shown = str(text or "").strip()
    if not shown:
        return None
    try:
        return float(shown)
    except ValueError as error:
        raise SettingsError(f"{title} must be a number (given: {shown!r}). Give one, or leave it empty.") from error


def subject_picked(inspection: Inspection, prompt: str, first: int, last: int, picked: Picked) -> Picked:
    """Return the choice with the subject that two clicked tokens mark.

    Raises:
        SubjectError: The same words occur elsewhere in the prompt and cannot be told apart.
    """
    subject, occurrence = subject_of_tokens(inspection, prompt, first, last)
    return replace(picked, prompt=prompt, subject=subject, occurrence=occurrence)


def answer_picked(inspection: Inspection, prompt: str, place: int, picked: Picked) -> Picked:
    """Return the choice with the answer at this place of the list; the first is the model's own, without a text."""
    chosen = inspection.answers[place]
    if place == 0:
        return replace(picked, prompt=prompt, answer="", answer_id=None, answer_form="auto")
    text = display_token(chosen.text)
    return replace(picked, prompt=prompt, answer=text, answer_id=chosen.token_id, answer_form="auto")
