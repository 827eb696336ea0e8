"""`causal-tracer reproduce`: what it prints and writes, and with which exit status."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from causal_tracer import HiddenFlow
from causal_tracer.cli import main as cli
from causal_tracer.reproduce.published import FIGURE_1
from causal_tracer.request.sites import SPANS
from tests.support.reproductions import LAYERS, figure_tokenizer, random_gpt2
from tests.support.study_model import build_model, known_facts
from tests.support.tiny_models import tiny_tokenizer

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a reproduction; gives exit status, standard output and standard error."""

    def running(*words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        status = cli.main(["reproduce", *map(str, words)])
        return status, *capsys.readouterr()

    return running


def saved(folder: Path, model: Any, tokenizer: Any) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# Without a model ------------------------------------------------------------------------------------------------------


def test_dry_runs_state_the_experiment_and_load_nothing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("causal_tracer.cli.reproduce.load_tracer", lambda *_, **__: pytest.fail("a model was loaded"))
    status, out, _ = run("rome-figure-1", "--dry-run")
    assert status == 0
    assert "openai-community/gpt2-xl, float32" in out
    assert "0.1 * numpy.random.RandomState(1).randn(10, subject tokens, d_model)" in out
    assert "centre c: layers c-5 to c+4" in out
    assert "1008 cells" in out
    status, out, _ = run("rome-averages", "--dry-run", "--limit", 5)
    assert status == 0
    assert "5 of shipped (not ROME's known_1000.json)" in out
    assert "3 sd of the subjects' embeddings, 10 samples, one seed" in out
    status, out, _ = run("dissecting-recall", "--dry-run")
    assert status == 0
    assert "span knockout (window 9)" in out
    assert "noise    none" in out


def test_without_the_papers_weights_the_error_says_what_to_do(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    # A revision that no cache has.
    status, _, err = run("rome-figure-1", "--revision", "none")
    assert status == 1
    assert err.startswith("error: The config of 'openai-community/gpt2-xl' could not be loaded.")
    assert "give a local folder" in err


def test_wrong_options_are_refused_before_a_model_is_loaded(run: Run) -> None:
    assert run("rome-averages", "--facts", "nowhere.json")[0] == 2
    assert run("rome-figure-1", "--noise", "-1")[0] == 2
    assert run("rome-figure-2")[0] == 2


# Random models --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_random_weights_of_gpt2_xls_depth_fail_and_all_is_written(run: Run, tmp_path: Path) -> None:
    model = saved(tmp_path / "model", random_gpt2(LAYERS), figure_tokenizer())
    out = tmp_path / "figure"
    status, printed, _ = run("rome-figure-1", "--model", model, "--out", out, "--quiet")
    assert status == 1
    *table, line = printed.strip().splitlines()
    assert line.startswith("FAIL: ")
    assert "largest difference" in line
    assert sum(row.endswith(("pass", "FAIL")) for row in table) == len(FIGURE_1)
    verdict = json.loads((out / "verdict.json").read_text("utf-8"))
    assert verdict["verdict"] == "FAIL"
    assert len(verdict["checks"]) == len(FIGURE_1)
    assert all(check["source"] for check in verdict["checks"])
    flows = {kind: HiddenFlow.load(out / f"{kind}.json") for kind in ("hidden", "mlp", "attention")}
    assert {kind: made["noise"] for kind, made in verdict["made"].items()} == dict.fromkeys(flows, 0.1)
    assert {kind: flow.settings.window for kind, flow in flows.items()} == {"hidden": 1, "mlp": 10, "attention": 10}
    page = (out / "figure.html").read_text("utf-8")
    assert page.count("Plotly.newPlot(") == 3
    assert "FAIL: " in page
    assert "<td>replication</td>" in page


@pytest.mark.slow
def test_another_model_draws_the_figure_and_leaves_with_zero(run: Run, tmp_path: Path) -> None:
    model = saved(tmp_path / "random-gpt2", random_gpt2(2), figure_tokenizer())
    status, printed, _ = run("rome-figure-1", "--model", model, "--noise", 0.3)
    assert status == 0
    assert printed.count("P(Seattle), random-gpt2") == 3
    last = printed.strip().splitlines()[-1]
    assert last.startswith(
        "no verdict: the published numbers are those of GPT-2 XL (GPT2LMHeadModel, 48 layers), and random-"
    )
    assert "the noise level is 0.3" in last


@pytest.mark.slow
def test_studies_of_other_facts_have_no_verdict_and_continue(run: Run, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    model = saved(tmp_path / "tiny", build_model(), tiny_tokenizer(bos=True))
    facts = tmp_path / "facts.json"
    facts.write_text(json.dumps([asdict(fact) for fact in known_facts()]), encoding="utf-8")
    given = ("--model", model, "--facts", facts, "--limit", 2, "--quiet")
    recall, averages = tmp_path / "recall", tmp_path / "averages"
    for _ in range(2):  # the second time from what is there
        status, printed, _ = run("dissecting-recall", *given, "--out", recall)
        assert status == 0
        assert "other tokens lowest before subject" in printed
        assert printed.strip().splitlines()[-1].startswith("no verdict: ")
    assert set(json.loads((recall / "means.json").read_text("utf-8"))) == set(SPANS)
    assert (recall / "figure.html").read_text("utf-8").count("Plotly.newPlot(") == 1
    status, printed, _ = run("rome-averages", *given, "--samples", 2, "--out", averages)
    assert status == 0
    assert "the facts are facts.json, and the paper's are ROME's known_1000.json" in printed
    assert "each fact has 2 noise samples, and 10 in the paper" in printed
    means = json.loads((averages / "means.json").read_text("utf-8"))
    assert set(means) == {"hidden", "mlp", "attention"}
    assert len(means["mlp"]["mean"]) == len(means["mlp"]["rows"]) == 6
    assert (averages / "figure.html").read_text("utf-8").count("Plotly.newPlot(") == 6
    assert json.loads((averages / "verdict.json").read_text("utf-8"))["verdict"] == "no verdict"
