"""The README is true: its example runs, its lists of packages agree, and code for 1.1.0 still works."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
import torch
from packaging.requirements import Requirement
from transformers import AutoModelForCausalLM, AutoTokenizer

from causal_tracer import CausalTracer, HiddenFlowQuery, LayerConfig, plot_hidden_flow_heatmap
from causal_tracer.loading.embedded import embedded_model_folder
from tests.support.tiny_models import PROMPT, SUBJECT, tiny_model, tiny_tokenizer

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
NEEDLE = ("The Space Needle is located in the city of", "The Space Needle")


def block_after(marker: str) -> str:
    """The code block that follows a marker in the README."""
    found = re.search(rf"<!-- {marker} -->\n```\w+\n(.*?)```", README, re.DOTALL)
    assert found, f"the README has no block marked {marker!r}"
    return found[1]


def requirements(path: str) -> dict[str, Requirement]:
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    parsed = [Requirement(line) for line in lines if line and not line.startswith(("#", "-r"))]
    return {requirement.name.lower().replace("_", "-"): requirement for requirement in parsed}


@pytest.mark.model
def test_python_example_prints_what_the_readme_says_and_writes_its_figure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    shown: list[go.Figure] = []
    monkeypatch.setattr(go.Figure, "show", lambda self, *args, **kwargs: shown.append(self))
    monkeypatch.chdir(tmp_path)
    exec(compile(block_after("example"), "README.md", "exec"), {})
    assert len(shown) == 1
    assert (tmp_path / "map.html").exists()
    said = re.search(r"```text\n(.*?)```", README, re.DOTALL)
    assert said
    assert capsys.readouterr().out == said[1]


def test_the_readme_is_short_and_its_example_is_ten_lines() -> None:
    assert README.count("\n") < 150
    assert len([line for line in block_after("example").splitlines() if line]) <= 10


def test_commands_are_the_ones_that_ci_runs() -> None:
    assert "python app.py" in block_after("command: app")
    assert "python -m pytest" in block_after("command: test")
    assert "readme_command test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_requirements_equal_those_of_the_package_with_its_app() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    wanted = [*project["dependencies"], *extras["embedded"], *(r for r in extras["app"] if "causal-tracer" not in r)]
    names = {(r := Requirement(line)).name.lower().replace("_", "-"): str(r.specifier) for line in wanted}
    assert {name: str(r.specifier) for name, r in requirements("requirements.txt").items()} == names


def test_constraints_pin_what_is_required_and_within_its_range() -> None:
    pins = requirements("constraints.txt")
    for name, requirement in (requirements("requirements.txt") | requirements("requirements-dev.txt")).items():
        pin = str(pins[name].specifier)
        assert pin.startswith("=="), name
        assert requirement.specifier.contains(pin.removeprefix("=="), prereleases=True), name
    assert str(pins["torch"].specifier) == "==2.13.0"


@pytest.fixture(scope="module")
def gemma() -> tuple[Any, Any]:
    folder = embedded_model_folder("embedded")
    return AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_model_loaded_by_hand_is_traced_and_drawn(gemma: tuple[Any, Any]) -> None:
    flow = CausalTracer(*gemma).calculate_hidden_flow(NEEDLE[0], subject=NEEDLE[1], samples=2)
    figure = plot_hidden_flow_heatmap(flow, show=False)
    assert flow.answer == " Seattle"
    assert len(figure.data[0].z) == len(flow.input_tokens)


@pytest.mark.parametrize("kind", ["mlp", "attention"])
def test_mlp_and_attention_are_traced_with_a_window(gemma: tuple[Any, Any], kind: Any) -> None:
    flow = CausalTracer(*gemma).calculate_hidden_flow(NEEDLE[0], subject=NEEDLE[1], kind=kind, window=10, samples=1)
    assert flow.kind == kind
    assert flow.scores.shape == (len(flow.input_tokens), 18)


def test_samples_batch_size_layers_and_subject_only(gemma: tuple[Any, Any]) -> None:
    flow = CausalTracer(*gemma).calculate_hidden_flow(
        NEEDLE[0],
        subject=NEEDLE[1],
        samples=5,
        batch_size=8,
        start_layer=10,
        end_layer=15,
        patch_subject_tokens_only=True,
    )
    start, end = flow.subject_range
    assert not flow.scores[start:end, 10:15].isnan().any()
    assert int((~flow.scores.isnan()).sum()) == (end - start) * 5


def test_layer_config_relative_to_the_base_model_and_fields_of_a_result() -> None:
    config = LayerConfig(
        hidden_layers_matcher="h.{num}",
        attention_layers_matcher="h.{num}.attn",
        mlp_layers_matcher="h.{num}.mlp",
        embedding_layer="wte",
    )
    tracer = CausalTracer(tiny_model("gpt2"), tiny_tokenizer(), layer_config=config)
    flows = tracer.calculate_hidden_flows([PROMPT, HiddenFlowQuery(PROMPT, SUBJECT, override_answer_id=7)], samples=2)
    assert [flow.subject_guessed for flow in flows] == [True, False]
    assert flows[1].answer_id == 7
    assert list(flows[0].layer_outputs) == [f"transformer.h.{n}" for n in range(3)]
    assert all(isinstance(value, torch.Tensor) for value in flows[0].layer_outputs.values())
