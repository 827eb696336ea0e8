"""The documentation is whole and true: names, links, formulas, settings; `test_docs_code.py` runs its code."""

from __future__ import annotations

import importlib
import inspect
import re
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import causal_tracer
from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.metrics.metric import METRICS
from causal_tracer.request.records import MapSpec, TraceRequest
from causal_tracer.request.sites import SITES
from causal_tracer.web.service.settings import ServiceSettings

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PLACES = ("*.md", "docs/**/*.md", "benchmarks/*.md", "spaces/*/*.md", "examples/*.ipynb")
PAGES = sorted(page for place in PLACES for page in ROOT.glob(place))
TERMS = sorted(page for page in (DOCS / "terms").glob("*.md") if page.name != "README.md")


def text_of(name: str) -> str:
    return (DOCS / name).read_text(encoding="utf-8")


# The reference -------------------------------------------------------------------------------------------------------


def referred() -> dict[str, Any]:
    """The objects that the pages of the reference take docstrings from, by their full names."""
    found = {}
    for page in sorted((DOCS / "reference").glob("*.md")):
        for name, options in re.findall(r"^::: (\S+)\n((?:    .*\n)*)", page.read_text("utf-8"), re.MULTILINE):
            try:
                at: Any = importlib.import_module(name)
            except ModuleNotFoundError:
                module, _, last = name.rpartition(".")
                at = getattr(importlib.import_module(module), last)
            found[name] = at
            members = re.search(r"members:(.*?)(?=\n      [a-z]|\Z)", options, re.DOTALL)
            for member in re.findall(r"\w+", members[1]) if members else ():
                found[f"{name}.{member}"] = getattr(at, member)
    return found


def test_the_reference_has_every_public_name_and_each_has_a_docstring() -> None:
    found = referred()
    wanted = {f"causal_tracer.{name}" for name in causal_tracer.__all__ if not name.startswith("_")}
    assert wanted - {"causal_tracer.CausalTracerError"} <= found.keys()
    assert "causal_tracer.errors" in found
    for name, value in found.items():
        if inspect.ismodule(value) or inspect.isclass(value) or inspect.isfunction(value):
            assert len((inspect.getdoc(value) or "").split()) > 2, name


def test_the_kinds_of_maps_are_in_the_reference_with_their_windows() -> None:
    rows = re.findall(r"^\| `\"(\w+)\"`.* \| (\d+) \|$", text_of("reference/requests.md"), re.MULTILINE)
    assert {kind: int(window) for kind, window in rows} == {name: site.window for name, site in SITES.items()}


def test_the_settings_of_the_app_are_all_on_their_page() -> None:
    rows = dict(re.findall(r"^\| `([A-Z_]+)` \| ?([^|]*) \|", text_of("reference/settings.md"), re.MULTILINE))
    fields = ServiceSettings.__dataclass_fields__
    assert rows.keys() == {name.upper() for name in fields}
    for name, field in fields.items():
        if isinstance(field.default, int) and field.default < 2**20:
            shown = {"on": True, "off": False}.get(rows[name.upper()], rows[name.upper()])
            assert int(shown) == field.default, name


# Terms ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", TERMS, ids=lambda page: page.stem)
def test_each_term_has_a_page_with_a_formula_or_a_table_and_is_in_the_index(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert text.startswith("# ")
    assert f"({page.name})" in text_of("terms/README.md")
    if page.stem != "role":
        assert re.search(r"^    \S.* |^\|.*[=()].*\|$", text, re.MULTILINE)


def test_everything_that_can_be_asked_for_by_name_is_on_its_page() -> None:
    for name in CORRUPTIONS:
        assert f"`{name}`" in text_of("terms/corruption.md"), name
    for name in METRICS:
        assert f"| `{name}` |" in text_of("terms/metrics.md"), name
    terms = "".join(page.read_text(encoding="utf-8") for page in TERMS)
    for field in ("severed", "placebo", "direction", "elsewhere"):
        assert field in {*MapSpec.__dataclass_fields__, *TraceRequest.__dataclass_fields__}
        assert f"{field}=" in terms


# Links ---------------------------------------------------------------------------------------------------------------


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings_that_are_there(page: Path) -> None:
    for target, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text(encoding="utf-8")):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), f"{target}#{anchor}"


def test_a_link_out_of_the_site_becomes_the_files_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(DOCS))
    hook = importlib.import_module("outside_links")
    page = SimpleNamespace(file=SimpleNamespace(src_uri="guides/space.md"))
    text = "[table](../../benchmarks/coverage.md#x), [`SECURITY.md`](../../SECURITY.md), [terms](../terms/README.md)"
    assert hook.on_page_markdown(text, page=page) == (
        "table (`benchmarks/coverage.md` in the repository), `SECURITY.md`, [terms](../terms/README.md)"
    )


# The notebook --------------------------------------------------------------------------------------------------------


def notebook() -> Any:
    nbformat = pytest.importorskip("nbformat")
    return nbformat.read(ROOT / "examples" / "causal_tracing.ipynb", as_version=4)


def test_the_notebook_holds_no_outputs() -> None:
    cells = [cell for cell in notebook().cells if cell.cell_type == "code"]
    assert len(cells) >= 5
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)


@pytest.mark.nightly
def test_the_notebook_runs_from_top_to_bottom() -> None:
    nbclient = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    read = notebook()
    client = nbclient.NotebookClient(read, timeout=600, resources={"metadata": {"path": str(ROOT)}})
    client.execute()
    shown = "".join(output.get("text", "") for cell in read.cells for output in cell.get("outputs", ()))
    assert "Seattle" in shown
