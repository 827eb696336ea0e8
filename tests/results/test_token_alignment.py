"""The table of two prompts' tokens: what it shows, and what it is saved as."""

from __future__ import annotations

import json
from typing import Any

import pytest

from causal_tracer.results.token_alignment import TokenAlignment

ALIGNMENT = TokenAlignment(("<bos>", "Rome", " is"), "Look: Paris is", ("<bos>", "Look", " Paris", " is"), (0, None, 3))


def test_it_is_shown_as_a_table() -> None:
    assert repr(ALIGNMENT).splitlines() == ["  0 '<bos>'  0 '<bos>'", "  1 'Rome'   –", "  2 ' is'    3 ' is'"]
    assert ALIGNMENT.rows[2] == (2, " is", 3, " is")
    assert ALIGNMENT.without_partner == (1,)


def test_it_comes_back_from_json() -> None:
    assert TokenAlignment.from_dict(json.loads(json.dumps(ALIGNMENT.to_dict()))) == ALIGNMENT


@pytest.mark.parametrize("change", [{"partners": [0, None]}, {"partners": [0, None, 4]}, {"partners": [0, None, -1]}])
def test_partners_that_are_not_there_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="partners"):
        TokenAlignment.from_dict({**ALIGNMENT.to_dict(), **change})
