"""The page's own CSS and JavaScript, small files beside this one."""

from __future__ import annotations

from functools import cache
from importlib.resources import files


@cache
def static_text(name: str) -> str:
    """Return the text of a file of `static/`."""
    return (files("causal_tracer.web") / "static" / name).read_text(encoding="utf-8")
