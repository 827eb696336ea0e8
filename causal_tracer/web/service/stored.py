"""The stored maps of the example that the page opens with, which need no model."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from importlib.resources import as_file, files

from causal_tracer.request.records import TraceRequest
from causal_tracer.request.sites import SITES, SiteName, require_site
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.web.service.app_fields import TOP_TOKENS

STORED_PROMPT = "The Space Needle is located in the city of"
STORED_SUBJECT = "The Space Needle"


def stored_request(kind: SiteName) -> TraceRequest:
    """Return the request of a stored map, which has the paper's window."""
    request = TraceRequest(STORED_PROMPT, STORED_SUBJECT, top_tokens=TOP_TOKENS)
    return replace(request, direction="corrupt", corruption="none") if SITES[kind].blocks else request


def stored_name(kind: SiteName) -> str:
    """Return the file name of a stored map."""
    return f"space_needle_{require_site(kind)}.json"


@cache
def stored_map(kind: SiteName) -> HiddenFlow:
    """Return the stored map of a kind, made by `examples/make_stored_maps.py`."""
    with as_file(files("causal_tracer.web") / "stored" / stored_name(kind)) as path:
        return HiddenFlow.load(path)
