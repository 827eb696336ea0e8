"""Running a study: it can be stopped anywhere, resumes with the missing facts, and mixes no settings."""

from __future__ import annotations

import json
import os
import shutil
from contextlib import closing
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from filelock import FileLock

from causal_tracer.errors import NumericsError, StudyError, TraceCancelled
from causal_tracer.request.records import RunOptions, TraceRequest
from causal_tracer.study import tracing
from causal_tracer.study.facts import facts_digest
from causal_tracer.study.journal import Journal, journal_files, read_journal
from causal_tracer.study.records import ROLES
from causal_tracer.study.runner import run_study
from causal_tracer.study.settings import StudySettings, study_maps
from causal_tracer.study.store import cells_table, compact, read_manifest, read_records
from causal_tracer.study.tracing import placebo_for
from tests.support.study_model import NOISE, known_facts, tracer

pytestmark = pytest.mark.slow

pyarrow = pytest.importorskip("pyarrow")
FACTS = known_facts()
SETTINGS = StudySettings(
    "tiny",
    "here",
    facts_digest(FACTS),
    TraceRequest("", noise=NOISE, samples=2),
    study_maps(window=2),
    audit_share=0.0,
)


def context():
    return tracer().context


def run(folder, settings=SETTINGS, **options):
    return run_study(folder, settings, FACTS, context, **options)


def rows(folder):
    """All cells, sorted, without the tables' own order."""
    table = cells_table(read_records(folder), SETTINGS)
    names = ["fact", "map", "position", "layer"]
    return table.sort_by([(name, "ascending") for name in names]).to_pylist()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A study that ran through; tests leave it as it is."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    return folder, run(folder)


def stop_after(count):
    """A `progress` that stops the study after so many facts, as Ctrl-C would."""

    def progress(done, total):
        if done == count:
            raise KeyboardInterrupt

    return progress


class TestWhole:
    def test_known_facts_are_traced_and_others_counted(self, whole):
        folder, outcome = whole
        assert outcome.state == "complete"
        assert outcome.counts == {"traced": 14, "unknown": 4}
        unknown = [record for record in read_records(folder) if record.status == "unknown"]
        assert all("the model's answer is" in record.cause and not record.maps for record in unknown)

    def test_the_tables_have_one_row_per_cell_and_one_per_fact(self, whole):
        import pyarrow.parquet

        folder, _ = whole
        cells = pyarrow.parquet.read_table(folder / "cells.parquet").to_pylist()
        keys = [(row["fact"], row["map"], row["position"], row["layer"]) for row in cells]
        assert len(set(keys)) == len(keys)
        tokens = {r.fact.fact_id: len(r.tokens) for r in read_records(folder) if r.status == "traced"}
        everywhere = sum(tokens.values()) * 3 * 3
        assert sum(row["everywhere"] for row in cells) == everywhere
        assert len(cells) == everywhere + len(tokens) * 2 * 3 * 5
        assert {row["role"] for row in cells} <= {"before", *ROLES}
        assert pyarrow.parquet.read_table(folder / "facts.parquet").num_rows == len(FACTS)

    def test_pandas_and_datasets_read_them(self, whole, monkeypatch, tmp_path):
        folder, _ = whole
        frame = pytest.importorskip("pandas").read_parquet(folder / "cells.parquet")
        assert frame.groupby("map")["score"].count().min() > 0
        monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path))
        datasets = pytest.importorskip("datasets")
        loaded = datasets.Dataset.from_parquet(str(folder / "cells.parquet"), cache_dir=str(tmp_path))
        assert loaded.num_rows == len(frame)

    def test_what_is_written_comes_back_as_it_was(self, whole):
        folder, _ = whole
        assert not journal_files(folder)
        again = folder.parent / "again"
        with closing(Journal(again)) as journal:
            for record in read_records(folder):
                journal.append(record.to_dict())
        assert rows(again) == rows(folder)
        compact(again, SETTINGS)
        assert rows(again) == rows(folder)

    def test_scores_are_those_of_a_trace_of_the_fact_alone(self, whole):
        from causal_tracer.request.records import OtherPrompt
        from causal_tracer.tracing.loop import trace_maps

        folder, _ = whole
        record = next(record for record in read_records(folder) if record.status == "traced")
        placebo = placebo_for(SETTINGS.request.seed, record.fact, FACTS)
        assert placebo is not None
        assert placebo.relation != record.fact.relation
        request = TraceRequest(
            record.fact.prompt,
            record.fact.subject,
            answer=record.fact.attribute,
            samples=2,
            seed=SETTINGS.seed_of(record.fact.fact_id),
            placebo=OtherPrompt(placebo.prompt, placebo.subject, align="spans"),
        )
        *_, update = trace_maps(context(), request, SETTINGS.maps, RunOptions(engine="full"))
        spread = record.high - record.low
        assert abs(spread) > 0.005
        for result in record.maps:
            flow = update.flows[result.name]
            computed = ~np.isnan(result.scores)
            assert np.allclose(result.scores[computed], flow.scores.numpy()[computed], atol=1e-5)
            assert computed.all(axis=1).sum() == (len(record.tokens) if SETTINGS.covers_all_tokens(result.name) else 2)
        assert record.high == pytest.approx(flow.high_score, abs=1e-6)
        assert record.low == pytest.approx(flow.low_score, abs=1e-6)

    def test_the_manifest_says_how_it_was_made(self, whole):
        manifest = read_manifest(whole[0])
        assert manifest["state"] == "complete"
        assert manifest["model"]["model"] == "tiny"
        assert manifest["settings"]["facts_digest"] == facts_digest(FACTS)
        assert set(manifest["environments"][0]) == {"causal_tracer", "commit", "torch", "transformers", "numpy"}

    def test_a_study_that_is_complete_loads_no_model(self, whole):
        def load():
            raise AssertionError("loaded")

        assert run_study(whole[0], SETTINGS, FACTS, load).state == "complete"


class TestResuming:
    def test_a_stopped_study_goes_on_with_what_is_missing(self, whole, tmp_path):
        folder = tmp_path / "study"
        with pytest.raises(KeyboardInterrupt):
            run(folder, progress=stop_after(5))
        assert len(read_records(folder)) == 5
        counted = []
        outcome = run(folder, progress=lambda done, total: counted.append(total))
        assert set(counted) == {len(FACTS) - 5}
        assert outcome.state == "complete"
        assert rows(folder) == rows(whole[0])

    def test_a_torn_last_line_costs_its_own_fact_only(self, whole, tmp_path):
        folder = tmp_path / "study"
        with pytest.raises(KeyboardInterrupt):
            run(folder, progress=stop_after(4))
        (journal,) = journal_files(folder)
        size = journal.stat().st_size
        os.truncate(journal, size - 40)
        assert len(read_records(folder)) == 3
        run(folder)
        assert rows(folder) == rows(whole[0])

    def test_a_line_that_is_damaged_in_the_middle_is_not_passed_over(self, tmp_path):
        folder = tmp_path / "study"
        with pytest.raises(KeyboardInterrupt):
            run(folder, progress=stop_after(3))
        (journal,) = journal_files(folder)
        lines = journal.read_bytes().split(b"\n")
        journal.write_bytes(b"\n".join([lines[0], lines[1][:50], *lines[2:]]))
        with pytest.raises(StudyError, match="Line 2 of"):
            run(folder)

    def test_killed_between_tables_and_journals_nothing_is_doubled(self, whole, tmp_path, monkeypatch):
        folder = tmp_path / "study"
        monkeypatch.setattr("pathlib.Path.unlink", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(folder)
        monkeypatch.undo()
        assert journal_files(folder)
        assert rows(folder) == rows(whole[0])
        run(folder)
        assert not journal_files(folder)
        assert rows(folder) == rows(whole[0])

    def test_a_larger_limit_adds_facts_and_changes_none(self, whole, tmp_path):
        folder = tmp_path / "study"
        run(folder, limit=4)
        before = rows(folder)
        assert len(read_records(folder)) == 4
        run(folder, limit=9)
        assert len(read_records(folder)) == 9
        facts = {row["fact"] for row in before}
        assert before == [row for row in rows(folder) if row["fact"] in facts]
        assert before == [row for row in rows(whole[0]) if row["fact"] in facts]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"request": replace(SETTINGS.request, samples=3)}, "samples was 2 and is 3"),
            ({"request": replace(SETTINGS.request, seed=2)}, "seed was 1 and is 2"),
            ({"options": RunOptions(batch_size=3)}, "batch_size was None and is 3"),
            ({"maps": study_maps()}, "map 'mlp' was MapSpec(kind='mlp', window=2) and is MapSpec(kind='mlp')"),
            ({"maps": study_maps(window=2, placebo=False)}, "map 'mlp, placebo' was"),
            ({"facts_digest": "other"}, "facts_digest was"),
        ],
    )
    def test_other_settings_are_refused_by_name(self, whole, change, words):
        before = rows(whole[0])
        with pytest.raises(StudyError, match="other settings") as caught:
            run(whole[0], replace(SETTINGS, **change))
        assert words in str(caught.value)
        assert rows(whole[0]) == before

    def test_another_model_of_the_same_name_is_refused(self, tmp_path):
        folder = tmp_path / "study"
        run(folder, limit=1)
        with pytest.raises(StudyError, match="was begun with the model"):
            run_study(folder, SETTINGS, FACTS, lambda: replace(context(), noise=0.7))

    def test_a_folder_in_use_and_a_folder_of_something_else_are_refused(self, tmp_path):
        folder = tmp_path / "study"
        folder.mkdir()
        with FileLock(folder / ".lock"), pytest.raises(StudyError, match="Another run"):
            run(folder)
        (folder / ".1234.part").write_text("a part of a manifest, left by a process that was killed")
        run(folder, limit=1)
        shutil.rmtree(folder)
        folder.mkdir()
        (folder / "thesis.txt").write_text("all of it")
        with pytest.raises(StudyError, match="other files and no study"):
            run(folder)

    def test_cancelling_stops_it_and_keeps_what_is_done(self, tmp_path):
        folder = tmp_path / "study"
        done = []
        with pytest.raises(TraceCancelled):
            run(folder, progress=lambda number, _: done.append(number), cancelled=lambda: len(done) >= 2)
        assert len(read_records(folder)) >= 2


class TestFailing:
    @pytest.mark.parametrize("error", [NumericsError("it gave NaN"), torch.OutOfMemoryError("no memory")])
    def test_a_fact_that_fails_is_set_aside_with_its_cause(self, whole, tmp_path, monkeypatch, error):
        traced = tracing._traced

        def failing(context, settings, fact, *rest):
            if fact.fact_id == "place-0":
                raise error
            return traced(context, settings, fact, *rest)

        folder = tmp_path / "study"
        monkeypatch.setattr(tracing, "_traced", failing)
        outcome = run(folder)
        assert outcome.state == "partial"
        assert outcome.counts == {"traced": 13, "unknown": 4, "failed": 1}
        (failed,) = [record for record in read_records(folder) if record.status == "failed"]
        assert failed.fact.fact_id == "place-0"
        assert failed.cause == f"{type(error).__name__}: {error}"
        monkeypatch.undo()
        assert run(folder).state == "partial"
        assert run(folder, retry_failed=True).state == "complete"
        assert rows(folder) == rows(whole[0])

    def test_an_error_in_the_program_is_not_taken_for_a_failed_fact(self, tmp_path, monkeypatch):
        def wrong(*_):
            raise KeyError("a bug")

        monkeypatch.setattr(tracing, "_traced", wrong)
        with pytest.raises(KeyError):
            run(tmp_path / "study")

    def test_nothing_traced_is_a_failure(self, tmp_path):
        strangers = tuple(replace(fact, attribute="Space") for fact in FACTS[:2])
        outcome = run_study(tmp_path / "study", SETTINGS, strangers, context)
        assert (outcome.state, outcome.counts) == ("failed", {"unknown": 2})


class TestAudit:
    AUDITED = replace(SETTINGS, audit_share=0.05)

    def test_cells_are_drawn_by_the_seed_and_agree_with_the_full_sweep(self, tmp_path):
        outcome = run(tmp_path / "study", self.AUDITED)
        cells = sum(found.cells for found in outcome.audit)
        total = cells_table(read_records(tmp_path / "study"), self.AUDITED).num_rows
        assert 0.03 * total < cells < 0.07 * total
        assert all(found.p99 <= found.largest < 1e-5 for found in outcome.audit)
        manifest = read_manifest(tmp_path / "study")
        assert manifest["audit"] == [asdict(found) for found in outcome.audit]

    def test_a_wrong_cell_stops_the_study_for_good(self, tmp_path, monkeypatch):
        right = tracing.trace_maps

        def wrong(context, request, specs, options, cancelled):
            for update in right(context, request, specs, options, cancelled):
                if options.engine == "auto":
                    flows = {name: replace(flow, scores=flow.scores + 2e-4) for name, flow in update.flows.items()}
                    update = replace(update, flows=flows)
                yield update

        monkeypatch.setattr(tracing, "trace_maps", wrong)
        folder = tmp_path / "study"
        with pytest.raises(StudyError, match=r"differs from the full sweep by 0\.0002"):
            run(folder, self.AUDITED)
        monkeypatch.undo()
        with pytest.raises(StudyError, match="differs from the full sweep"):
            run(folder, self.AUDITED)

    def test_the_limit_follows_the_dtype_that_the_model_has(self):
        assert SETTINGS.audit_limit_for("float32") == 1e-4
        assert SETTINGS.audit_limit_for("bfloat16") == 0.05
        assert replace(SETTINGS, audit_limit=0.2).audit_limit_for("bfloat16") == 0.2


def test_a_journal_holds_one_whole_line_per_record_at_any_time(tmp_path):
    with closing(Journal(tmp_path)) as journal:
        for number in range(3):
            journal.append({"number": number, "text": "é\n"})
            assert [json.loads(line)["number"] for line in journal.path.read_bytes().splitlines()] == list(
                range(number + 1)
            )
    assert list(read_journal(journal.path)) == [{"number": n, "text": "é\n"} for n in range(3)]


def test_placebos_come_from_other_relations_and_answers_where_there_are_any():
    drawn = [(fact, placebo_for(1, fact, FACTS)) for fact in FACTS]
    assert all(other and other.relation != fact.relation and other.attribute != fact.attribute for fact, other in drawn)
    assert len({other.fact_id for _, other in drawn}) > 5
    of_one = [fact for fact in FACTS if fact.relation == "place"]
    assert all(placebo_for(1, fact, of_one).attribute != fact.attribute for fact in of_one)
    assert placebo_for(1, FACTS[0], FACTS[:1]) is None
