"""The documentation is whole and true: names, links, formulas, commands, and the code on its pages."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from causal_tracer.cli.main import app
from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.metrics.metric import METRICS
from causal_tracer.request.records import MapSpec, TraceRequest
from tests.support.tiny_models import PROMPT, SUBJECT, tiny_tracer

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TERMS = sorted(page for page in (DOCS / "terms").glob("*.md") if page.name != "README.md")


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


def python_blocks(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text_of(name), re.DOTALL)


# The reference -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def maker() -> Any:
    """docs/make_api.py, as a module."""
    sys.path.insert(0, str(DOCS))
    try:
        return importlib.import_module("make_api")
    finally:
        sys.path.remove(str(DOCS))


def test_the_reference_is_what_the_docstrings_say(maker: Any) -> None:
    assert text_of("api.md") == maker.page(), "python docs/make_api.py brings it up to date"


def test_every_public_name_has_an_entry_that_says_something(maker: Any) -> None:
    import causal_tracer

    page = text_of("api.md")
    names = {name for module in maker.MODULES for name in maker.public_names(module)}
    assert {name for name in causal_tracer.__all__ if not name.startswith("_")} <= names
    entries = dict(re.findall(r"^### (\w+)\n(.*?)(?=^##|\Z)", page, re.DOTALL | re.MULTILINE))
    for name in names:
        said = re.search(r"```text\n(.+?)\n```", entries[name], re.DOTALL)
        assert said, f"{name} is not documented"
        assert len(said[1].split()) > 2, f"{name}: {said[1]!r}"


# Terms ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TERMS, ids=lambda page: page.stem)
def test_each_term_has_a_page_with_a_formula_or_a_table_and_is_in_the_index(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"({page.name})" in text_of("terms/README.md")
    if page.stem != "role":
        assert re.search(r"^    \S.* |^\|.*[=()].*\|$", text, re.MULTILINE)


def test_everything_that_can_be_asked_for_by_name_is_on_its_page() -> None:
    for name in CORRUPTIONS:
        assert f"`{name}`" in text_of("terms/corruption.md"), name
    for name in METRICS:
        assert f"| `{name}` |" in text_of("terms/metrics.md"), name
    terms = "".join(page.read_text(encoding="utf-8") for page in TERMS)
    for field in ("severed", "placebo", "direction", "elsewhere"):
        assert field in {*MapSpec.__dataclass_fields__, *TraceRequest.__dataclass_fields__}
        assert f"{field}=" in terms


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(((?!https?:|#)[^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


# Code and commands ---------------------------------------------------------------------------------------------------


def test_the_guide_to_metrics_and_corruptions_runs_and_keeps_to_fifteen_lines(
    capsys: pytest.CaptureFixture[str],
) -> None:
    # The other guides change the package: test_extending.py applies them to a copy.
    blocks = python_blocks("extending.md")[:3]
    names: dict[str, Any] = {"tracer": tiny_tracer("llama"), "prompt": PROMPT, "subject": SUBJECT}
    for block in blocks:
        made = re.search(r"@dataclass.*?(?=\n\n\n(?:flow|def))", block, re.DOTALL)
        assert made
        assert len([line for line in made[0].splitlines() if line.strip()]) <= 15
        exec(compile(block, "extending.md", "exec"), names)
        assert abs(names["flow"].total_effect) > 0.01
    margin, described, shuffled = capsys.readouterr().out.splitlines()
    assert margin.startswith("AnswerMargin ")
    assert float(margin.split()[1]) > 0 > float(margin.split()[2])
    assert described == "answer margin margin of {answer}"
    assert shuffled.startswith("shuffled embeddings ")


def test_the_glass_box_page_prints_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = python_blocks("glass-box.md")
    exec(compile(block, "glass-box.md", "exec"), {})
    plain, severed = (
        [float(number) for number in re.findall(r"\d\.\d+", line)] for line in capsys.readouterr().out.splitlines()
    )
    assert plain[:4] == [0.99] * 4
    assert [round(score, 1) for score in severed[:2]] == [0.4, 0.4]


@pytest.mark.nightly
def test_the_page_on_conversations_runs_on_the_real_chat_model() -> None:
    (block,) = python_blocks("conversations.md")
    names: dict[str, Any] = {}
    exec(compile(block, "conversations.md", "exec"), names)
    flow = names["flow"]
    assert flow.answer.strip() == "France"
    assert flow.total_effect > 0.05
    assert "".join(flow.input_tokens[slice(*flow.subject_range)]).strip() == "Eiffel Tower"


def test_commands_on_the_pages_have_the_options_that_they_use() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    used = re.findall(r"^causal-tracer (\w+)(.*)$", text_of("command-line.md"), re.MULTILINE)
    used += re.findall(r"^causal-tracer (reproduce)(.*)$", text_of("reproductions.md"), re.MULTILINE)
    assert {command for command, _ in used} == {"trace", "lens", "patch", "app", "study", "reproduce"}
    for name, words in used:
        command = commands[name].commands[words.split()[0]] if name == "reproduce" else commands[name]
        known = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for option in re.findall(r" (--[\w-]+)", words):
            assert option in known or name == "app", option


# The notebook --------------------------------------------------------------------------------------------------------


def notebook() -> Any:
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(ROOT / "examples" / "causal_tracing.ipynb", as_version=4)


def test_the_notebook_holds_no_outputs() -> None:
    cells = [cell for cell in notebook().cells if cell.cell_type == "code"]
    assert len(cells) >= 5
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.nightly
def test_the_notebook_runs_from_top_to_bottom() -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    read = notebook()
    client = nbclient.NotebookClient(read, timeout=600, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    shown = "".join(output.get("text", "") for cell in read.cells for output in cell.get("outputs", ()))
    assert "Seattle" in shown


@pytest.mark.slow
def test_the_page_of_the_reference_can_be_made_by_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import runpy; print(len(runpy.run_path('docs/make_api.py')['page']()))"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
