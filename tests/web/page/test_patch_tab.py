"""The tab Patch without a browser: its HTML, what its events return, and the lines that reproduce a patched run."""

from __future__ import annotations

import re
import shlex
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("gradio")

import gradio as gr
import torch

from causal_tracer import PatchedRun
from causal_tracer.cli import main as cli
from causal_tracer.cli import patch as patch_cli
from causal_tracer.prompts.chat import ChatText
from causal_tracer.web.page import patch_tab
from causal_tracer.web.page.fields import FIELD_NAMES, Picked, field_values
from causal_tracer.web.page.patch_tab import PatchEvents, ReadPrompts
from causal_tracer.web.page.patch_views import answers_html, lenses_html, pairs_html, patched_html
from causal_tracer.web.page.single_run_files import single_run_file
from causal_tracer.web.service.patch_lines import patch_command, patch_lines
from tests.support.lenses import some_lens, some_patched_run
from tests.support.tiny_models import OTHER_PROMPT, PROMPT, tiny_tracer
from tests.support.web_tiny import all_of, app_fields, load_tiny_chat, tiny_service

MARKUP = "<img src=x onerror=alert(1)>"
PAIR = ((5, 1), (3, 0))


def fields(**changes: Any) -> tuple[Any, ...]:
    values = dict(zip(FIELD_NAMES, field_values(app_fields(PROMPT, model="tiny")), strict=True))
    return tuple({**values, **changes}.values())


def read_both(events: PatchEvents, base: str = OTHER_PROMPT, **changes: Any) -> tuple[Any, ...]:
    return all_of(events.read(gr.Request(), base, None, Picked(), *fields(**changes)))[-1]


def select(index: Any) -> Any:
    return SimpleNamespace(index=index)


class TestHtml:
    def test_the_cone_has_an_edge_and_changed_cells_are_marked(self) -> None:
        cone = torch.tensor([[0, 0, 0], [0, 0, 0], [0, 1, 1], [0, 0, 1], [0, 0, 1]], dtype=torch.bool)
        lens = some_lens()
        changed = lens.top_ids.clone()
        changed[4, 2, 0] = (changed[4, 2, 0] + 1) % 5
        run = some_patched_run(cone=cone, pairs=(((1, 0), (2, 1)),), lens=some_lens(top_ids=changed))
        cells = re.findall(r"<td[^>]*>", patched_html(run, lens))
        classes = [re.search(r'class="([^"]*)"', cell) for cell in cells]
        found = {divmod(place, 3): set(each[1].split()) for place, each in enumerate(classes) if each}
        assert found == {
            (2, 1): {"ct-paired", "ct-cone", "ct-n", "ct-w", "ct-s"},
            (2, 2): {"ct-cone", "ct-n"},
            (3, 2): {"ct-cone", "ct-w"},
            (4, 2): {"ct-cone", "ct-w", "ct-s", "ct-changed"},
        }

    def test_answers_stand_in_the_three_runs(self) -> None:
        rows = re.findall(r"<tr>(.*?)</tr>", answers_html(some_patched_run()))
        texts = [re.findall(r">([^<>]+)</t[hd]>", row) for row in rows]
        assert texts == [
            ["run", "P(Seattle)", "P(⏎)"],
            ["source", "0.3", "0.5"],
            ["base", "0.25", "0.25"],
            ["patched", "0.5", "0.125"],
        ]

    def test_each_pair_can_be_removed(self) -> None:
        html = pairs_html(some_lens(), some_lens(), (((1, 0), (2, 1)), ((0, 2), (4, 0))))
        assert "“the” layer 0 → “⏎” layer 1" in html
        assert re.findall(r'data-remove="(\w+)"', html) == ["0", "1", "all"]
        assert re.findall(r'data-pair="([\d,]+)"', html) == ["1,0,2,1", "0,2,4,0"]
        assert pairs_html(some_lens(), some_lens(), ()) == ""

    def test_markup_is_text(self) -> None:
        lens = some_lens(
            prompt=MARKUP, input_tokens=(MARKUP,) * 5, answer=MARKUP, texts=dict.fromkeys(range(5), MARKUP)
        )
        run = some_patched_run(lens=lens, base_tokens=lens.input_tokens, notes=(MARKUP,))
        parts = lenses_html(lens, lens), pairs_html(lens, lens, run.pairs), patched_html(run, lens), answers_html(run)
        assert "<img" not in "".join(parts)


class TestReadBoth:
    def test_both_lenses_have_the_sources_answer_and_pairs_begin_anew(self) -> None:
        status, lenses, read, pairs, _ = read_both(PatchEvents(tiny_service()))
        assert "Both prompts are read" in status
        assert 'data-lens="source"' in lenses
        assert 'data-lens="base"' in lenses
        assert (read.source.prompt, read.base.prompt, pairs) == (PROMPT, OTHER_PROMPT, ())
        assert read.base.answer_id == read.source.answer_id == read.source.top(-1, -1)[0].token_id
        assert list(read.answers) == [read.source.answer_id, read.base.top(-1, -1)[0].token_id]

    def test_the_answer_of_the_fields_is_read(self) -> None:
        assert read_both(PatchEvents(tiny_service()), answer=" Rome")[2].source.answer == " Rome"

    @pytest.mark.parametrize(
        ("base", "settings", "words"),
        [("", {}, "prompt is empty"), (OTHER_PROMPT + " the" * 20, {"max_prompt_tokens": 12}, "12 (CAUSAL_TRACER_")],
    )
    def test_a_problem_stands_in_place(self, base: str, settings: Any, words: str) -> None:
        status, lenses, read, pairs, _ = read_both(PatchEvents(tiny_service(**settings)), base)
        assert 'role="alert"' in status
        assert words in status
        assert (lenses, read, pairs) == ("", None, ())


class TestPairs:
    def test_a_base_cell_takes_the_last_value_put_into_it(self) -> None:
        read: Any = object()
        pairs: Any = ()
        for index in ((5, 1, 3, 0), (1, 0, 2, 2), (6, 2, 3, 0)):
            pairs, _ = patch_tab._add(select(index), read, pairs)
        assert pairs == (((1, 0), (2, 2)), ((6, 2), (3, 0)))
        assert patch_tab._remove(select(0), pairs) == pairs[1:]
        assert patch_tab._remove(select(-1), pairs) == ()

    def test_a_page_that_the_app_has_forgotten_says_so(self) -> None:
        pairs, status = patch_tab._add(select((0, 0, 0, 0)), None, ())
        assert pairs == gr.skip()
        assert "Press Read both again" in status


class TestPatch:
    def test_it_is_the_patched_run_of_the_pairs(self) -> None:
        events = PatchEvents(tiny_service())
        read = read_both(events)[2]
        running, done = all_of(events.show_patched(gr.Request(), read, (PAIR,), "mlp"))
        assert "Running…" in running[0]
        assert running[1:] == (gr.skip(),) * 7
        expected = tiny_tracer("gpt2").patch(PROMPT, OTHER_PROMPT, [PAIR], "mlp")
        run = done[4]
        assert (run.answers, run.pairs, run.site) == (expected.answers, expected.pairs, "mlp")
        assert torch.equal(run.cone, expected.cone)
        assert PatchedRun.load(single_run_file(run, "json")).to_dict() == run.to_dict()

    def test_without_pairs_nothing_is_run(self) -> None:
        events = PatchEvents(tiny_service())
        read = read_both(events)[2]
        ((status, *parts),) = all_of(events.show_patched(gr.Request(), read, (), "hidden"))
        assert "Choose pairs" in status
        assert not any(parts)

    def test_a_problem_stands_in_place(self) -> None:
        events = PatchEvents(tiny_service())
        read = read_both(events)[2]
        status, *parts = all_of(events.show_patched(gr.Request(), read, (((99, 0), (0, 0)),), "hidden"))[-1]
        assert "source token 99 is out of range" in status
        assert not any(parts)

    def test_chat_messages_are_patched_as_such(self) -> None:
        events = PatchEvents(tiny_service(load_tiny_chat))
        read = read_both(events, chat=True)[2]
        assert isinstance(read, ReadPrompts)
        assert all(isinstance(text, ChatText) for text in read.texts)
        *_, run, lines, command, card = all_of(events.show_patched(gr.Request(), read, (PAIR,), "hidden"))[-1]
        assert run.source_tokens == read.source.input_tokens
        assert f"ChatText.from_user({PROMPT!r})" in lines
        assert "no chat messages" in command
        assert card.prompt == f"{PROMPT} → {OTHER_PROMPT}"


class TestLines:
    def test_python_lines_make_the_same_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        tracer = tiny_tracer("gpt2")
        monkeypatch.setattr("causal_tracer.CausalTracer.from_pretrained", lambda *_, **__: tracer)
        monkeypatch.setattr("causal_tracer.plot_lens", lambda _: None)
        names: dict[str, Any] = {}
        exec(patch_lines('It\'s "x"\n', PROMPT, (PAIR,), "mlp", (3, 5), "tiny", "r1"), names)
        expected = tracer.patch('It\'s "x"\n', PROMPT, [PAIR], "mlp", answers=[3, 5])
        assert names["patched"].to_dict() == expected.to_dict()

    def test_the_command_asks_for_the_same_run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, Any] = {}

        class Noted:
            def patch(self, *given: Any, **more: Any) -> Any:
                asked.update(more, given=given)
                return some_patched_run()

        def load(*given: Any, **_: Any) -> Any:
            asked["model"] = given[:2]
            return Noted()

        monkeypatch.setattr(patch_cli, "load_tracer", load)
        words = shlex.split(patch_command("-x 'y'", PROMPT, (PAIR, PAIR), "attention", (" Rome", "-1"), "tiny", "r1"))
        assert words[0] == "causal-tracer"
        assert cli.main(words[1:]) == 0
        assert asked["given"] == ("-x 'y'", PROMPT, [PAIR, PAIR], "attention")
        assert asked["answers"] == [" Rome", "-1"]
        assert asked["model"] == ("tiny", "r1")
