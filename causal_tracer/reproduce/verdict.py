"""The verdict of a reproduction: published and measured values, and whether they agree within the tolerance."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from causal_tracer.reproduce.published import Source

Unit = Literal["probability", "points", "layers"]
"""The unit of a check's difference; "points" are percentage points."""

_HEADER = ("quantity", "source", "published", "measured", "difference", "tolerance", "verdict")
_WITHOUT_VERDICT = 4


@dataclass(frozen=True)
class Check:
    """The comparison of one published value with the measured one.

    Attributes:
        quantity: The name of the quantity.
        published: The published value, as text.
        measured: The measured value, as text.
        difference: The absolute difference, in `unit`; NaN if nothing was measured.
        tolerance: The largest difference that counts as agreement, in `unit`.
        unit: The unit of difference and tolerance.
        source: The source of the published value.
    """

    quantity: str
    published: str
    measured: str
    difference: float
    tolerance: float
    unit: Unit
    source: Source

    @property
    def passed(self) -> bool:
        """Whether the values agree; False if the difference is NaN."""
        return self.difference <= self.tolerance


@dataclass(frozen=True)
class Verdict:
    """The outcome of a reproduction.

    Attributes:
        checks: The comparisons that could be made.
        why_none: The reasons why there is no verdict, such as another model than the paper's; empty if there is one.
    """

    checks: tuple[Check, ...]
    why_none: tuple[str, ...] = ()

    @property
    def state(self) -> Literal["PASS", "FAIL", "no verdict"]:
        """The state: "PASS" if all checks agree, "FAIL" if not or without checks, "no verdict" with `why_none`."""
        if self.why_none:
            return "no verdict"
        return "PASS" if self.checks and all(check.passed for check in self.checks) else "FAIL"

    @property
    def largest(self) -> Check | None:
        """The check of a value (not of a layer) with the largest difference; None if no value was measured."""
        values = [check for check in self.checks if check.unit != "layers" and math.isfinite(check.difference)]
        return max(values, key=lambda check: check.difference, default=None)

    @property
    def line(self) -> str:
        """The verdict in one line, with the largest difference."""
        if self.why_none:
            return f"no verdict: {'; '.join(self.why_none)}"
        agree = sum(check.passed for check in self.checks)
        largest = self.largest
        where = "" if largest is None else f", largest difference of a value {_number(largest)} ({largest.quantity})"
        missed = ", ".join(check.quantity for check in self.checks if not check.passed)
        not_met = f", not: {missed}" if missed else ""
        return f"{self.state}: {agree} of {len(self.checks)} checks agree{not_met}{where}"

    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Return the header and the rows of the checks. Without a verdict only the first columns are there."""
        columns = _WITHOUT_VERDICT if self.why_none else len(_HEADER)
        return _HEADER[:columns], [_row(check)[:columns] for check in self.checks]

    def text(self) -> str:
        """Return the table of checks in aligned columns, if there are any, and the verdict as the last line."""
        if not self.checks:
            return self.line
        header, rows = self.table()
        widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
        lines = [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)
        ]
        return "\n".join([*(line.rstrip() for line in lines), "", self.line])

    def to_dict(self) -> dict[str, Any]:
        """Return the verdict as JSON types. A difference that is not finite is null."""
        checks = [
            asdict(check) | {"source": check.source.text, "passed": None if self.why_none else check.passed}
            for check in self.checks
        ]
        for check in checks:
            check["difference"] = check["difference"] if math.isfinite(check["difference"]) else None
        largest = self.largest
        return {
            "verdict": self.state,
            "why_none": list(self.why_none),
            "largest_difference": None if largest is None or self.why_none else largest.difference,
            "checks": checks,
        }


def value_check(
    quantity: str, published: float, measured: float, source: Source, unit: Literal["probability", "points"]
) -> Check:
    """Return the check of a number, with the absolute difference."""
    written = _probability if unit == "probability" else _points
    difference = abs(measured - published)
    return Check(quantity, written(published), written(measured), difference, source.tolerance, unit, source)


def _row(check: Check) -> tuple[str, ...]:
    word = "pass" if check.passed else "FAIL"
    values = check.published, check.measured, _number(check), _tolerance(check)
    return check.quantity, check.source.name, *values, word


def _probability(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4f}".removesuffix("0")


def _points(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f} %"


def _number(check: Check) -> str:
    if not math.isfinite(check.difference):
        return "-"
    return f"{check.difference:.4f}" if check.unit == "probability" else _in_unit(check.difference, check.unit)


def _tolerance(check: Check) -> str:
    return f"{check.tolerance:g}" if check.unit == "probability" else _in_unit(check.tolerance, check.unit)


def _in_unit(value: float, unit: Unit) -> str:
    if unit == "layers":
        return f"{value:.0f} layer{'' if value == 1 else 's'}"
    return f"{value:.2f} points"
