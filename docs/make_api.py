"""Write docs/api.md from the docstrings: `python docs/make_api.py`. A test holds the page to what this makes."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

MODULES = (
    "causal_tracer",
    "causal_tracer.prompts.chat",
    "causal_tracer.corruption",
    "causal_tracer.study.counterfactuals",
    "causal_tracer.metrics.metric",
    "causal_tracer.experiment.calibration",
    "causal_tracer.results.noise_calibration",
    "causal_tracer.results.analysis",
    "causal_tracer.results.top_tokens",
    "causal_tracer.plots.science",
    "causal_tracer.errors",
)
PAGE = Path(__file__).parent / "api.md"


def public_names(module_name: str) -> list[str]:
    """The names a module offers: its `__all__`, else what it defines without an underscore."""
    module = importlib.import_module(module_name)
    if hasattr(module, "__all__"):
        return sorted((name for name in module.__all__ if not name.startswith("_")), key=str.lower)
    defined = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module_name
    ]
    return defined + [name for name in constants(module_name) if not name.startswith("_")]


def constants(module_name: str) -> dict[str, str]:
    """The module's constants that have a docstring under them, with it."""
    body = ast.parse(inspect.getsource(importlib.import_module(module_name))).body
    found = {}
    for statement, after in pairwise(body):
        targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        says = (
            isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant) and isinstance(after.value.value, str)
        )
        if says and isinstance(statement, (ast.Assign, ast.AnnAssign)) and isinstance(targets[0], ast.Name):
            found[targets[0].id] = inspect.cleandoc(after.value.value)
    return found


def page() -> str:
    """The whole page."""
    parts = [
        "# Reference\n\nMade of the docstrings by `docs/make_api.py`. [Terms](terms/README.md) explains the words.\n"
    ]
    for module_name in MODULES:
        module = importlib.import_module(module_name)
        parts.append(f"## {module_name}\n\n{_text(module.__doc__)}")
        for name in public_names(module_name):
            parts.extend(_entry(module_name, name, getattr(module, name)))
    return "\n".join(parts)


def _entry(module_name: str, name: str, value: Any) -> Iterator[str]:
    if inspect.isclass(value) or inspect.isfunction(value):
        yield f"### {name}\n\n```python\n{_signature(name, value)}\n```\n\n{_text(_said(value))}"
        if inspect.isclass(value) and not issubclass(value, BaseException):
            yield from _members(name, value)
    else:
        source = next((m for m in (module_name, *MODULES) if name in constants(m)), None)
        said = constants(source)[name] if source else _described_elsewhere(name)
        yield f"### {name}\n\n{_text(said)}"


def _said(value: Any) -> str:
    """A docstring; of a record with what is said under each of its fields."""
    fields = getattr(value, "__pydantic_fields__", {})
    lines = [f"    {name}: {' '.join(str(field.description).split())}" for name, field in fields.items()]
    return "\n".join([inspect.getdoc(value) or "", *(["", "Attributes:", *lines] if lines else [])])


def _described_elsewhere(name: str) -> str:
    """The docstring of a constant in the modules that the package's names come from."""
    for path in sorted((PAGE.parent.parent / "causal_tracer").rglob("*.py")):
        module_name = ".".join(path.relative_to(PAGE.parent.parent).with_suffix("").parts).removesuffix(".__init__")
        if f"\n{name}" in path.read_text(encoding="utf-8") and name in (said := constants(module_name)):
            return said[name]
    return ""


def _members(name: str, value: type) -> Iterator[str]:
    if said := inspect.getdoc(vars(value).get("__init__")):
        yield _text(said)
    for member, found in vars(value).items():
        function = getattr(found, "fget", None) or getattr(found, "__func__", None) or found
        documented = inspect.isfunction(function) and function.__doc__
        if documented and not member.startswith("_"):
            kind = "" if isinstance(found, property) else _signature(member, function).removeprefix(member)
            yield f"#### {name}.{member}\n\n```python\n{member}{kind}\n```\n\n{_text(inspect.getdoc(function))}"


def _signature(name: str, value: Any) -> str:
    try:
        signature = inspect.signature(value)
    except (TypeError, ValueError):
        return name
    parameters = [p.replace(annotation=p.empty) if p.name == "self" else p for p in signature.parameters.values()]
    text = f"{name}{signature.replace(parameters=parameters)}".replace("'", "")
    text = re.sub(r"<function .*? at 0x\w+>", "...", text)  # an address differs from run to run
    return text if len(text) < 100 else text.replace("(", "(\n    ", 1).replace(", ", ",\n    ")


def _text(docstring: str | None) -> str:
    """A docstring as it stands: its lists are indented, which Markdown would join."""
    return f"```text\n{(docstring or '').strip()}\n```\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
