"""Messages about the page's fields: problems beside their field, warnings below the fields, both beside Run."""

from __future__ import annotations

from html import escape

from causal_tracer.web.page.summary import message_html
from causal_tracer.web.service.inspection import Field, Inspection

NOTED_FIELDS: tuple[Field, ...] = ("prompt", "subject", "answer")
"""The fields that have room for a note; other problems are shown below the fields."""


def field_notes(inspection: Inspection) -> tuple[str, ...]:
    """Return the HTML of the notes below `NOTED_FIELDS`. The subject's note names a guess."""
    notes = {field: message_html(*_words(inspection, field)) for field in NOTED_FIELDS}
    if inspection.guessed and not notes["subject"]:
        subject = f'<b dir="auto">{escape(inspection.subject)}</b>'
        notes["subject"] = f'<p class="ct-hint">Guessed: {subject}</p>'
    return tuple(notes.values())


def message_of(inspection: Inspection) -> str:
    """Return the HTML of warnings, and of problems whose field has no note."""
    return message_html(*_words(inspection, "settings"), warned=inspection.warnings)


def refusal(inspection: Inspection) -> str:
    """Return the reasons why a run is refused, shown beside Run; empty if it is not refused."""
    return " ".join(problem.words for problem in inspection.problems)


def _words(inspection: Inspection, field: Field) -> list[str]:
    return [problem.words for problem in inspection.problems if problem.field == field]
