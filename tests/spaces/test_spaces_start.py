"""Spaces as their builder makes them and as they start: slow, and in need of a package index."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cold_start import ROOT, make_environment, measure, running_space, stage_flavor, staged_requirements
from causal_tracer import HiddenFlow
from tests.support.tiny_models import build_tiny_model, tiny_tokenizer

pytestmark = pytest.mark.nightly


SHOW_STUDIES = "from causal_tracer.web.page.studies import StudyList; print(StudyList.of().show(0, 1, None)[3])"


def assert_nothing_of_ours_failed(home: Path) -> None:
    """No trace-back goes through the package; asyncio writes one of its own when Gradio drops an event loop."""
    assert "causal_tracer/" not in (home / "log.txt").read_text()


@pytest.mark.parametrize("flavor", ["cpu", "gpu"])
def test_requirements_resolve_with_what_the_builder_adds(flavor, tmp_path):
    stage_flavor(flavor, tmp_path / "staged")
    for arguments in staged_requirements(tmp_path / "staged"):
        report = tmp_path / "report.json"
        command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet"]
        done = subprocess.run(
            [*command, "--report", str(report), *arguments], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
    found = {
        item["metadata"]["name"].lower().replace("_", "-"): item["metadata"]["version"]
        for item in json.loads(report.read_text())["install"]
    }
    assert {"gradio", "spaces", "mcp", "huggingface-hub", "transformers", "torch"} <= found.keys()


def test_the_app_of_zero_gpu_traces_in_processes_of_their_own(tmp_path):
    staged, home, modules, model = (tmp_path / name for name in ("staged", "home", "modules", "tiny"))
    home.mkdir()
    modules.mkdir()
    (modules / "spaces.py").write_text("from tests.support.forking_gpu import ForkingGpu\n\nGPU = ForkingGpu()\n")
    build_tiny_model("gpt2").save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    stage_flavor("zero-gpu", staged)
    # SYSTEM would have Gradio look for parts of the real package that have nothing to do with GPUs.
    variables = {"PYTHONPATH": f"{modules}:{ROOT}", "CAUSAL_TRACER_MODELS": str(model), "SYSTEM": ""}
    with running_space(Path(sys.executable), staged, home, **variables) as space:
        _, result = measure(space, samples=2)
    flow = HiddenFlow.from_dict(result)
    assert flow.scores.isfinite().all()
    assert flow.settings.model == "tiny"
    assert_nothing_of_ours_failed(home)


def test_a_staged_space_starts_in_a_fresh_environment_and_traces(tmp_path):
    staged, home = tmp_path / "staged", tmp_path / "home"
    home.mkdir()
    stage_flavor("cpu", staged)
    python = make_environment(tmp_path / "environment", staged)
    with running_space(python, staged, home, CAUSAL_TRACER_MODELS="embedded") as space:
        figures, result = measure(space, samples=2)
    flow = HiddenFlow.from_dict(result)
    assert flow.scores.isfinite().all()
    assert flow.answer.strip() == "Paris"
    assert figures.page < figures.whole_map
    shown = subprocess.run(
        [python, "-c", SHOW_STUDIES], cwd=staged, capture_output=True, text=True, timeout=120, check=True
    ).stdout
    assert "<b>115 facts</b>" in shown
    assert_nothing_of_ours_failed(home)
