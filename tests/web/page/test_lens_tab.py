"""The tab Lens without a browser: its grid, a cell in detail, and what its events return."""

from __future__ import annotations

import re
from contextlib import aclosing
from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr

from causal_tracer import CausalTracer, LogitLens
from causal_tracer.errors import ModelStructureError, SettingsError
from causal_tracer.web.page.fields import FIELD_NAMES, Picked, field_values
from causal_tracer.web.page.lens_grid import grid_html, legend_html, lens_cell_html
from causal_tracer.web.page.lens_tab import LensEvents, NewestLens
from causal_tracer.web.page.single_run_files import single_run_file
from tests.support.lenses import some_lens
from tests.support.tiny_models import OTHER_PROMPT, PROMPT, tiny_tracer
from tests.support.web_tiny import all_of, app_fields, awaited, tiny_service

MARKUP = "<img src=x onerror=alert(1)>"


def fields(prompt: str = PROMPT, **changes: Any) -> tuple[Any, ...]:
    values = dict(zip(FIELD_NAMES, field_values(app_fields(prompt, model="tiny")), strict=True))
    return tuple({**values, **changes}.values())


def ready_events(**settings: Any) -> LensEvents:
    service = tiny_service(**settings)
    service.lens(_request(PROMPT))
    return LensEvents(service)


def _request(prompt: str) -> Any:
    from causal_tracer import TraceRequest

    return TraceRequest(prompt)


def read(events: LensEvents, *values: Any) -> list[tuple[Any, ...]]:
    return all_of(events.read(gr.Request(), NewestLens(), Picked(), *(values or fields())))


def test_no_choice_of_an_experiment_keeps_a_prompt_from_being_read() -> None:
    lens = read(ready_events(), *fields("the sky is"))[-1][3]
    for choice in ({"corruption": "another subject", "second_subject": "Rome"}, {"metric": "logit difference"}):
        again = read(ready_events(), *fields("the sky is", samples=10**9, **choice))[-1][3]
        assert again.to_dict() == lens.to_dict()


class TestGrid:
    def test_each_cell_has_its_top_token_and_the_three_shades(self) -> None:
        lens = some_lens()
        html = grid_html(lens, "lens", most=4)
        cells = re.findall(r'style="--t:(\d+)%;--a:(\d+)%;--e:(\d+)%" title="[^"]*"><bdi>(.*?)</bdi>', html)
        assert len(cells) == lens.entropies.numel()
        for (top, answer, entropy, _), place in zip(cells, ((t, x) for t in range(5) for x in range(3)), strict=True):
            assert int(top) == round(100 * float(lens.top_probabilities[place][0]))
            assert int(answer) == round(100 * float(lens.answer_probabilities[place]))
            assert int(entropy) == round(25 * float(lens.entropies[place]))

    def test_the_tab_key_stops_once(self) -> None:
        assert grid_html(some_lens(), "lens").count('tabindex="0"') == 1

    def test_only_cells_of_a_source_can_be_dragged(self) -> None:
        assert grid_html(some_lens(), "source").count("draggable") == 15
        assert "draggable" not in grid_html(some_lens(), "base")

    def test_markup_is_text(self) -> None:
        lens = some_lens(
            prompt=MARKUP, input_tokens=(MARKUP,) * 5, answer=MARKUP, texts=dict.fromkeys(range(5), MARKUP + '"')
        )
        html = grid_html(lens, "lens", title="Lens") + legend_html(lens) + lens_cell_html(lens, 1, 1)
        assert "<img" not in html
        assert 'MARKUP"' not in html


class TestCell:
    def test_it_has_the_top_tokens_the_answer_and_the_entropy(self) -> None:
        lens = some_lens()
        html = lens_cell_html(lens, 1, 2)
        for words in (
            "“the”, layer 2",
            f"{lens.top(1, 2)[0].probability:.4f}",
            f"P(Seattle) = {float(lens.answer_probabilities[1, 2]):.4g}, rank {int(lens.answer_ranks[1, 2])}",
            f"entropy {float(lens.entropies[1, 2]):.3g} nats",
        ):
            assert words in html

    def test_a_cell_that_is_not_there_is_refused(self) -> None:
        with pytest.raises(SettingsError, match="layer=3 is out of range"):
            lens_cell_html(some_lens(), 1, 3)


class TestWhenItIsRead:
    def test_nothing_is_due_before_the_model_is_loaded(self) -> None:
        due, status = LensEvents(tiny_service()).due(NewestLens(), Picked(), *fields())
        assert due == gr.skip()
        assert "loaded when it is first needed" in status

    def test_prompt_and_answer_make_another_lens_due_and_samples_do_not(self) -> None:
        events = ready_events()
        due = [
            events.due(NewestLens(), Picked(), *values)[0]
            for values in (fields(), fields(samples=3), fields(OTHER_PROMPT), fields(answer=" Rome"))
        ]
        assert due[0] == due[1]
        assert len(set(due)) == 3


class TestRead:
    def test_it_is_the_lens_of_the_prompt(self) -> None:
        events = ready_events()
        reading, done = read(events)
        assert "Reading…" in reading[0]
        # What stands there stays.
        assert reading[1:] == (gr.skip(),) * 3
        assert done[3].to_dict() == events.service.lens(_request(PROMPT)).to_dict()
        assert done[3].run == "clean run"

    @pytest.mark.parametrize("prompt", [PROMPT + " Rome", OTHER_PROMPT])
    def test_it_ends_early_if_another_lens_is_due(self, prompt: str) -> None:
        events, newest = ready_events(), NewestLens()

        async def until_another_is_due() -> list[tuple[Any, ...]]:
            async with aclosing(events.read(gr.Request(), newest, Picked(), *fields(prompt))) as answers:
                first = await anext(answers)
                events.due(newest, Picked(), *fields("Rome is the capital of"))
                return [first, *[answer async for answer in answers]]

        reading, ended = awaited(until_another_is_due())
        assert "Reading…" in reading[0]
        assert "read again when the prompt changes" in ended[0]
        assert ended[1:] == (gr.skip(),) * 3

    def test_it_says_that_it_waits_for_another_run(self) -> None:
        events = ready_events()
        slot = events.service._slot("tiny")
        ticket = slot.queue.join()

        async def left_early():
            async with aclosing(events.read(gr.Request(), NewestLens(), Picked(), *fields())) as answers:
                return await anext(answers)

        reading = awaited(left_early())
        assert "Waiting for another run on this model" in reading[0]
        slot.queue.leave(ticket)

    @pytest.mark.parametrize(
        ("values", "settings", "words"),
        [
            (fields(), {"max_prompt_tokens": 4}, "The prompt has 11 tokens"),
            (fields(""), {}, "prompt is empty"),
            (fields(noise="loud"), {}, "must be a number (given: &#x27;loud&#x27;)"),
        ],
    )
    def test_a_problem_stands_in_place_of_the_lens(self, values: Any, settings: Any, words: str) -> None:
        status, grid, cell, lens = read(LensEvents(tiny_service(**settings)), *values)[-1]
        assert 'role="alert"' in status
        assert words in status
        assert (grid, cell, lens) == ("", "", None)

    def test_a_model_without_a_lens_is_named_in_words(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: Any, **__: Any) -> LogitLens:
            raise ModelStructureError("No final norm was found in Mamba.")

        monkeypatch.setattr(CausalTracer, "lens", refuse)
        assert "No final norm was found in Mamba." in read(LensEvents(tiny_service()))[-1][0]

    def test_a_full_line_is_named_in_words(self) -> None:
        events = ready_events(max_queue=1)
        slot = events.service._slot("tiny")
        tickets = [slot.queue.join(), slot.queue.join()]
        status = read(events)[-1][0]
        for ticket in tickets:
            slot.queue.leave(ticket)
        assert "1 request is waiting already" in status


def test_files_have_the_lens() -> None:
    lens = tiny_tracer("gpt2").lens(PROMPT)
    assert LogitLens.load(single_run_file(lens, "json")).to_dict() == lens.to_dict()
    assert single_run_file(lens, "csv").read_bytes().decode() == lens.to_csv()
