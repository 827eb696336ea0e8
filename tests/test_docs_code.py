"""The code and the commands of the README and the documentation work.

Python blocks run on a tiny model in the embedded model's place; what the real one prints is checked by
`test_readme.py`, and for the longer pages nightly. Commands are read by the command line's own parser.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from functools import cache
from pathlib import Path
from typing import Any

import gradio_client
import plotly.graph_objects as go
import pytest
import torch
import transformers
import typer

import causal_tracer
from causal_tracer import CausalTracer, MapSpec, RunOptions, TraceRequest
from causal_tracer.cli.main import app
from causal_tracer.files import CACHE_VARIABLE
from causal_tracer.web.launch import _parser
from causal_tracer.web.service.settings import ServiceSettings, variable
from tests.support.chat_templates import PLAIN, with_template
from tests.support.tiny_models import D_MODEL, PROMPT, SUBJECT, VOCAB_SIZE, tiny_model, tiny_tokenizer, tiny_tracer

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    str(page.relative_to(ROOT)): page.read_text(encoding="utf-8")
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md")))
}
EXTENDING = "docs/guides/extending.md"
# Tests of their own run these, and read what they print.
OWN_TESTS = {EXTENDING, "docs/guides/changing-the-package.md", "docs/explanation/glass-box.md"}
# Pages that name layers of the embedded model, or that need a chat template.
LAYERS = {"docs/terms/logit-lens.md": 18, "docs/terms/patching.md": 18, "docs/guides/conversations.md": 3}


def blocks(text: str, language: str) -> list[str]:
    """The code blocks of a language, those inside lists too."""
    found = re.findall(rf"^( *)```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


PYTHON = {name: code for name, text in PAGES.items() if (code := blocks(text, "python"))}


class TinyClient:
    """`gradio_client.Client` for an app that runs the tiny model."""

    def __init__(self, address: str) -> None:
        assert address == "http://127.0.0.1:7860"

    def predict(self, task: dict[str, Any], *, api_name: str) -> dict[str, Any]:
        assert api_name == "/trace"
        (spec,) = task["maps"]
        return tiny_tracer("llama").trace(TraceRequest(**task["request"]), spec=MapSpec(**spec)).to_dict()


@cache
def larger_tracer(layers: int) -> CausalTracer:
    """A tiny model with so many layers and room for a conversation."""
    config = transformers.LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=D_MODEL,
        intermediate_size=D_MODEL,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=128,
    )
    torch.manual_seed(0)
    return CausalTracer(transformers.LlamaForCausalLM(config).eval(), with_template(PLAIN))


@pytest.fixture
def tiny(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """Names that a page's blocks may use, with tiny models wherever they load one, in a folder of their own."""
    page = getattr(request.node, "callspec", None) and request.node.callspec.params["page"]
    tracer = larger_tracer(LAYERS[page]) if page in LAYERS else tiny_tracer("llama")
    monkeypatch.setattr(CausalTracer, "from_pretrained", lambda _: tracer)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", lambda _: tiny_model("gpt2"))
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda _: tiny_tokenizer())
    monkeypatch.setattr(gradio_client, "Client", TinyClient)
    monkeypatch.setattr(go.Figure, "show", lambda *_, **__: None)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "causal_tracer/web/stored/studies/gemma-3-270m", tmp_path / "my-study")
    public = {name: getattr(causal_tracer, name) for name in causal_tracer.__all__}
    return {**public, "tracer": tracer, "prompt": PROMPT, "subject": SUBJECT}


@pytest.mark.parametrize("page", sorted(PYTHON.keys() - OWN_TESTS))
def test_the_python_of_a_page_runs(page: str, tiny: dict[str, Any]) -> None:
    for number, code in enumerate(PYTHON[page], 1):
        exec(compile(code, f"{page}, block {number}", "exec"), tiny)


def test_metrics_and_corruptions_keep_to_fifteen_lines_and_print_what_they_are(
    tiny: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    setup, *guides = PYTHON[EXTENDING]
    exec(compile(setup, EXTENDING, "exec"), tiny)
    for code in guides:
        made = re.search(r"@dataclass.*?(?=\n\n\n(?:flow|def))", code, re.DOTALL)
        assert made
        assert len([line for line in made[0].splitlines() if line.strip()]) <= 15
        exec(compile(code, EXTENDING, "exec"), tiny)
        assert abs(tiny["flow"].total_effect) > 0.01
    margin, described, shuffled = capsys.readouterr().out.splitlines()
    assert margin.startswith("AnswerMargin ")
    assert float(margin.split()[1]) > 0 > float(margin.split()[2])
    assert described == "answer margin margin of {answer}"
    assert shuffled.startswith("shuffled embeddings ")


def test_the_glass_box_page_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = PYTHON["docs/explanation/glass-box.md"]
    exec(compile(code, "glass-box.md", "exec"), {})
    plain, severed = (
        [float(number) for number in re.findall(r"\d\.\d+", line)] for line in capsys.readouterr().out.splitlines()
    )
    assert plain[:4] == [0.99] * 4
    assert [round(score, 1) for score in severed[:2]] == [0.4, 0.4]


@pytest.mark.nightly
@pytest.mark.model
def test_the_tutorial_prints_what_it_says_on_the_real_model(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    said = blocks(PAGES["docs/tutorial.md"], "text")
    names: dict[str, Any] = {}
    for code, output in zip(PYTHON["docs/tutorial.md"], said, strict=True):
        exec(compile(code, "tutorial.md", "exec"), names)
        assert capsys.readouterr().out == output
    assert (tmp_path / "my-fact.html").stat().st_size > 10_000


@pytest.mark.nightly
@pytest.mark.model
def test_the_page_on_conversations_runs_on_the_real_chat_model() -> None:
    (code,) = PYTHON["docs/guides/conversations.md"]
    names: dict[str, Any] = {}
    exec(compile(code, "conversations.md", "exec"), names)
    flow = names["flow"]
    assert flow.answer.strip() == "France"
    assert flow.total_effect > 0.05
    assert "".join(flow.input_tokens[slice(*flow.subject_range)]).strip() == "Eiffel Tower"


# Commands and objects ------------------------------------------------------------------------------------------------


def command_lines(text: str) -> list[list[str]]:
    """The commands of the shell blocks, as words, without comments and variables."""
    lines = "".join(blocks(text, "bash")).replace("\\\n", " ").splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [[word for word in line if not re.fullmatch(r"[A-Z_]+=.*", word)] for line in words if line]


@pytest.mark.parametrize("page", [name for name, text in PAGES.items() if "causal-tracer " in text])
def test_the_commands_of_a_page_are_read_by_the_command_line(page: str) -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    for words in command_lines(PAGES[page]):
        if "causal_tracer" in words:
            words = ["causal-tracer", *words[words.index("causal_tracer") + 1 :]]
        if words[0] != "causal-tracer" or {"app", "--help"} & set(words):
            continue
        name, *arguments = words[1:]
        command = commands[name]
        while hasattr(command, "commands"):
            name, *arguments = arguments
            command = command.commands[name]
        command.make_context(name, [word.strip("'") for word in arguments])


def test_the_command_line_page_shows_every_command() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    shown = {words[1] for words in command_lines(PAGES["docs/reference/command-line.md"])}
    assert shown == commands.keys()


def test_the_app_is_started_with_options_and_variables_that_it_has() -> None:
    known = {variable(name) for name in ServiceSettings.__dataclass_fields__} | {CACHE_VARIABLE}
    for name, text in PAGES.items():
        assert set(re.findall(r"CAUSAL_TRACER_[A-Z_]*[A-Z]", text)) <= known, name
        for words in command_lines(text):
            if words[:2] == ["python", "app.py"] and "--help" not in words:
                _parser().parse_args(words[2:])


def test_the_objects_of_the_api_page_are_those_of_the_records() -> None:
    page = PAGES["docs/guides/calling-the-api.md"]
    whole = json.loads(blocks(page, "json")[0])
    TraceRequest(**whole["request"])
    RunOptions(**whole["options"])
    for spec in whole["maps"]:
        MapSpec(**spec)
    rows = re.findall(r"^\| [^|`]+ \| (`\".*) \|$", page, re.MULTILINE)
    assert len(rows) >= 10
    for code in re.findall(r"`([^`]+)`", " ".join(rows)):
        if code.startswith('"') and ":" in code:
            for name in json.loads(f"{{{code}}}"):
                assert name in {*TraceRequest.__dataclass_fields__, *MapSpec.__dataclass_fields__, "maps"}, code
