"""The page on the stored studies says what the scripts compute from them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("pandas")

from benchmarks import study_agreement
from benchmarks.study_samples import STORED, main

PAGE = Path(__file__).resolve().parents[2] / "docs" / "explanation" / "study-results.md"
ROW = re.compile(
    r"^\| (?:Gemma|SmolLM2), .* \| ([\d.]+)(?: points)? \| ([\d.]+) \| ([\d.]+) % narrower \|$", re.MULTILINE
)


def test_each_row_of_the_page_is_a_row_of_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    main(sorted(STORED.iterdir()))
    printed = capsys.readouterr().out
    rows = ROW.findall(PAGE.read_text(encoding="utf-8"))
    assert len(rows) == 7
    for row in rows:
        assert "{}% | {}% | {}% |".format(*row) in printed


def test_each_row_of_two_experiments_is_a_row_of_the_script(capsys: pytest.CaptureFixture[str]) -> None:
    study_agreement.main([STORED / "gemma-3-270m", STORED / "gemma-3-270m-pairs"])
    printed = re.sub(r"(\d)%", r"\1", capsys.readouterr().out)
    rows = re.findall(
        r"^\| .*, .* \| (\d+) % (\(.*\), layer \d+) \| (\d+) % (\(.*\), layer \d+) \|$",
        PAGE.read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(rows) == len(study_agreement.PLACES)
    for row in rows:
        assert "{} {} | {} {} |".format(*row) in printed
