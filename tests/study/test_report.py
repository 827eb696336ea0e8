"""Figures, report and comparison of studies, and the command that makes them."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest

from causal_tracer.errors import StudyError
from causal_tracer.request.records import TraceRequest
from causal_tracer.study.facts import facts_digest
from causal_tracer.study.figures import comparison_figures, study_figures
from causal_tracer.study.publish import dataset_card, push_to_hub
from causal_tracer.study.records import ROLES
from causal_tracer.study.report import effects_table, findings_html, report_page, write_report
from causal_tracer.study.runner import run_study
from causal_tracer.study.settings import StudySettings, study_maps
from causal_tracer.study.statistics import selection_half, study_effects
from causal_tracer.study.store import read_records
from causal_tracer.study.stored import StoredStudy, named_effects, stored_studies
from tests.support.study_model import NOISE, known_facts, tracer

pytestmark = pytest.mark.slow

pytest.importorskip("pyarrow")
FACTS = known_facts()
SETTINGS = StudySettings(
    "tiny",
    "here",
    facts_digest(FACTS),
    TraceRequest("", noise=NOISE, samples=2),
    study_maps(window=2),
    audit_share=0.02,
)


@pytest.fixture(scope="module")
def studies(tmp_path_factory):
    """A folder with two studies, of different noise."""
    root = tmp_path_factory.mktemp("studies")
    run_study(root / "one", SETTINGS, FACTS, lambda: tracer().context)
    louder = replace(SETTINGS, request=replace(SETTINGS.request, noise=0.6))
    run_study(root / "two", louder, FACTS, lambda: replace(tracer().context, noise=0.6, model_id="tiny <loud>"))
    return root


@pytest.fixture(scope="module")
def effects(studies):
    return study_effects(read_records(studies / "one"), SETTINGS)


class TestFigures:
    def test_all_of_them_are_there(self, effects):
        kinds = ("hidden", "mlp", "attention")
        expected = {f"{name} {kind}" for kind in kinds for name in ("map", "lines", "corrected")}
        expected |= {"severed", "best layers last subject", "best layers last"}
        assert set(study_figures(effects)) == expected

    def test_the_map_shows_the_averages_by_role_and_layer(self, effects):
        heatmap = study_figures(effects)["map mlp"].data[0]
        aie = effects.mean(effects.maps["mlp"]).mean
        assert np.allclose(np.array(heatmap.z, dtype=float), aie, equal_nan=True)
        assert np.abs(aie).max() > 1e-3
        assert [label.removesuffix(" token").removesuffix(" tokens") for label in heatmap.y] == list(ROLES)

    def test_lines_have_their_intervals_as_bands(self, effects):
        effects = replace(effects, settings=replace(SETTINGS, request=replace(SETTINGS.request, seed=3)))
        figure = study_figures(effects)["lines hidden"]
        aie = effects.mean(effects.maps["hidden"])
        line = next(trace for trace in figure.data if trace.name == "last subject token")
        band = next(t for t in figure.data if t.legendgroup == "last subject token" and t.fill == "toself")
        number = ROLES.index("last subject")
        assert np.allclose(line.y, aie.mean[number])
        assert np.allclose(band.y, [*aie.high[number], *aie.low[number][::-1]])

    def test_severed_bars_and_histograms_hold_their_numbers(self, effects):
        figures = study_figures(effects)
        assert [bar.name for bar in figures["severed"].data] == [
            "nothing severed",
            "MLP severed",
            "attention severed",
        ]
        assert all(sum(bar.y) == len(effects.facts) for bar in figures["best layers last"].data)

    def test_studies_of_other_depth_are_laid_over_each_other(self, effects):
        maps = {name: np.concatenate([values, values], axis=2) for name, values in effects.maps.items()}
        deeper = replace(effects, maps=maps)
        figure = comparison_figures({"a": effects, "b": deeper})["compared mlp, last subject"]
        ends = [(trace.x[0], trace.x[-1], len(trace.x)) for trace in figure.data if trace.name]
        assert ends == [(0, 1, 3), (0, 1, 6)]


class TestReport:
    def test_it_needs_nothing_from_outside(self, studies):
        page = report_page(StoredStudy.open(studies / "one"))
        without_code = re.sub(r"<script.*?</script>", "", page, flags=re.S)
        assert page.count("plotly.js v") == 1
        assert not re.findall(r"<(?:script|img|link|iframe)[^>]+(?:src|href)\s*=", page)
        assert set(re.findall(r"https?://[^\s'\"<]+", without_code)) == {"https://arxiv.org/abs/2301.04213"}

    def test_it_tells_the_numbers_the_audit_and_how_it_was_made(self, studies, effects):
        page = report_page(StoredStudy.open(studies / "one"))
        header, rows = effects_table(effects)
        assert {row[0] for row in rows} == {
            "hidden",
            "mlp",
            "attention",
            "hidden, mlp severed",
            "hidden, attention severed",
        }
        for cell in [*header, *rows[0]]:
            assert f">{cell}<" in page
        assert "<b>14 facts</b> of 3 relations, 2 noise samples each (4 unknown left out)" in page
        ate = float(effects.total_effect.mean())
        assert f"Average total effect: <b>{100 * ate:.1f} %" in page
        assert "largest difference" in page
        assert "Swept by: resumed (14)." in page
        assert facts_digest(FACTS) in page

    def test_severed_maps_are_read_where_the_whole_effect_is_largest(self, effects):
        _, rows = effects_table(effects)
        layers = {(row[0], row[1]): row[2] for row in rows}
        for severed in ("hidden, mlp severed", "hidden, attention severed"):
            assert layers[severed, "last subject"] == layers["hidden", "last subject"]
            assert (severed, "last") not in layers

    def test_minus_placebo_is_read_on_the_same_half_as_the_effect(self, effects):
        _, rows = effects_table(effects)
        row = next(row for row in rows if row[:2] == ["mlp", "last subject"])
        rest = ~selection_half(effects)
        place = (rest, ROLES.index("last subject"), int(row[2]))
        minus = np.nanmean(effects.maps["mlp"][place] - effects.maps["mlp, placebo"][place])
        assert row[5].startswith(f"{100 * minus:.1f} %")

    def test_names_are_escaped_and_studies_compared(self, studies):
        page = write_report(studies / "one", [studies / "two"]).read_text(encoding="utf-8")
        assert "<h2>Comparison</h2>" in page
        assert "tiny &lt;loud&gt;" in page
        assert "<td>tiny <loud>" not in page

    def test_a_study_that_still_runs_has_a_report_too(self, tmp_path):
        def stop(done, total):
            if done == 5:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_study(tmp_path / "study", SETTINGS, FACTS, lambda: tracer().context, progress=stop)
        assert "facts</b> of" in report_page(StoredStudy.open(tmp_path / "study"))

    def test_a_folder_without_a_study_has_none(self, tmp_path):
        with pytest.raises(StudyError, match="no study"):
            write_report(tmp_path)


class TestStored:
    def test_studies_in_a_folder_are_listed(self, studies):
        (studies / "other").mkdir(exist_ok=True)
        listed = stored_studies(studies)
        assert [(its.folder.name, its.model, its.state, its.traced, its.settings.samples) for its in listed] == [
            ("one", "tiny", "complete", 14, 2),
            ("two", "tiny <loud>", "complete", 14, 2),
        ]

    def test_one_is_opened_with_table_and_figures(self, studies, effects):
        one, two = (StoredStudy.open(studies / name) for name in ("one", "two"))
        assert one.effects.facts == effects.facts
        assert one.effects.seed == SETTINGS.request.seed
        assert "<b>14 facts</b>" in findings_html(one)
        assert "map hidden" in study_figures(one.effects)
        assert set(comparison_figures(named_effects([one, two]))) == {
            f"compared {kind}, {role}" for kind in ("hidden", "mlp", "attention") for role in ("last subject", "last")
        }


class TestCommand:
    @pytest.fixture
    def invoke(self, tmp_path, monkeypatch):
        """Runs the command line on the tiny model."""
        from dataclasses import asdict

        from causal_tracer.cli import study as command
        from causal_tracer.cli.main import main

        monkeypatch.setattr(command, "_context", lambda *_: tracer().context)

        def call(*options, facts=FACTS):
            path = tmp_path / "facts.json"
            path.write_text(json.dumps([asdict(fact) for fact in facts]))
            given = ["--facts", str(path), "--out", str(tmp_path / "out"), "--samples", "2", "--model", "tiny"]
            return main(["study", *given, *options])

        return call

    def test_a_complete_study_leaves_with_0_and_its_report(self, invoke, tmp_path, capsys):
        assert invoke("--limit", "3") == 0
        assert "complete (3 traced)" in capsys.readouterr().out
        assert (tmp_path / "out" / "report.html").stat().st_size > 1e6

    def test_facts_that_fail_leave_it_partial_with_3(self, invoke, monkeypatch):
        from causal_tracer.errors import NumericsError
        from causal_tracer.study import tracing

        traced = tracing._traced

        def failing(context, settings, fact, *rest):
            if fact.fact_id == "place-0":
                raise NumericsError("NaN")
            return traced(context, settings, fact, *rest)

        monkeypatch.setattr(tracing, "_traced", failing)
        assert invoke("--no-report") == 3

    def test_nothing_known_leaves_with_1(self, invoke):
        assert invoke(facts=[replace(fact, attribute="Space") for fact in FACTS[:2]]) == 1

    def test_settings_at_fault_leave_with_2_and_changed_ones_with_1(self, invoke, capsys):
        assert invoke("--metric", "loudness") == 2
        assert invoke("--limit", "1", "--no-report") == 0
        assert invoke("--limit", "1", "--seed", "2", "--no-report") == 1
        assert "seed was 1 and is 2" in capsys.readouterr().err

    def test_noise_is_a_level_a_multiple_or_that_of_the_subjects(self, invoke, tmp_path):
        from causal_tracer.cli.study import noise_rule
        from causal_tracer.corruption import SubjectsNoise

        assert invoke("--limit", "1", "--noise", "0.5", "--no-report") == 0
        assert json.loads((tmp_path / "out" / "manifest.json").read_text())["settings"]["request"]["noise"] == 0.5

        def rule(noise):
            return noise_rule(replace(SETTINGS, request=replace(SETTINGS.request, noise=noise)), FACTS)

        assert rule("2 sigma") == "2 sigma"
        subjects = rule("subjects")
        assert subjects == SubjectsNoise(tuple(fact.subject for fact in FACTS))

    def test_the_report_alone_needs_no_model(self, studies, monkeypatch, capsys):
        from causal_tracer.cli import study as command
        from causal_tracer.cli.main import main

        monkeypatch.setattr(command, "_context", None)
        assert main(["study", "--report-only", "--out", str(studies / "two")]) == 0
        assert capsys.readouterr().out.strip().endswith("report.html")
        assert (studies / "two" / "report.html").exists()

    def test_a_dry_run_counts_and_writes_nothing(self, invoke, tmp_path, capsys):
        assert invoke("--dry-run", "--processes", "4") == 0
        out = capsys.readouterr().out
        assert "14 known of 18" in out
        assert "4 processes" in out
        assert not (tmp_path / "out").exists()


class TestPublishing:
    @pytest.fixture
    def hub(self, monkeypatch):
        """A stand-in for the hub's client that writes down what it is asked."""
        import huggingface_hub

        calls = []

        class Api:
            def create_repo(self, repo_id, **options):
                calls.append(("create", repo_id, options))

            def upload_file(self, **options):
                calls.append(("file", options["path_in_repo"], options))

            def upload_folder(self, **options):
                calls.append(("folder", options["folder_path"], options))

        monkeypatch.setattr(huggingface_hub, "HfApi", Api)
        return calls

    def test_tables_manifest_and_report_go_to_a_private_data_set(self, studies, hub):
        assert push_to_hub(studies / "one", "me/study") == "https://huggingface.co/datasets/me/study"
        assert [call[:2] for call in hub] == [
            ("create", "me/study"),
            ("file", "README.md"),
            ("folder", str(studies / "one")),
        ]
        assert hub[0][2] == {"repo_type": "dataset", "private": True, "exist_ok": True}
        assert set(hub[2][2]["allow_patterns"]) == {"*.parquet", "manifest.json", "report.html"}

    def test_the_card_names_each_table(self):
        card = dataset_card("tiny")
        for name in ("cells", "facts", "audit"):
            assert f"- config_name: {name}\n  data_files: {name}.parquet\n" in card

    def test_a_study_without_an_end_stays_here(self, studies, tmp_path, hub):
        manifest = (studies / "one" / "manifest.json").read_text()
        (tmp_path / "manifest.json").write_text(manifest)
        with pytest.raises(StudyError, match=r"it has no cells\.parquet"):
            push_to_hub(tmp_path, "me/study")
        assert not hub
