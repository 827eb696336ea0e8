"""The gallery: stored results, each with its settings and one sentence on what it shows.

`examples/make_stored_maps.py` computes the results. A result is read only when it is opened.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from causal_tracer.errors import SettingsError
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.web.service.app_fields import Fields
from causal_tracer.web.service.figures import Flows
from causal_tracer.web.service.stored import STORED_PROMPT, STORED_SUBJECT

FOLDER = files("causal_tracer.web") / "stored" / "gallery"
PICTURES = "pictures.json"
"""The file with the thumbnails of all entries."""

_GEMMA, _CHAT_MODEL = "embedded:gemma-3-270m", "embedded:smollm2-135m-instruct"
_CLASSIC = {"model": _GEMMA, "prompt": STORED_PROMPT, "subject": STORED_SUBJECT}


@dataclass(frozen=True)
class GalleryEntry:
    """One stored result of the gallery.

    Attributes:
        name: Its name in files and on the page.
        title: Its heading.
        sentence: What it shows, as a sentence.
        fields: Its settings, by the names of `APP_FIELDS`.
    """

    name: str
    title: str
    sentence: str
    fields: Fields


GALLERY = (
    GalleryEntry(
        "classic",
        "The classic example",
        "The fact is in two places: restoring “Needle” in early layers brings back 73% of the answer, and the last "
        "token in late layers all of it.",
        {**_CLASSIC, "kind": "hidden"},
    ),
    GalleryEntry(
        "carried",
        "A fact carried by attention",
        "Attention at the last token brings back 89% of “New” (York), and the MLPs at the museum's name at most 11%.",
        {
            "model": _GEMMA,
            "prompt": "The Metropolitan Museum of Art is located in the city of",
            "subject": "The Metropolitan Museum of Art",
            "kind": "all",
        },
    ),
    GalleryEntry(
        "six-tokens",
        "A subject of six tokens",
        "Of the subject's six tokens only the last one, “Familia”, brings “Barcelona” back: 70% of it, and no other "
        "one more than 5%.",
        {
            "model": _GEMMA,
            "prompt": "The Basilica of the Sagrada Familia is located in the city of",
            "subject": "Basilica of the Sagrada Familia",
            "kind": "hidden",
        },
    ),
    GalleryEntry(
        "chinese",
        "A Chinese prompt",
        "“The capital and largest city of France is”: one token, 法国 (France), brings “巴黎” (Paris) back.",
        {"model": _GEMMA, "prompt": "法国的首都和最大的城市是", "subject": "法国", "kind": "hidden"},
    ),
    GalleryEntry(
        "arabic",
        "An Arabic prompt",
        "“The capital of Iraq is Baghdad, and the capital of Egypt is”: مصر (Egypt) brings “القاهرة” (Cairo) back.",
        {"model": _GEMMA, "prompt": "عاصمة العراق هي بغداد، وعاصمة مصر هي", "subject": "مصر", "kind": "hidden"},
    ),
    GalleryEntry(
        "chat",
        "A chat message",
        "With noise on “France” the model no longer says Paris (P falls from 0.15 to 0.02) but Rome, the first of the "
        "three; “France” restored brings Paris back.",
        {
            "model": _CHAT_MODEL,
            "prompt": "Which city is the capital of France: Rome, Paris or Berlin?",
            "subject": "France",
            "chat": True,
            "kind": "hidden",
        },
    ),
    GalleryEntry(
        "pair",
        "A counterfactual pair",
        "The last token of the Space Needle's prompt, put into the Eiffel Tower's, turns Paris into Seattle; of the "
        "subject's tokens none gets further than 53% of the way.",
        {**_CLASSIC, "second_prompt": "The Eiffel Tower is located in the city of", "kind": "hidden"},
    ),
    GalleryEntry(
        "heads",
        "One head",
        "A single head, head 1 of layer 12, brings back all of “Mary”, the name that is not repeated.",
        {
            "model": _GEMMA,
            "prompt": "When Mary and John went to the store, John gave a drink to",
            "subject": "Mary",
            "kind": "head",
        },
    ),
    GalleryEntry(
        "severed",
        "Severed paths",
        "With its MLPs severed, “Needle” brings back 39% instead of 73%: much of the fact passes through them.",
        {**_CLASSIC, "severed": "mlp", "kind": "hidden"},
    ),
    GalleryEntry(
        "blocked",
        "Attention knockout",
        "Where the last token may not attend to “Needle” around layer 10, the probability of Seattle falls from 0.47 "
        "to 0.06.",
        {**_CLASSIC, "kind": "knockout"},
    ),
    GalleryEntry(
        "unread",
        "A map that must not be read",
        "The model hardly gives this answer (P = 0.04 in the clean run), so the map's pattern says nothing about a "
        "fact.",
        {"model": _GEMMA, "prompt": "Beats Music is owned by", "answer": "Apple", "kind": "hidden"},
    ),
    GalleryEntry(
        "noise",
        "A misleading noise level",
        "With about ten times the automatic noise the MLPs at “Needle” seem to do nothing; at the automatic level they "
        "bring back 55%.",
        {**_CLASSIC, "noise": 30.0, "kind": "mlp"},
    ),
)
"""The entries, in the order in which they are shown."""


def gallery_entry(name: str) -> GalleryEntry:
    """Return the entry with this name.

    Raises:
        SettingsError: There is no such entry.
    """
    for entry in GALLERY:
        if entry.name == name:
            return entry
    raise SettingsError(f"The gallery has no result {name!r}. It has {', '.join(entry.name for entry in GALLERY)}.")


def gallery_flows(entry: GalleryEntry) -> Flows:
    """Return the stored maps of an entry, by kind."""
    packed = (FOLDER / file_name(entry)).read_bytes()
    flows = [HiddenFlow.from_dict(data) for data in json.loads(gzip.decompress(packed))]
    return {flow.kind: flow for flow in flows}


def gallery_pictures() -> Mapping[str, tuple[str, ...]]:
    """Return the thumbnails of the entries by name, as `thumbnails.levels` gives them."""
    stored = json.loads((FOLDER / PICTURES).read_text(encoding="utf-8"))
    return {name: tuple(grids) for name, grids in stored.items()}


def file_name(entry: GalleryEntry) -> str:
    """Return the name of the file that holds an entry's maps."""
    return f"{entry.name}.json.gz"
