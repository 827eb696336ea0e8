"""Labels of scores with a token in them, also in scripts that are written from right to left."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from causal_tracer.results.labels import bidi_isolated, metric_label, probability_label
from tests.support.flows import some_flow

CAIRO, LTR = "القاهرة", "\N{FIRST STRONG ISOLATE}{}\N{POP DIRECTIONAL ISOLATE}"


@pytest.mark.parametrize("text", [CAIRO, "ירושלים", "القاهرة Cairo"])
def test_right_to_left_text_is_kept_apart_from_the_number_after_it(text):
    assert bidi_isolated(text) == LTR.format(text)
    assert probability_label(f" {text}") == f"P({LTR.format(text)})"
    assert metric_label(some_flow(answer=f" {text}")) == f"P({LTR.format(text)})"


@pytest.mark.parametrize("text", ["Seattle", "巴黎", "25%", ""])
def test_other_text_stays_as_it_is(text):
    assert bidi_isolated(text) == text


def test_the_page_s_summary_keeps_score_and_share_in_their_order():
    pytest.importorskip("gradio")
    from causal_tracer.web.page.summary import numbers_html
    from causal_tracer.web.service.stored import stored_map

    html = numbers_html(replace(stored_map("hidden"), answer=f" {CAIRO}"))
    assert re.search(rf"P\({LTR.format(CAIRO)}\) = [\d.]+, \d+% of the total effect", html)
