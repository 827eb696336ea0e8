"""A study's settings hold the request's records: what they may be, how they are kept, and that each has its effect."""

from __future__ import annotations

import inspect
import json
from dataclasses import asdict, fields, replace

import numpy as np
import pytest

from causal_tracer.cli import study as command
from causal_tracer.cli.main import main
from causal_tracer.corruption import ZeroEmbedding
from causal_tracer.errors import SettingsError, StudyError
from causal_tracer.request.record import from_data, to_data
from causal_tracer.request.records import MapSpec, OtherPrompt, RunOptions, SamplesUntil, TraceRequest
from causal_tracer.study.cost import fact_work
from causal_tracer.study.facts import facts_digest
from causal_tracer.study.figures import comparison_figures, study_figures, title_and_caption
from causal_tracer.study.report import findings_html
from causal_tracer.study.runner import run_study
from causal_tracer.study.settings import FACT_FIELDS, StudySettings, study_maps
from causal_tracer.study.store import read_records
from causal_tracer.study.stored import StoredStudy
from tests.support.study_model import NOISE, known_facts, tracer

pytestmark = pytest.mark.slow

pytest.importorskip("pyarrow")
FACTS = known_facts()
SETTINGS = StudySettings("tiny", "here", facts_digest(FACTS), TraceRequest("", noise=NOISE, samples=2), audit_share=0)


def asking(maps=None, **changes):
    """The settings with another request, and perhaps other maps."""
    return replace(SETTINGS, request=replace(SETTINGS.request, **changes), maps=maps or SETTINGS.maps)


@pytest.fixture
def invoke(tmp_path, monkeypatch):
    """Runs the command line on the tiny model; returns the study."""
    monkeypatch.setattr(command, "_context", lambda *_: tracer().context)
    path = tmp_path / "facts.json"
    path.write_text(json.dumps([asdict(fact) for fact in FACTS]))

    def call(*options):
        out = tmp_path / "out"
        given = ["--facts", str(path), "--out", str(out), "--model", "tiny", "--no-report", "--samples", "2"]
        assert main(["study", *given, *options]) == 0
        return StoredStudy.open(out)

    return call


def test_they_come_back_from_json() -> None:
    settings = asking(study_maps(window=3, placebo=False), noise="2 sigma", direction="corrupt")
    assert from_data(StudySettings, json.loads(json.dumps(to_data(settings)))) == settings


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"request": TraceRequest("", foil="Rome")}, "foil='Rome' cannot be set for a study"),
        ({"request": TraceRequest("", answer_id=3)}, "answer_id=3 cannot be set for a study"),
        ({"request": TraceRequest("", metric="logit difference")}, "needs a foil"),
        ({"request": TraceRequest("", corruption="zero"), "pairs": True}, "has no corruption"),
        ({"maps": {"mlp": MapSpec("mlp", source="zero")}}, "made in the clean run"),
        ({"request": TraceRequest("", corruption=ZeroEmbedding())}, "corruption="),
        ({"request": TraceRequest("", metric=lambda _target: None)}, "metric="),
        ({"request": TraceRequest("", samples=SamplesUntil(0.1))}, "samples must be"),
        ({"request": TraceRequest("", direction="corrupt")}, "A placebo is restored"),
        ({"maps": {}}, "at least one map"),
        ({"maps": {"mlp": MapSpec("mlp", positions=(0,))}}, "have different tokens"),
        ({"audit_share": 2}, "audit_share"),
        ({"seed_rule": "none"}, "seed_rule='none'"),
    ],
)
def test_what_cannot_be_asked_of_all_facts_is_refused(change, words) -> None:
    with pytest.raises(SettingsError, match=words):
        replace(SETTINGS, **change)


def test_each_field_of_the_records_is_an_option_of_the_command() -> None:
    options = inspect.signature(command.study).parameters.keys()
    for record in (TraceRequest, MapSpec, RunOptions):
        left_out = {*FACT_FIELDS, "source", "positions", "token", "mean_over"}
        assert {item.name for item in fields(record)} - left_out <= options
    assert not options & (set(FACT_FIELDS) - {"placebo"})


def test_options_of_the_records_reach_the_trace(invoke) -> None:
    study = invoke(
        *("--limit", "1", "--corruption", "zero", "--metric", "logit", "--occurrence", "first", "--start-layer", "1"),
        *("--kind", "mlp", "--window", "2", "--no-placebo", "--engine", "full", "--batch-size", "3", "--seed", "4"),
    )
    spec = MapSpec("mlp", window=2, start_layer=1)
    assert study.settings.request == TraceRequest(
        "", corruption="zero", metric="logit", occurrence="first", samples=2, seed=4
    )
    assert study.settings.maps == {"mlp": spec}
    assert study.settings.options == RunOptions(batch_size=3, engine="full")
    (record,) = study.records
    assert record.engine == "full"
    assert record.batch_size == 3
    (result,) = record.maps
    assert np.isnan(result.scores[:, 0]).all()
    assert not np.isnan(result.scores[:, 1:]).any()
    # A corruption without chance has one sample.
    assert study.settings.samples == 1
    assert "1 noise sample each" in findings_html(study)


def test_pairs_on_the_command_line_are_read_by_the_logit_difference(invoke) -> None:
    study = invoke("--limit", "3", "--kind", "mlp", "--window", "2", "--no-placebo", "--pairs")
    assert study.settings.pairs
    words = findings_html(study)
    assert "each compared with another subject of its relation" in words
    assert "with the other subject in its place" in words
    assert "noise" not in words
    assert "corrupted" not in words
    assert study.settings.request.metric == "logit difference"
    traced = [record for record in study.records if record.status == "traced"]
    assert traced
    for record in traced:
        (partner,) = {
            fact for fact in FACTS if fact.subject == record.partner and fact.relation == record.fact.relation
        }
        assert partner.attribute != record.fact.attribute
        request = TraceRequest(
            record.fact.prompt,
            record.fact.subject,
            answer=record.fact.attribute,
            second=OtherPrompt(record.fact.prompt.replace(record.fact.subject, partner.subject), partner.subject),
        )
        flow = tracer().trace(request, spec=study.settings.maps["mlp"])
        (result,) = record.maps
        np.testing.assert_allclose(result.scores, flow.scores.numpy(), atol=1e-4)
        assert record.low == pytest.approx(flow.low_score, abs=1e-4)
    assert study.settings.samples == 1


def test_attributes_are_read_in_the_form_that_is_asked_for(tmp_path) -> None:
    # The model's answers have a space before them.
    exact = run_study(tmp_path / "study", asking(answer_form="exact"), FACTS[:2], lambda: tracer().context)
    assert exact.counts == {"unknown": 2}


def test_the_cost_counts_the_cells_that_are_asked_for() -> None:
    context, fact = tracer().context, FACTS[0]
    maps = {"mlp": MapSpec("mlp", window=1)}
    whole = fact_work(context, replace(SETTINGS, maps=maps), fact)
    later = fact_work(context, replace(SETTINGS, maps={"mlp": replace(maps["mlp"], start_layer=1)}), fact)
    subject = fact_work(context, replace(SETTINGS, maps={"mlp": replace(maps["mlp"], subject_tokens_only=True)}), fact)
    assert later.cells == whole.cells * 2 // 3
    assert 0 < subject.cells < whole.cells
    once = fact_work(context, asking(maps, corruption="mean"), fact)
    assert once.rows * 2 == whole.rows


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A study that corrupts, and one that restores."""
    root = tmp_path_factory.mktemp("directions")
    for direction in ("corrupt", "restore"):
        settings = asking(study_maps(window=2, placebo=False), direction=direction)
        run_study(root / direction, settings, FACTS, lambda: tracer().context)
    return [StoredStudy.open(root / name) for name in ("corrupt", "restore")]


class TestCorrupting:
    def test_effects_are_changes_from_the_clean_run(self, studies) -> None:
        effects = studies[0].effects
        record = next(record for record in studies[0].records if record.status == "traced")
        result = next(result for result in record.maps if result.name == "hidden")
        last = record.roles.index("last")
        expected = result.scores[last].astype(np.float64) - record.high
        number = effects.facts.index(record.fact.fact_id)
        assert np.allclose(effects.at("hidden", "last")[number], expected)
        # The last token of the last layer is all that is read.
        assert expected[-1] == pytest.approx(record.low - record.high, abs=1e-5)
        total = effects.mean(effects.total_effect).mean
        assert abs(total) > 0.005
        assert effects.strength(effects.mean(effects.at("hidden", "last")).mean)[-1] == pytest.approx(total, abs=1e-5)

    def test_figures_and_report_say_so(self, studies) -> None:
        figures = study_figures(studies[0].effects)
        assert figures["severed"].layout.xaxis.title.text == "layer at which the hidden state is corrupted"
        assert figures["lines mlp"].layout.xaxis.title.text == "centre of 2 corrupted layers (MLP)"
        assert title_and_caption("map mlp", "corrupt")[1].startswith("Average indirect effect of corrupting MLP")
        assert "put into the clean run" in findings_html(studies[0])
        assert "put into the clean run" not in findings_html(studies[1])

    def test_the_two_directions_are_not_compared(self, studies) -> None:
        with pytest.raises(StudyError, match="different directions: corrupt, restore"):
            comparison_figures({study.folder.name: study.effects for study in studies})


class TestKnockouts:
    def test_spans_are_averaged_by_span_and_drawn_relative_to_the_clean_run(self, invoke) -> None:
        study = invoke("--kind", "span_knockout", "--kind", "knockout", "--window", "2", "--audit-share", "0.2")
        request = study.settings.request
        assert (request.direction, request.corruption, study.settings.samples) == ("corrupt", "none", 1)
        assert set(study.settings.maps) == {"span_knockout", "knockout"}
        effects, records = study.effects, [record for record in study.records if record.status == "traced"]
        assert sum(len(record.audit) for record in records) > 10
        expected = []
        for record in records:
            asked = TraceRequest(record.fact.prompt, record.fact.subject, direction="corrupt", corruption="none")
            flow = tracer().trace(asked, spec=MapSpec("span_knockout", 2))
            expected.append((flow.scores.numpy() - flow.high_score) / flow.high_score * 100)
        relative = 100 * effects.maps["span_knockout"] / effects.high[:, None, None]
        assert np.allclose(relative, expected, atol=1e-3)
        assert np.abs(relative).max() > 1
        figure = study_figures(effects)["spans span_knockout"]
        curves = {trace.name: trace.y for trace in figure.data if trace.name}
        assert list(curves) == ["subject", "other tokens", "itself"]
        for number, curve in enumerate(curves.values()):
            assert np.allclose(curve, np.mean(expected, axis=0)[number], atol=1e-3)
        assert figure.layout.yaxis.title.text == "change of P(answer) (%)"
        assert figure.layout.xaxis.title.text == "centre of 2 blocked layers (span knockout)"
        assert "blocking attention" in title_and_caption("map knockout", "corrupt")[1]
        assert "in which attention is blocked" in findings_html(study)
        assert "span_knockout" not in findings_html(study).split("<table>")[1]

    @pytest.mark.parametrize(
        ("maps", "changes", "words"),
        [
            ({"k": MapSpec("knockout")}, {}, "Give direction='corrupt'"),
            ({"k": MapSpec("knockout", token=3)}, {"direction": "corrupt"}, "have different tokens"),
        ],
    )
    def test_what_cannot_be_asked_for(self, maps, changes, words) -> None:
        with pytest.raises(SettingsError, match=words):
            asking(maps, **changes)


def test_a_study_of_another_format_is_refused(invoke, tmp_path) -> None:
    invoke("--limit", "1")
    path = tmp_path / "out" / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 1}))
    with pytest.raises(StudyError, match=r"format version 1, and this version of causal_tracer reads version 2"):
        StoredStudy.open(tmp_path / "out")
    assert read_records(tmp_path / "out")
