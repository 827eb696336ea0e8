"""The bounded store of values computed last."""

from __future__ import annotations

from functools import partial

import pytest

from causal_tracer.web.service.recent import Recent


def computed(recent: Recent[str], *keys: str) -> list[str]:
    """The keys whose values had to be computed when they were asked for in this order."""
    new: list[str] = []

    def compute(key: str) -> str:
        new.append(key)
        return key.upper()

    assert [recent.get(key, partial(compute, key)) for key in keys] == [key.upper() for key in keys]
    return new


def test_a_value_is_computed_once() -> None:
    assert computed(Recent(2), "a", "b", "a", "b") == ["a", "b"]


def test_the_value_that_was_not_used_for_longest_gives_way() -> None:
    assert computed(Recent(2), "a", "b", "a", "c", "a", "b") == ["a", "b", "c", "b"]


def test_an_error_is_not_stored() -> None:
    recent: Recent[str] = Recent(2)

    def fail() -> str:
        raise ValueError("It cannot be computed.")

    with pytest.raises(ValueError, match="cannot be computed"):
        recent.get("a", fail)
    assert computed(recent, "a") == ["a"]
