"""Tables as CSV whose texts spreadsheets do not run as formulas."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Sequence
from typing import Any

# A spreadsheet takes a text that starts with one of these for a formula. The last four are East Asian full-width forms.
_FORMULA = tuple("=+-@\t\r\n＝＋－＠")


def csv_text(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table as CSV.

    A text that a spreadsheet would take for a formula gets an apostrophe before it. NaN becomes an empty cell, as
    spreadsheets and pandas write a missing number.
    """
    file = io.StringIO()
    # The default line ending CRLF: with another one, csv leaves a carriage return in a cell unquoted.
    csv.writer(file).writerows([_cell(value) for value in row] for row in (header, *rows))
    return file.getvalue()


def _cell(value: Any) -> Any:
    if isinstance(value, float) and math.isnan(value):
        return ""
    if isinstance(value, str) and value.lstrip(" ").startswith(_FORMULA):
        return f"'{value}"
    return value
