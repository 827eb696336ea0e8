"""The results of single runs, LogitLens and PatchedRun: files, tables, short forms."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from causal_tracer import LogitLens, PatchedRun
from causal_tracer.errors import ExportError, ResultFormatError, SettingsError
from causal_tracer.results.lens import COLUMNS
from tests.support.lenses import some_lens, some_patched_run


def assert_same(found: Any, expected: Any) -> None:
    for item in dataclasses.fields(expected):
        one, other = getattr(found, item.name), getattr(expected, item.name)
        if isinstance(other, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(one, other)
        elif isinstance(other, LogitLens):
            assert_same(one, other)
        else:
            assert one == other, item.name


@pytest.mark.parametrize("made", [some_lens(), some_patched_run()], ids=["lens", "patched"])
def test_a_saved_result_opens_with_identical_numbers(made: Any, tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    made.save(path)
    assert_same(type(made).load(path), made)


@pytest.mark.parametrize("made", [some_lens(), some_patched_run()], ids=["lens", "patched"])
def test_damaged_data_are_refused(made: Any, tmp_path: Path) -> None:
    saved, kind = made.to_dict(), type(made)
    with pytest.raises(ResultFormatError, match=f"not a saved {kind.__name__}"):
        kind.from_dict({**saved, "format": "causal_tracer.HiddenFlow"})
    with pytest.raises(ResultFormatError, match="Upgrade"):
        kind.from_dict({**saved, "format_version": 99})
    for name in saved:
        data = {key: value for key, value in saved.items() if key != name}
        with pytest.raises(ResultFormatError):
            kind.from_dict(data)
        for value in (None, 3, "x", [], [[]], {}, [[1.5]], float("nan")):
            outcome(kind, {**json.loads(json.dumps(saved)), name: value})
    with pytest.raises(ResultFormatError, match="could not be read"):
        kind.load(tmp_path / "missing.json")
    (tmp_path / "x.json").write_text("{", encoding="utf-8")
    with pytest.raises(ResultFormatError, match="is not JSON"):
        kind.load(tmp_path / "x.json")


def outcome(kind: Any, data: Any) -> None:
    """Data that are read at all can be shown and saved again."""
    try:
        found = kind.from_dict(data)
    except ResultFormatError:
        return
    assert repr(found)
    json.dumps(found.to_dict())


def test_data_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ResultFormatError, match="is inconsistent"):
        LogitLens.from_dict(some_lens(input_tokens=("a",)).to_dict())
    with pytest.raises(ResultFormatError, match="is inconsistent"):
        LogitLens.from_dict(some_lens(texts={0: "a"}).to_dict())
    with pytest.raises(ResultFormatError, match="is inconsistent"):
        PatchedRun.from_dict(some_patched_run(pairs=(((1, 0), (2, 9)),)).to_dict())


def test_infinite_numbers_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ExportError):
        some_lens(entropies=torch.full((5, 3), torch.inf)).save(tmp_path / "x.json")


def test_top_tokens_of_a_cell() -> None:
    lens = some_lens()
    best, second = lens.top(-1, 2)
    assert best.token_id == int(lens.top_ids[4, 2, 0])
    assert best.text == lens.texts[best.token_id]
    assert best.probability == float(lens.top_probabilities[4, 2, 0]) >= second.probability
    for place in ((5, 0), (-6, 0), (0, 3), (0, -4)):
        with pytest.raises(SettingsError, match="is out of range"):
            lens.top(*place)


def test_the_table_has_a_row_for_each_top_token_and_no_formula() -> None:
    lens = some_lens()
    table = list(csv.DictReader(io.StringIO(lens.to_csv(), newline="")))
    assert tuple(table[0]) == COLUMNS
    assert len(table) == 5 * 3 * 2
    for row in table:
        place = int(row["position"]), int(row["layer"])
        best = lens.top(*place)[int(row["rank"]) - 1]
        assert (int(row["top_id"]), float(row["top_probability"])) == (best.token_id, best.probability)
        assert float(row["answer_probability"]) == float(lens.answer_probabilities[place])
        assert int(row["answer_rank"]) == int(lens.answer_ranks[place])
        assert float(row["entropy_nats"]) == float(lens.entropies[place])
        assert not row["token"].startswith("=")
        assert not row["top_token"].startswith("=")


def test_the_repr_of_a_lens_is_short() -> None:
    lens = some_lens(prompt="x" * 10_000)
    text = repr(lens)
    assert text.startswith("LogitLens: clean run, some/model (float32)")
    assert "5 tokens x 3 layers" in text
    assert f"P(' Seattle') = {float(lens.answer_probabilities[-1, -1]):.4g}" in text
    assert len(text) < 1000


def test_the_repr_of_a_patched_run_names_pairs_and_answers() -> None:
    text = repr(some_patched_run())
    assert "' b' (token 1), layer 0 into '\\n' (token 2), layer 1" in text
    assert "P(' Seattle'): source 0.3, base 0.25, patched 0.5" in text
    many = some_patched_run(pairs=tuple(((0, 0), (token, layer)) for token in range(5) for layer in range(3)))
    assert "and 7 more pairs" in repr(many)


@pytest.mark.parametrize("made", [some_lens(), some_patched_run()], ids=["lens", "patched"])
def test_a_notebook_shows_the_figure_or_the_text(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = made._repr_html_()
    assert shown.startswith("<iframe srcdoc=")
    assert "Plotly.newPlot" in shown
    monkeypatch.setattr("causal_tracer.results.reprs.find_spec", lambda name: None)
    assert made._repr_html_() is None
