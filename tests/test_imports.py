"""`import causal_tracer` is light: heavy packages are imported at first use."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import causal_tracer


def _run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_imports_no_optional_or_drawing_library() -> None:
    code = "import causal_tracer, sys; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    imported = set(_run(code).split())
    assert not imported & {"gradio", "plotly", "kaleido", "pandas", "gguf", "matplotlib", "transformers"}


def test_importing_the_package_makes_no_model_class() -> None:
    code = (
        "import causal_tracer, sys;"
        "print(*[name for name in sys.modules if name.startswith('transformers.models.') and 'modeling_' in name])"
    )
    assert [name for name in _run(code).split() if not name.startswith("transformers.models.auto.")] == []


@pytest.mark.slow
def test_opening_a_saved_result_imports_no_engine_and_no_transformers() -> None:
    stored = Path(causal_tracer.__file__).parent / "web" / "stored" / "space_needle_hidden.json"
    code = f"from causal_tracer import HiddenFlow; HiddenFlow.load({str(stored)!r}); import sys; print(*sys.modules)"
    imported = _run(code).split()
    assert "transformers" not in imported
    parts = {name.split(".")[1] for name in imported if name.startswith("causal_tracer.")}
    assert not parts & {"model", "loading", "experiment", "sweep", "tracing", "tracer", "plots", "web", "cli", "study"}


def test_public_names_resolve() -> None:
    for name in causal_tracer.__all__:
        assert getattr(causal_tracer, name) is not None, name
    assert len(set(causal_tracer.__all__)) == len(causal_tracer.__all__)


@pytest.mark.parametrize(
    "name",
    [
        "CausalTracer",
        "HiddenFlow",
        "HiddenFlowQuery",
        "LayerConfig",
        "GPT2_LAYER_CONFIG",
        "LLAMA_LAYER_CONFIG",
        "LayerMatcher",
        "plot_hidden_flow_heatmap",
    ],
)
def test_names_of_version_one_are_there(name: str) -> None:
    assert name in causal_tracer.__all__
    assert hasattr(causal_tracer, name)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="GPTJ_LAYER_CONFIG"):
        _ = causal_tracer.GPTJ_LAYER_CONFIG


@pytest.mark.slow
def test_a_star_import_works() -> None:
    assert _run(
        "from causal_tracer import *; print(CausalTracer.__name__, plot_hidden_flow_heatmap.__name__)"
    ).split() == [
        "CausalTracer",
        "plot_hidden_flow_heatmap",
    ]
