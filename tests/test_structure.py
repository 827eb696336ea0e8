"""Limits of the code: short modules and functions, and test modules that do not import each other."""

from __future__ import annotations

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent
MODULES = sorted((TESTS.parent / "causal_tracer").rglob("*.py"))


def test_no_module_is_longer_than_300_lines_and_no_function_than_60() -> None:
    assert MODULES
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert text.count("\n") <= 300, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


def test_no_test_module_imports_another() -> None:
    for path in TESTS.rglob("*.py"):
        names = re.findall(r"^\s*(?:from|import) (tests[\w.]*)", path.read_text(encoding="utf-8"), re.MULTILINE)
        assert not [name for name in names if ".test_" in name or name == "tests"], path
