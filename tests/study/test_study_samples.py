"""The page on the stored studies says what the script on their noise samples computes from them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("pandas")

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
