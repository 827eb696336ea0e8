"""Tables as CSV that spreadsheets open safely: no text in a cell is run as a formula."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

# What makes a spreadsheet take a text for a formula, also in the wide forms of East Asian keyboards.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV.

    A text that a spreadsheet would take for a formula begins with an apostrophe. Numbers are written as they are, NaN
    as an empty cell, which is how spreadsheets and pandas write a missing number.
    """
    file = io.StringIO()
    # Its own line ending, CRLF: with another one it leaves a carriage return in a cell unquoted.
    csv.writer(file).writerows([_cell(value) for value in row] for row in (header, *rows))
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value
