"""A map as a slide: its size, and the texts above and below it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from causal_tracer.errors import SettingsError
from causal_tracer.plots.saving import save_figure
from causal_tracer.plots.slides import SLIDE_SIZE, slide_figure
from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.record import to_data
from causal_tracer.request.records import MapSpec, RunOptions, StoredRequest, TraceRequest
from tests.support.flows import some_flow

CHROMIUM = Path("/usr/bin/chromium")
LINK = "https://example.org/app?prompt=Rome+is&kind=hidden"


def texts(figure: Any) -> list[str]:
    """Title, what was measured, and the footer."""
    return [str(each.text).replace("\N{LEFT-TO-RIGHT MARK}", "") for each in figure.layout.annotations]


def test_a_slide_is_wide_and_says_what_how_and_where() -> None:
    flow = some_flow()
    flow = replace(flow, settings=replace(flow.settings, versions={"causal_tracer": "2.0.0"}))
    figure = slide_figure(flow, link=LINK, model="A <model>")
    assert (figure.layout.width, figure.layout.height) == SLIDE_SIZE == (1920, 1080)
    title, measured, footer = texts(figure)
    assert title == f"{flow.prompt} → {flow.answer.strip()}"
    for part in (f"Subject “{flow.subject}”", "Restoring MLP outputs: P(Seattle)", "clean", "corrupted"):
        assert part in measured
    made, link = footer.split("<br>")
    assert made.startswith("A &lt;model&gt;, float32")
    for part in ("noise", f"seed {flow.settings.seed}", "causal-tracer 2.0.0"):
        assert part in made
    assert link == LINK.replace("&", "&amp;")


def test_a_link_is_whole_or_missing() -> None:
    long = f"{LINK}&{'x' * 200}"
    lines = texts(slide_figure(some_flow(), link=long))[2].split("<br>")[1:]
    assert "".join(lines).replace("&amp;", "&") == long
    assert max(map(len, lines)) < 160
    assert texts(slide_figure(some_flow(), link=long + "x" * 300))[2].endswith(
        "<br>The result's link is too long for a slide."
    )
    assert "<br>" not in texts(slide_figure(some_flow()))[2]


@pytest.mark.parametrize(
    "prompt", ["法国的首都和最大的城市是" * 20, "The Space Needle is located in the city of " * 20]
)
def test_a_long_prompt_leaves_its_end_and_the_answer(prompt: str) -> None:
    title = texts(slide_figure(some_flow(prompt=prompt.strip())))[0]
    assert title.endswith(f"{prompt.strip()[-6:]} → Seattle")
    assert title.startswith(prompt[:6])
    lines = title.split("<br>")
    assert len(lines) <= 2
    # As many pixels as a line of 84 Latin letters.
    assert max(sum(2 if "一" <= character <= "龥" else 1 for character in line) for line in lines) <= 84


def test_why_a_map_should_not_be_read_stands_on_its_slide() -> None:
    footer = texts(slide_figure(some_flow(), warnings=["The total effect is too small."]))[2]
    assert footer.startswith("<b>The total effect is too small.</b><br>")


def test_a_conversation_is_shown_as_its_message() -> None:
    asked = StoredRequest(TraceRequest(ChatText.from_user("Where is Rome?")), MapSpec(), RunOptions())
    flow = some_flow(prompt="<|user|>Where is Rome?<|assistant|>", request=to_data(asked))
    assert texts(slide_figure(flow))[0].startswith("Where is Rome? →")


def test_long_prompts_are_cut_and_markup_is_text() -> None:
    typed = "<b>bold</b> " * 60
    title, *rest = texts(slide_figure(some_flow(prompt=typed, subject="<i>", answer="<i>")))
    assert title.count("<br>") == 1
    assert " … " in title
    assert not re.search("<(?!br>)", "".join([title, *rest]))


def test_many_tokens_keep_their_labels() -> None:
    flow = some_flow()
    many = 60
    tall = replace(
        flow,
        scores=flow.scores[:1].repeat(many, 1),
        sample_scores=flow.sample_scores[:, :1].repeat(1, many, 1),
        input_tokens=[f"t{row}" for row in range(many)],
        input_ids=flow.input_ids[:1].repeat(many),
    )
    axis = slide_figure(tall).layout.yaxis
    assert len(axis.tickvals) == many
    assert axis.tickfont.size * many < SLIDE_SIZE[1] * 0.65
    assert slide_figure(flow).layout.yaxis.tickfont.size == 24


def test_arguments_are_checked() -> None:
    with pytest.raises(SettingsError, match="link must be a text"):
        slide_figure(some_flow(), link=7)  # type: ignore[arg-type]


@pytest.mark.nightly
@pytest.mark.skipif(not CHROMIUM.exists(), reason="there is no Chromium")
def test_a_picture_has_the_size_of_a_slide(tmp_path: Path) -> None:
    pytest.importorskip("kaleido")
    png = save_figure(slide_figure(some_flow()), tmp_path / "slide.png", scale=1.0).read_bytes()
    assert (int.from_bytes(png[16:20]), int.from_bytes(png[20:24])) == SLIDE_SIZE
