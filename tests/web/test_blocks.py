"""The sessions of the app share the description of its page, and keep their own changes."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("gradio")
import gradio as gr
from gradio.blocks import BlocksConfig
from gradio.state_holder import SessionState

from causal_tracer.web.blocks import AppBlocks
from causal_tracer.web.serving import build_demo
from tests.support.web_tiny import tiny_service


@pytest.fixture(scope="module")
def demo() -> Any:
    return build_demo(tiny_service())


def test_a_session_s_descriptions_are_those_that_gradio_makes(demo: Any) -> None:
    of_gradio = {key: BlocksConfig.config_for_block(key, [], block) for key, block in demo.blocks.items()}
    for _ in range(2):
        found = SessionState(demo).config_values
        assert json.dumps(found, default=repr) == json.dumps(of_gradio, default=repr)
    assert len(found) > 300


def test_a_component_is_described_once_for_all_sessions(monkeypatch: Any) -> None:
    described: list[Any] = []
    with AppBlocks() as demo:
        box = gr.Textbox("Paris")
    config_of = gr.Textbox.get_config

    def get_config(component: Any, *args: Any) -> Any:
        described.append(component)
        return config_of(component, *args)

    monkeypatch.setattr(gr.Textbox, "get_config", get_config)
    sessions = [SessionState(demo) for _ in range(3)]
    assert described == [box]
    assert [session.config_values[box._id]["props"]["value"] for session in sessions] == ["Paris"] * 3


def test_a_session_s_changes_are_its_own() -> None:
    with AppBlocks() as demo:
        box = gr.Textbox("Paris", label="Answer")
    first, second = SessionState(demo), SessionState(demo)
    first._update_value_in_config(box._id, "Rome")
    assert first.config_values[box._id]["props"]["value"] == "Rome"
    changed = gr.Textbox("Oslo", label="Other", render=False)
    second[box._id] = changed
    second._update_config(box._id)
    assert second.config_values[box._id]["props"]["label"] == "Other"
    for session in (SessionState(demo), SessionState(demo)):
        props = session.config_values[box._id]["props"]
        assert (props["value"], props["label"]) == ("Paris", "Answer")
        assert session[box._id] is box
    assert first.config_values[box._id]["props"]["label"] == "Answer"
