"""The page's studies: those that come with the app, and those of the operator's folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

pytest.importorskip("gradio")
pytest.importorskip("pyarrow")

from causal_tracer.study.store import read_records
from causal_tracer.web.page import studies
from causal_tracer.web.page.studies import NO_OTHER_STUDY, SHIPPED_STUDIES, StudyList


@pytest.fixture(scope="module")
def study_list():
    return StudyList.of()


def place_of(study_list, name):
    """The place of the study in this folder."""
    return next(at for at, study in enumerate(study_list.studies) if study.folder.name == name)


def names_of(dropdown):
    return [name for _, name in dropdown.choices]


class TestShipped:
    def test_gemma_comes_first_with_a_hundred_facts_and_more(self, study_list):
        assert study_list.studies[0].model == "embedded:gemma-3-270m"
        assert study_list.studies[0].state == "complete"
        assert study_list.studies[0].traced >= 100
        assert len({study.model for study in study_list.studies}) == 2

    def test_each_has_a_name_that_says_what_was_done(self, study_list):
        assert [title for title, _ in study_list.choices()] == [
            "Gemma 3 270M (Q4_K_M, dequantised): 115 facts",
            "Gemma 3 270M (Q4_K_M, dequantised): 114 facts, second prompts",
            "SmolLM2 135M Instruct (Q4_1, dequantised): 45 facts",
        ]

    def test_their_manifests_count_what_their_tables_hold(self, study_list):
        for study in study_list.studies:
            traced = [record for record in read_records(study.folder) if record.status == "traced"]
            assert len(traced) == study.traced

    def test_they_name_no_place_of_the_machine_they_were_made_on(self):
        for path in SHIPPED_STUDIES.rglob("*.json"):
            assert "/work" not in path.read_text()
            assert "/root" not in path.read_text()


class TestShow:
    def test_the_first_figure_is_the_map_of_hidden_states(self, study_list):
        listed, figure, caption, findings = study_list.show(0, NO_OTHER_STUDY, None)
        assert listed.value == "map hidden"
        assert figure.data[0].type == "heatmap"
        assert "Figure 2" in caption
        assert f"<b>{study_list.studies[0].traced} facts</b>" in findings

    def test_the_chosen_figure_is_kept_where_there_is_one_of_that_name(self, study_list):
        listed, figure, caption, _ = study_list.show(
            place_of(study_list, "smollm2-135m-instruct"), NO_OTHER_STUDY, "severed"
        )
        assert listed.value == "severed"
        assert {trace.type for trace in figure.data} == {"bar"}
        assert "severed" not in caption
        assert "Figure 3" in caption

    def test_two_studies_stand_beside_each_other(self, study_list):
        listed, figure, _, _ = study_list.show(0, place_of(study_list, "smollm2-135m-instruct"), "severed")
        assert set(names_of(listed)) == {
            f"compared {kind}, {role}" for kind in ("hidden", "mlp", "attention") for role in ("last subject", "last")
        }
        assert {trace.name for trace in figure.data if trace.name} == {study.model for study in study_list.studies}

    def test_studies_of_different_metrics_are_not_drawn_on_one_axis(self, study_list):
        words = study_list.show(0, place_of(study_list, "gemma-3-270m-pairs"), None)[2]
        assert "The studies have different metrics" in words

    def test_a_study_is_not_compared_with_itself(self, study_list):
        assert names_of(study_list.show(0, 0, None)[0]) == names_of(study_list.show(0, NO_OTHER_STUDY, None)[0])

    def test_figures_lie_on_the_pages_own_ground(self, study_list):
        kept = study_list.show(0, NO_OTHER_STUDY, "lines mlp")[1]
        assert kept.layout.paper_bgcolor == kept.layout.plot_bgcolor == "rgba(0,0,0,0)"

    @pytest.mark.parametrize("number", [None, -1, 99])
    def test_a_study_that_is_not_there_is_told(self, study_list, number):
        assert "Choose one of the list" in study_list.show(number, NO_OTHER_STUDY, None)[2]
        assert study_list.write_report(number, NO_OTHER_STUDY)[0] is None

    def test_without_any_study_the_way_to_one_is_told(self):
        assert "CAUSAL_TRACER_STUDIES_FOLDER" in StudyList().show(0, NO_OTHER_STUDY, None)[2]

    def test_without_pyarrow_the_way_to_it_is_told(self, study_list, monkeypatch):
        monkeypatch.setattr("causal_tracer.study.store.find_spec", lambda name: None)
        assert "pip install pyarrow" in study_list.show(0, NO_OTHER_STUDY, None)[2]


class TestReport:
    def test_it_is_one_file_with_the_comparison(self, study_list):
        path, _ = study_list.write_report(0, place_of(study_list, "smollm2-135m-instruct"))
        page = Path(path).read_text(encoding="utf-8")
        assert Path(path).suffix == ".html"
        assert "<h2>Comparison</h2>" in page


class TestFolder:
    @pytest.fixture
    def folder(self, tmp_path):
        shutil.copytree(SHIPPED_STUDIES / "gemma-3-270m", tmp_path / "again")
        return tmp_path

    def test_its_studies_come_after_those_of_the_app_and_are_told_apart(self, study_list, folder):
        titles = [title for title, _ in StudyList.of(str(folder)).choices()]
        assert len(titles) == len(set(titles)) == len(study_list.studies) + 1
        assert titles[-1].endswith("(again)")

    def test_one_that_was_not_brought_to_an_end_is_left_out(self, study_list, folder):
        path = folder / "again" / "manifest.json"
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "facts": {}}))
        assert len(StudyList.of(str(folder)).studies) == len(study_list.studies)

    def test_it_is_read_anew_when_its_files_change(self, folder):
        study_list = StudyList.of(str(folder))
        last = len(study_list.studies) - 1
        first = studies.opened(study_list.studies[last].folder)
        assert studies.opened(study_list.studies[last].folder) is first
        path = folder / "again" / "manifest.json"
        manifest = json.loads(path.read_text())
        manifest["settings"]["request"]["samples"] = 77
        path.write_text(json.dumps(manifest))
        assert "77 noise samples" in study_list.show(last, NO_OTHER_STUDY, None)[3]
