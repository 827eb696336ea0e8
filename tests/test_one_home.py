"""Some rules are implemented in one module of the package only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "causal_tracer"

HOMES = {
    "the cache folder": (r"user_cache_|environ\S*CACHE|CACHE_VARIABLE =", {"files.py"}),
    # `Path.replace` takes one argument, `str.replace` two, and records are replaced by name.
    "atomic writes": (r"os\.replace|os\.rename|mkstemp|NamedTemporaryFile|\.replace\([^,()=]*\)", {"files.py"}),
    # A journal is appended to, line by line.
    "fsync": (r"os\.fsync", {"files.py", "study/journal.py"}),
    # A converted model is written into a temporary folder, which is moved into place when it is complete.
    "writing files": (
        r"\.write_(text|bytes)\(|\bopen\((?!os\.devnull)[^)]*[\"'][wxa]b?\+?[\"']",
        {
            "files.py",
            "study/journal.py",
            "loading/converted.py",
            "loading/embedded.py",
            "loading/gguf_conversion.py",
        },
    ),
    "standard errors": (r"correction=|\.std\(dim|\.sem\(|1\.96|def student_t", {"results/intervals.py"}),
    "CSV": (r"csv\.writer|DictWriter|\.to_csv\(", {"results/tables.py"}),
    "standalone HTML": (
        r"include_plotlyjs|get_plotlyjs|\.to_html\(|\.write_html\(|(?i:<!doctype)",
        {"plots/pages.py"},
    ),
}


@pytest.mark.parametrize("rule", HOMES)
def test_a_rule_has_one_home(rule: str) -> None:
    pattern, homes = HOMES[rule]
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        lines = [line.strip() for line in path.read_text("utf-8").splitlines() if re.search(pattern, line)]
        if lines:
            found[path.relative_to(PACKAGE).as_posix()] = lines
    assert homes <= found.keys(), f"{homes - found.keys()}: not needed any more"
    elsewhere = {name: lines for name, lines in found.items() if name not in homes}
    assert not elsewhere, f"{rule} is the business of {', '.join(sorted(homes))}"
