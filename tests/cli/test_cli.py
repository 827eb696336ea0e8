"""The command line: what it prints and writes, where, and with which exit status."""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from causal_tracer import (
    CausalTracer,
    HiddenFlow,
    LogitLens,
    MapSpec,
    OtherPrompt,
    PatchedRun,
    RunOptions,
    TraceRequest,
    __version__,
)
from causal_tracer.cli import main as cli
from causal_tracer.cli import progress as cli_progress
from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.errors import ModelLoadError, NumericsError, SettingsError, SubjectError, TraceCancelled
from causal_tracer.metrics.metric import METRICS
from causal_tracer.results.analysis import COLUMNS
from causal_tracer.results.labels import display_token
from tests.support.chat_templates import PLAIN
from tests.support.tiny_models import PROMPT, SUBJECT, tiny_model, tiny_tokenizer

ASKED = ["trace", PROMPT, "--subject", SUBJECT, "--samples", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny chat model on disk."""
    path = tmp_path_factory.mktemp("models") / "tiny-gpt2"
    tiny_model("gpt2").save_pretrained(path)
    tokenizer = tiny_tokenizer(bos=True)
    tokenizer.save_pretrained(path)
    (path / "chat_template.jinja").write_text(PLAIN, encoding="utf-8")
    return path


@pytest.fixture
def run(folder: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Runs a command line on the tiny model; gives exit status, standard output and standard error."""

    def running(*words: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        named = [*map(str, words), *(["--model", str(folder)] if words[0] in ("trace", "lens", "patch") else [])]
        status = cli.main(named)
        out, err = capsys.readouterr()
        return status, out, err

    return running


def expected(folder: Path, **changes: Any) -> dict[str, HiddenFlow]:
    specs = changes.pop("specs", {"hidden": MapSpec("hidden", 1)})
    request = TraceRequest(PROMPT, SUBJECT, **{"samples": 2, **changes})
    return CausalTracer.from_pretrained(str(folder)).trace_maps(request, specs)


# Results --------------------------------------------------------------------------------------------------------------


def test_a_trace_prints_the_answer_the_map_and_its_peaks(run: Any, folder: Path) -> None:
    status, out, _ = run(*ASKED)
    assert status == 0
    flow = expected(folder)["hidden"]
    peak = flow.peaks(1)[0]
    assert f"Restoring hidden states: P({flow.answer}), tiny-gpt2" in out
    assert f"clean {flow.high_score:.4g}, corrupted {flow.low_score:.4g}" in out
    assert "Gaussian noise, 2 samples, 1 layer restored together" in out
    assert f"layer  {peak.layer} at {peak.token!r} ({flow.roles[peak.position]})" in out
    lines = out.splitlines()
    first, last = (next(i for i, line in enumerate(lines) if word in line) for word in ("Space*", "layer 0"))
    assert 0 < last - first < len(flow.input_tokens)
    assert str(folder.parent) not in out


def test_json_on_request_on_standard_output_is_the_result_and_nothing_else(run: Any, folder: Path) -> None:
    status, out, _ = run(*ASKED, "--json", "-")
    assert status == 0
    (line,) = out.splitlines()
    flow = HiddenFlow.from_dict(json.loads(line))
    assert torch.equal(flow.sample_scores, expected(folder)["hidden"].sample_scores)


def test_files_are_written_one_line_or_row_for_each_map_and_cell(run: Any, folder: Path, tmp_path: Path) -> None:
    places = {name: tmp_path / "new" / f"maps.{name}" for name in ("jsonl", "csv", "html")}
    status, out, _ = run(
        *ASKED, "-k", "mlp", "-k", "attention", "--window", 2,
        "--json", places["jsonl"], "--csv", places["csv"], "--html", places["html"], "--quiet",
    )  # fmt: skip
    assert (status, out) == (0, "")
    flows = expected(folder, specs={kind: MapSpec(kind, 2) for kind in ("mlp", "attention")})  # type: ignore[arg-type]
    loaded = [HiddenFlow.from_dict(json.loads(line)) for line in places["jsonl"].read_text("utf-8").splitlines()]
    assert [flow.kind for flow in loaded] == ["mlp", "attention"]
    assert all(torch.equal(flow.scores, flows[flow.kind].scores) for flow in loaded)
    with places["csv"].open(encoding="utf-8", newline="") as file:
        table = list(csv.DictReader(file))
    assert list(table[0]) == ["map", *COLUMNS]
    tokens, layers = flows["mlp"].scores.shape
    assert len(table) == 2 * tokens * layers
    for row in table:
        cell = flows[row["map"]].scores[int(row["position"]), int(row["layer"])]
        assert float(row["score"]) == pytest.approx(float(cell), abs=1e-7)
    page = places["html"].read_text("utf-8")
    assert page.count("Plotly.newPlot(") == 2
    assert page.count("<script src=") == 0
    assert "cdn.plot.ly" not in page.split("Plotly.newPlot(")[1]


def test_knockouts_are_made_in_the_clean_run(run: Any, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "knockout.html"
    status, out, _ = run(*ASKED, "-k", "knockout", "--window", 2, "--token", -3, "--html", page)
    assert status == 0
    changes = {"direction": "corrupt", "corruption": "none"}
    flow = expected(folder, specs={"knockout": MapSpec("knockout", 2, token=-3)}, **changes)["knockout"]
    peak = flow.peaks(1)[0]
    token = flow.input_tokens[flow.settings.at_tokens[0]].strip()
    assert f"Blocking attention from {token!r} to each token, windows of 2 layers: P({flow.answer})" in out
    assert f"clean {flow.high_score:.4g} (2 layers blocked together)" in out
    assert f"layer {peak.layer:>2} at {peak.token!r} ({flow.roles[peak.position]})" in out
    assert "█" in out
    status, out, _ = run(*ASKED, "-k", "span_knockout", "--csv", "-")
    assert status == 0
    assert {row["span"] for row in csv.DictReader(out.splitlines())} == {"subject", "other tokens", "itself"}
    # Beside a map of restorations the direction has to be given.
    status, _, err = run(*ASKED, "-k", "hidden", "-k", "knockout")
    assert status == 2
    assert "direction='corrupt'" in err
    assert run(*ASKED, "-k", "hidden", "-k", "knockout", "--direction", "corrupt")[0] == 0


def test_heads_are_traced_at_a_token(run: Any, folder: Path, tmp_path: Path) -> None:
    page = tmp_path / "heads.html"
    status, out, _ = run(*ASKED, "-k", "head", "-k", "hidden", "--token", -3, "--html", page)
    assert status == 0
    flow = expected(folder, specs={"head": MapSpec("head", token=-3)})["head"]
    peak = flow.peaks(1)[0]
    assert f"Restoring single attention heads at {peak.token.strip()!r}" in out
    assert f"layer {peak.layer:>2} at head {peak.head}: " in out
    assert page.read_text("utf-8").count("Plotly.newPlot(") == 2
    status, out, _ = run(*ASKED, "-k", "head", "--csv", "-")
    table = list(csv.DictReader(out.splitlines()))
    heads, layers = flow.scores.shape
    assert [row["head"] for row in table] == [str(head) for head in range(heads) for _ in range(layers)]
    status, _, err = run(*ASKED, "--token", 3)
    assert (status, "Add --kind head" in err) == (2, True)


def test_cells_that_were_not_computed_are_empty_in_the_table(run: Any) -> None:
    status, out, _ = run(*ASKED, "--csv", "-", "--start-layer", 1, "--end-layer", 2, "--subject-tokens-only")
    assert status == 0
    table = list(csv.DictReader(out.splitlines()))
    assert {row["layer"] for row in table if row["score"]} == {"1"}
    assert {row["role"] for row in table if row["score"]} == {"first subject", "last subject"}


def test_a_picture_of_each_map_gets_its_name(run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import causal_tracer.plots.saving

    written: list[str] = []
    monkeypatch.setattr(causal_tracer.plots.saving, "save_figure", lambda figure, path: written.append(Path(path).name))
    assert run(*ASKED, "-q", "--image", tmp_path / "map.png")[0] == 0
    assert run(*ASKED, "-q", "-k", "mlp", "-k", "hidden", "--image", tmp_path / "map.svg")[0] == 0
    assert written == ["map.png", "map-mlp.svg", "map-hidden.svg"]


def test_options_reach_the_trace(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[TraceRequest, dict[str, MapSpec], RunOptions]] = []
    trace_maps = CausalTracer.trace_maps

    def noted(self: CausalTracer, request: TraceRequest, specs: Any, options: Any, **rest: Any) -> Any:
        seen.append((request, dict(specs), options))
        return trace_maps(self, request, specs, options, **rest)

    monkeypatch.setattr(CausalTracer, "trace_maps", noted)
    status, _, err = run(
        "trace", PROMPT, "-s", SUBJECT, "--samples", 3, "--seed", 9, "--noise", 0.5, "--corruption", "uniform",
        "--metric", "logit difference", "--answer", "the city", "--foil", "Jobs", "--batch-size", 5, "--top-tokens", 2,
        "--engine", "full", "--occurrence", "first", "--severed", "mlp", "--placebo", "the city of France is",
        "--placebo-subject", "France", "-k", "attention", "-q", "--start-layer", 1, "--end-layer", 3,
    )  # fmt: skip
    assert (status, err) == (0, "")
    request, specs, options = seen[0]
    assert (request.samples, request.seed, request.noise, request.top_tokens) == (3, 9, "0.5", 2)
    assert options == RunOptions(batch_size=5, engine="full")
    assert (request.corruption, request.metric, request.answer, request.foil) == (
        "uniform",
        "logit difference",
        "the city",
        "Jobs",
    )
    assert request.occurrence == "first"
    assert request.placebo is not None
    assert request.placebo.subject == "France"
    assert specs == {
        "attention": MapSpec("attention", 10, 1, 3),
        "hidden-severed-mlp": MapSpec("hidden", 1, 1, 3, severed="mlp"),
        "attention-placebo": MapSpec("attention", 10, 1, 3, source="placebo"),
    }
    assert run(*ASKED, "-q", "--counterfactual", "Steve Jobs", "--direction", "corrupt")[0] == 0
    assert seen[1][0].corruption.subjects == ("Steve Jobs",)  # type: ignore[union-attr]
    assert seen[1][0].direction == "corrupt"


def test_a_second_prompt_takes_the_place_of_noise(run: Any) -> None:
    second = ("--second-prompt", PROMPT.replace(SUBJECT, "Steve Jobs"), "--second-subject", "Steve Jobs")
    status, out, _ = run(
        "trace", PROMPT, "-s", SUBJECT, *second, "--align", "spans", "--metric", "logit", "--json", "-"
    )
    assert status == 0
    flow = HiddenFlow.from_dict(json.loads(out))
    assert flow.settings.second == second[1]
    assert flow.stored_request().request.second == OtherPrompt(second[1], "Steve Jobs", align="spans")
    assert len(flow.low_sample_scores) == 1
    status, out, _ = run("trace", PROMPT, "-s", SUBJECT, *second, "--metric", "logit")
    assert (status, "second prompt" in out) == (0, True)


@pytest.mark.parametrize("more", [("zero",), ("mean", "--mean-over", "the city of France", "--mean-over", "the city")])
def test_ablations_are_made_in_the_clean_run(run: Any, more: tuple[str, ...]) -> None:
    status, out, _ = run("trace", PROMPT, "-s", SUBJECT, "-k", "mlp", "--json", "-", "--ablate", *more)
    assert status == 0
    flow = HiddenFlow.from_dict(json.loads(out))
    assert flow.settings.ablation == ("zero" if more == ("zero",) else "mean over 2 prompts")
    assert flow.low_score == pytest.approx(flow.high_score)
    status, _, err = run("trace", PROMPT, "-s", SUBJECT, "--ablate", *more, "--direction", "restore")
    assert (status, "in the clean run" in err) == (2, True)
    status, _, err = run("trace", PROMPT, "--ablate", "zero", "--severed", "mlp")
    assert (status, "--ablate cannot be combined" in err) == (2, True)


@pytest.mark.parametrize("kinds", [("knockout", "mlp"), ("mlp", "knockout")])
def test_knockouts_beside_other_kinds_need_a_direction(run: Any, kinds: tuple[str, str]) -> None:
    asked = ("trace", PROMPT, "-s", SUBJECT, "--samples", 2, *(word for kind in kinds for word in ("-k", kind)))
    status, _, err = run(*asked)
    assert (status, "blocks attention in the clean run" in err) == (2, True)
    status, out, _ = run(*asked, "--direction", "corrupt", "--json", "-")
    assert status == 0
    flows = [HiddenFlow.from_dict(json.loads(line)) for line in out.splitlines()]
    assert all(float((flow.scores - flow.high_score).abs().max()) > 1e-4 for flow in flows)


def test_noise_is_a_number_or_times_sigma(run: Any, folder: Path) -> None:
    status, out, _ = run(*ASKED, "--noise", "2 sigma", "--json", "-")
    assert status == 0
    found = HiddenFlow.from_dict(json.loads(out)).settings.noise
    assert found == pytest.approx(CausalTracer.from_pretrained(str(folder)).noise * 2 / 3)
    status, _, err = run(*ASKED, "--noise", "much")
    assert (status, "'much'" in err) == (2, True)


def test_a_conversation_is_traced_where_the_assistant_goes_on(run: Any) -> None:
    status, out, _ = run(
        "trace", PROMPT, "-s", SUBJECT, "--samples", 2, "--chat", "--system", "In France",
        "--assistant-prefix", "It is", "--json", "-",
    )  # fmt: skip
    assert status == 0
    flow = HiddenFlow.from_dict(json.loads(out))
    assert flow.prompt == f"<bos>[system]\nIn France[end]\n[user]\n{PROMPT}[end]\n[assistant]\nIt is"
    assert "".join(flow.input_tokens[slice(*flow.subject_range)]).strip() == SUBJECT
    status, _, err = run(*ASKED, "--assistant-prefix", "It is")
    assert (status, "--chat" in err) == (2, True)


# Exit status ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--no-such-option"], "no-such-option"),
        (["--samples", "0"], "--samples"),
        (["--engine", "fast"], "fast"),
        (["-k", "foo"], "'foo'"),
        (["--metric", "foo"], "'foo'"),
        (["--corruption", "foo"], "'foo'"),
        (["--end-layer", "99"], "end_layer=99"),
        (["--json", "-", "--csv", "-"], "--json and --csv"),
        (["--html", "map.png"], "must end in .html"),
        (["--image", "map.gif"], ".svg"),
        (["--json", "."], "is a folder"),
        (["--thinking"], "--chat"),
        (["--chat", "--thinking"], "no such switch"),
    ],
)
def test_what_the_user_can_mend_is_status_2(run: Any, words: list[str], said: str) -> None:
    status, out, err = run(*ASKED, *words)
    assert (status, out) == (2, "")
    assert said in err
    assert "Traceback" not in err


def test_without_kaleido_an_image_is_refused_before_anything_is_traced(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("causal_tracer.plots.saving.find_spec", lambda name: None)
    status, out, err = run(*ASKED, "--image", tmp_path / "map.png")
    assert (status, out) == (1, "")
    assert "pip install kaleido" in err
    assert "restored" not in err


def test_a_subject_that_is_not_there_is_status_2_and_one_line(run: Any) -> None:
    status, out, err = run("trace", PROMPT, "--subject", "Eiffel Tower", "-q")
    assert (status, out) == (2, "")
    assert err.startswith("error: The subject 'Eiffel Tower'")
    assert len(err.splitlines()) == 1


def test_a_model_that_is_not_there_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["trace", PROMPT, "--model", "no such model"]) == 1
    assert "'no such model'" in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_status_1(run: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    status, _, err = run(*ASKED, "-q", "--json", tmp_path / "file" / "map.json")
    assert (status, err.startswith("error: The results could not be written")) == (1, True)


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (SettingsError("no"), 2),
        (SubjectError("no"), 2),
        (ModelLoadError("no"), 1),
        (NumericsError("no"), 1),
        (TraceCancelled("no"), 130),
        (KeyboardInterrupt(), 130),
    ],
)
def test_each_error_has_its_status(
    run: Any, monkeypatch: pytest.MonkeyPatch, error: BaseException, status: int
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise error

    monkeypatch.setattr(CausalTracer, "trace_maps", fail)
    found, out, err = run(*ASKED, "-q")
    assert (found, out) == (status, "")
    assert err == ("Interrupted.\n" if status == 130 else "error: no\n")


def test_a_fault_of_ours_is_not_dressed_up(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(CausalTracer, "trace_maps", fail)
    with pytest.raises(ZeroDivisionError):
        run(*ASKED)


# Patching -------------------------------------------------------------------------------------------------------------


def test_a_patched_run_is_printed_and_written(run: Any, folder: Path, tmp_path: Path) -> None:
    base = PROMPT.replace(SUBJECT, "Steve Jobs")
    places = {name: tmp_path / f"run.{name}" for name in ("json", "csv", "html")}
    words = [word for name, path in places.items() for word in (f"--{name}", path)]
    asked = ("patch", PROMPT, base, "--pair", "5,1:-3,1", "--pair", "-1,0:-1,0", "-k", "mlp", "--answer", " Rome")
    assert run(*asked, "--quiet", *words) == (0, "", "")
    pairs = (((5, 1), (-3, 1)), ((-1, 0), (-1, 0)))
    expected = CausalTracer.from_pretrained(str(folder)).patch(PROMPT, base, pairs, "mlp", answers=[" Rome"])
    assert PatchedRun.load(places["json"]).to_dict() == expected.to_dict()
    assert places["csv"].read_bytes().decode() == expected.lens.to_csv()
    status, out, _ = run(*asked)
    assert status == 0
    assert out.startswith(repr(expected))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--pair", "1,2"), "TOKEN,LAYER"),
        (("--pair", "1,x:2,2"), "TOKEN,LAYER"),
        (("--pair", "99,0:0,0"), "out of range"),
        (("--pair", "1,0:1,0", "-k", "knockout"), "knockout"),
        ((), "--pair"),
    ],
)
def test_what_cannot_be_patched_is_refused(run: Any, words: tuple[str, ...], message: str) -> None:
    status, _, err = run("patch", PROMPT, PROMPT, *words)
    assert status == 2
    assert message in err


# The lens ------------------------------------------------------------------------------------------------------------


def test_a_lens_prints_the_top_token_of_each_layer_at_the_last_token(run: Any, folder: Path) -> None:
    status, out, _ = run("lens", PROMPT, "--answer", " Rome")
    assert status == 0
    lens = CausalTracer.from_pretrained(str(folder)).lens(PROMPT, " Rome")
    header, *table = out.splitlines()[-4:]
    assert "P(Rome)" in header
    for layer, line in enumerate(table):
        best = lens.top(-1, layer)[0]
        number, token, probability, answer, rank, entropy = line.split()
        assert (int(number), token) == (layer, display_token(best.text))
        assert float(probability) == pytest.approx(best.probability, rel=1e-3)
        assert float(answer) == pytest.approx(float(lens.answer_probabilities[-1, layer]), rel=1e-3)
        assert int(rank) == int(lens.answer_ranks[-1, layer])
        assert float(entropy) == pytest.approx(float(lens.entropies[-1, layer]), abs=0.01)


def test_a_lens_is_written_as_json_csv_and_a_page(run: Any, folder: Path, tmp_path: Path) -> None:
    places = {name: tmp_path / f"lens.{name}" for name in ("json", "csv", "html")}
    words = [word for name, place in places.items() for word in (f"--{name}", place)]
    assert run("lens", PROMPT, "--top", 2, "--quiet", *words) == (0, "", "")
    lens = CausalTracer.from_pretrained(str(folder)).lens(PROMPT, top=2)
    assert LogitLens.load(places["json"]).to_dict() == lens.to_dict()
    assert places["csv"].read_bytes().decode() == lens.to_csv()
    assert places["html"].read_text("utf-8").count("Plotly.newPlot(") == 1
    assert LogitLens.from_dict(json.loads(run("lens", PROMPT, "--json", "-")[1])).run == "clean run"


def test_a_lens_of_a_conversation_and_what_does_not_fit(run: Any) -> None:
    assert run("lens", "the Space Needle", "--chat")[0] == 0
    status, _, err = run("lens", PROMPT, "--system", "x")
    assert status == 2
    assert "Add --chat" in err
    assert run("lens", PROMPT, "--top", 0)[0] == 2


# Help and progress ----------------------------------------------------------------------------------------------------


def test_help_names_every_command_and_version_is_the_packages(run: Any, capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = run("--help")
    assert status == 0
    assert all(f" {name} " in out for name in ("trace", "lens", "app", "study"))
    assert run("--version") == (0, f"{__version__}\n", "")
    assert run("-h")[1] == out
    assert "--subject" in run("trace", "--help")[1]
    assert run("study", "--help")[0] == 0


def test_help_names_the_metrics_and_corruptions_that_a_shell_can_give(run: Any) -> None:
    out = " ".join(run("trace", "--help")[1].replace("│", " ").split())
    assert ", ".join(METRICS) in out
    assert ", ".join(CORRUPTIONS) in out
    assert "Target" not in out


def test_the_apps_options_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from causal_tracer.web import launch

    given: list[list[str]] = []
    monkeypatch.setattr(launch, "main", lambda words: given.append(words) or 1)
    assert cli.main(["app", "--port", "7999", "--model", "embedded", "--help"]) == 1
    assert given == [["--port", "7999", "--model", "embedded", "--help"]]


def test_an_app_without_gradio_is_status_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert cli.main(["app"]) == 1
    assert "pip install 'gradio>=6.31,<7'" in capsys.readouterr().err


def test_progress_goes_to_a_log_where_there_is_no_terminal(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([100.0, 105.0, 112.0, 113.0])
    monkeypatch.setattr(cli_progress.time, "monotonic", lambda: next(clock))
    with caplog.at_level(logging.INFO), cli_progress.progress_reporter("runs") as report:
        for done in (0, 5, 12, 20):
            report(done, 20)
    assert [record.message for record in caplog.records] == [
        "0 of 20 runs are done.",
        "12 of 20 runs are done.",
        "20 of 20 runs are done.",
    ]
    caplog.clear()
    with caplog.at_level(logging.INFO), cli_progress.progress_reporter("runs", quiet=True) as report:
        report(1, 1)
    assert not caplog.records


def test_progress_is_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with cli_progress.progress_reporter("runs") as report:
        report(0, 4)
        report(4, 4)
    assert "runs:   0%" in capsys.readouterr().err
