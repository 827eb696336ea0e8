"""Compute the results stored in the web app, and write them to the app's folder `stored`.

    python examples/make_stored_maps.py [name ...]

A name is a kind (for the map that the page opens with) or an entry of the gallery. Without names, all results are
computed. Each takes one or two minutes on two cores. One test recomputes some of the cells; another one checks the
gallery's sentences against the numbers.
"""

from __future__ import annotations

import gzip
import json
import sys
from functools import cache, partial
from pathlib import Path

from causal_tracer import CausalTracer
from causal_tracer.request.sites import SITES, SiteName
from causal_tracer.web.page.thumbnails import levels
from causal_tracer.web.service import gallery, stored
from causal_tracer.web.service.field_checks import check_fields
from causal_tracer.web.service.settings import ServiceSettings

FOLDER = Path(stored.__file__).parents[1] / "stored"


def main(names: list[str]) -> None:
    """Trace the page's first example for each kind, and the entries of the gallery."""
    for kind in SITES:
        if not names or kind in names:
            make_map(kind)
    for entry in gallery.GALLERY:
        if not names or entry.name in names:
            make_entry(entry)


def make_map(kind: SiteName) -> None:
    """Trace the example that the page opens with."""
    tracer = tracer_of("embedded")
    flow = tracer.trace(stored.stored_request(kind), kind=kind, progress=partial(_report, kind))
    flow.save(FOLDER / stored.stored_name(kind))
    print(f"\r{kind}: total effect {flow.total_effect:.4f}, noise {flow.settings.noise:.4f}")


def make_entry(entry: gallery.GalleryEntry) -> None:
    """Trace an entry of the gallery, as the app does, and compute its thumbnail."""
    checked = check_fields(entry.fields, ServiceSettings())
    tracer = tracer_of(checked.model)
    flows = tracer.trace_maps(checked.request, checked.specs, checked.options, progress=partial(_report, entry.name))
    folder = FOLDER / "gallery"
    folder.mkdir(exist_ok=True)
    data = json.dumps([flow.to_dict() for flow in flows.values()], ensure_ascii=False, allow_nan=False)
    # mtime=0: the same numbers give the same file.
    (folder / gallery.file_name(entry)).write_bytes(gzip.compress(data.encode(), mtime=0))
    pictures = folder / gallery.PICTURES
    known = json.loads(pictures.read_text(encoding="utf-8")) if pictures.exists() else {}
    known[entry.name] = levels(tuple(flows.values()))
    known = {each.name: known[each.name] for each in gallery.GALLERY if each.name in known}
    pictures.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
    for kind, flow in flows.items():
        peaks = "; ".join(f"{peak.row_name} {peak.layer}: {peak.score:.3f} ({peak.share:.0%})" for peak in flow.peaks())
        print(f"\r{entry.name}, {kind}: clean {flow.high_score:.3f}, corrupted {flow.low_score:.3f}. {peaks}")


@cache
def tracer_of(model: str) -> CausalTracer:
    """Return a tracer of an embedded model."""
    return CausalTracer.from_pretrained(model)


def _report(name: str, done: int, total: int) -> None:
    print(f"\r{name}: {done} of {total}", end="", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
