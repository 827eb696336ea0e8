"""What Gradio calls, called without Gradio's server."""

from __future__ import annotations

import pytest

pytest.importorskip("gradio")

from causal_tracer.errors import SettingsError
from causal_tracer.web.fields import optional_number
from causal_tracer.web.handlers import thinned
from causal_tracer.web.service import RunUpdate


@pytest.mark.parametrize(("text", "number"), [("", None), ("  ", None), ("0", 0.0), (" 0.5 ", 0.5), ("1e-2", 0.01)])
def test_an_empty_field_is_no_zero(text, number):
    assert optional_number("Noise level", text) == number


def test_words_in_a_number_field_are_named():
    with pytest.raises(SettingsError, match="'loud'"):
        optional_number("Noise level", "loud")


def test_updates_are_thinned_and_the_last_one_comes():
    def updates():
        yield RunUpdate(waiting="the model")
        yield RunUpdate(waiting="the model")
        for done in range(50):
            yield RunUpdate({}, done, 50)
        yield RunUpdate({}, 50, 50)

    shown = [(update.waiting, update.done) for update in thinned(updates(), seconds=60)]
    assert shown == [("the model", 0), ("", 0), ("", 1), ("", 50)]


def test_leaving_early_closes_what_is_below():
    closed = []

    def updates():
        try:
            yield from (RunUpdate({}, done, 9) for done in range(9))
        finally:
            closed.append(True)

    shown = thinned(updates(), seconds=0)
    next(shown)
    shown.close()
    assert closed == [True]
