"""CSV that spreadsheets open safely, whoever writes it."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from causal_tracer.cli.output import Outputs
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.tables import csv_text
from tests.support.flows import some_flow

FORMULAS = ["=1+1", "+1", "-1", "@A1", " =1", "\t=1", "\r=1", "＝1", "\n=x", '=HYPERLINK("http://x")']
HARMLESS = [" Space", "東京", 'a,"b"', "🗼", "a=b", "مرحبا", ""]


def cells(text: str) -> list[list[str]]:
    return list(csv.reader(io.StringIO(text, newline="")))


def by_command(flow: HiddenFlow, folder: Path) -> str:
    Outputs(csv=str(folder / "map.csv"), quiet=True).write({"=map": flow})
    return (folder / "map.csv").read_bytes().decode()


def by_download(flow: HiddenFlow, folder: Path) -> str:
    pytest.importorskip("gradio")
    from causal_tracer.web.page.downloads import download

    return download(flow, "csv", folder).read_bytes().decode()


WRITERS = {"command": by_command, "download": by_download}


@pytest.mark.parametrize("text", FORMULAS)
def test_a_formula_is_neutralised_in_any_cell(text: str) -> None:
    assert cells(csv_text([text], [[text, 1.5]])) == [[f"'{text}"], [f"'{text}", "1.5"]]


@pytest.mark.parametrize("text", HARMLESS)
def test_other_texts_stay_as_they_are(text: str) -> None:
    assert cells(csv_text(["a"], [[text, "x"]]))[1] == [text, "x"]


def test_numbers_stay_numbers_and_what_is_missing_is_empty() -> None:
    (row,) = cells(csv_text(["a"], [[-1, -2.5, math.nan, -math.inf, True, None]]))[1:]
    assert row == ["-1", "-2.5", "", "-inf", "True", ""]


@pytest.mark.parametrize("token", FORMULAS)
@pytest.mark.parametrize("writer", WRITERS)
def test_no_writer_lets_a_formula_through(writer: str, token: str, tmp_path: Path) -> None:
    write: Callable[[HiddenFlow, Path], str] = WRITERS[writer]
    header, *rows = cells(write(some_flow(input_tokens=[token] * 4), tmp_path))
    assert rows
    for row in rows:
        named = dict(zip(header, row, strict=True))
        assert named["token"] == f"'{token}"
        assert named.get("map", "'=map") == "'=map"
        float(named["score"] or 0)
