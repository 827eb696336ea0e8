"""What stands in the page's fields, as the service takes it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

from causal_tracer.errors import SettingsError
from causal_tracer.plots.heatmap import display_token
from causal_tracer.request.map_spec import ABLATIONS
from causal_tracer.request.sites import SITES
from causal_tracer.web.service.asking import APP_FIELDS, Fields
from causal_tracer.web.service.inspection import Inspection, subject_of_tokens


@dataclass(frozen=True)
class Picked:
    """What was chosen by clicks and does not stand in a text field in full; it holds while the fields stay as they are.

    Attributes:
        prompt: The prompt in which it was chosen.
        subject: The subject that was chosen.
        occurrence: Which one is meant where that subject occurs more than once.
        answer: The text of the answer that was chosen.
        answer_id: Its token; None where no token was chosen.
        answer_form: As in `TraceRequest`; the page has no field for it, but a link may have it.
    """

    prompt: str = ""
    subject: str = ""
    occurrence: str = "last"
    answer: str = ""
    answer_id: int | None = None
    answer_form: str = "auto"


# How the answer's field names a token that has no text of its own.
_NAMED_TOKEN = re.compile(r"token (\d{1,15})")

ANOTHER_SUBJECT, SECOND_PROMPT = "another subject", "a second prompt"
"""What the page's list of corruptions has beside those of the app: runs that take the place of a corrupted one."""

MAIN_FIELDS = ("model", "prompt", "subject", "answer", "chat")
# Chosen by clicks, or by the tab that is run.
_WITHOUT_A_BOX = {"kind", "occurrence", "answer_id", "answer_form"}

OTHER_FIELDS = tuple(name for name in APP_FIELDS if name not in {*MAIN_FIELDS, *_WITHOUT_A_BOX})
"""Every other field of the app, which its page lays out by type."""

FIELD_NAMES = (*MAIN_FIELDS, *OTHER_FIELDS)
"""The page's fields, in the order in which its events get them."""


def is_optional(name: str) -> bool:
    """Return whether a field is a number that may be left out."""
    return type(None) in get_args(APP_FIELDS[name].type)


_OPTIONAL_NUMBERS = {name: APP_FIELDS[name].title for name in OTHER_FIELDS if is_optional(name)}


def asked_for(kind: str, picked: Picked, *values: Any) -> dict[str, Any]:
    """Return what the page asks for, by the names of `APP_FIELDS`; the values are in the order of `FIELD_NAMES`.

    Raises:
        SettingsError: Where a number is expected there is none.
    """
    given = dict(zip(FIELD_NAMES, values, strict=True))
    for name, title in _OPTIONAL_NUMBERS.items():
        given[name] = optional_number(title, given[name])
    given |= _corrupted_by(given)
    given |= _not_for(kind, given["patch"])
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
    """The corruption and the second prompt that the page's list asks for; what the other choices take is left out."""
    choice = given["corruption"]
    if choice not in (ANOTHER_SUBJECT, SECOND_PROMPT):
        return {"second_prompt": "", "second_subject": ""}
    default = APP_FIELDS["corruption"].default
    other = {} if choice == SECOND_PROMPT else {"second_prompt": ""}
    return {"corruption": default, "noise": None, "elsewhere": None, **other}


def _not_for(kind: str, patch: str) -> dict[str, Any]:
    """Fields that say nothing to a map, at their defaults: the page keeps them for its other tabs and choices."""
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
    """Return what the page shows for what is asked for, in the order of `FIELD_NAMES`: the other way round."""
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
    """Return what a link has picked beyond what the fields show."""
    kept = {name: asked[name] for name in ("subject", "occurrence", "answer_id", "answer_form") if name in asked}
    return Picked(prompt=asked["prompt"], answer=_answer_text(asked), **kept)


def _answer_text(asked: Fields) -> str:
    token = asked.get("answer_id")
    return asked.get("answer") or "" if token is None else f"token {token}"


def optional_number(title: str, text: Any) -> float | None:
    """The number in a text field; empty is None.

    Text fields, since Gradio's number field gives 0 when it is empty, and 0 is a noise level too.

    Raises:
        SettingsError: It is no number.
    """
    shown = str(text or "").strip()
    if not shown:
        return None
    try:
        return float(shown)
    except ValueError as error:
        raise SettingsError(f"{title} {shown!r} is no number. Give one, or leave the field empty.") from error


def subject_picked(inspection: Inspection, prompt: str, first: int, last: int, picked: Picked) -> Picked:
    """The subject that two clicked tokens mark.

    Raises:
        SubjectError: It cannot be told from the same words elsewhere in the prompt.
    """
    subject, occurrence = subject_of_tokens(inspection, prompt, first, last)
    return replace(picked, prompt=prompt, subject=subject, occurrence=occurrence)


def answer_picked(inspection: Inspection, prompt: str, place: int, picked: Picked) -> Picked:
    """The answer at a place of the list; the first one is the model's own, which needs no text."""
    chosen = inspection.answers[place]
    if place == 0:
        return replace(picked, prompt=prompt, answer="", answer_id=None, answer_form="auto")
    text = display_token(chosen.text)
    return replace(picked, prompt=prompt, answer=text, answer_id=chosen.token_id, answer_form="auto")
