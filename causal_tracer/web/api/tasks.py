"""The JSON objects that /trace, /lens and /patch take, and the descriptions published to programs.

Gradio publishes the objects' fields with the types given here; `web.service.json_requests` checks the values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

from causal_tracer.request.record import record_fields
from causal_tracer.request.records import MapSpec, OtherPrompt, RunOptions, TraceRequest
from causal_tracer.web.service.app_fields import AppField
from causal_tracer.web.service.json_requests import LENS_FIELDS, PATCH_FIELDS, TRACE_FIELDS

Object = dict[str, Any]


class TraceTask(TypedDict, total=False):
    """The object that /trace takes."""

    request: Object
    maps: list[Object] | dict[str, Object]
    options: Object
    model: str


class LensTask(TypedDict, total=False):
    """The object that /lens takes."""

    request: Object
    top: int
    corrupted: bool
    restored: list[int] | None
    map: Object
    options: Object
    model: str


class PatchTask(TypedDict, total=False):
    """The object that /patch takes."""

    source: str | Object
    base: str | Object
    pairs: list[list[list[int]]]
    site: str
    answers: list[str | int] | None
    top: int
    model: str


_CONVERSATION = (
    'A prompt is a text or a conversation: {"messages": [{"role": "user", "content": "..."}], "thinking": null, '
    '"assistant_prefix": ""}.'
)

ABOUT_TRACE = (
    "Trace one prompt in one or several maps, with all settings: maps of any kind (hidden states, MLP, attention, "
    "heads, attention knockout), noise or a second prompt, ablation, controls. "
    'Takes one JSON object, at least {"request": {"prompt": "The Space Needle is located in the city of"}}. For other '
    'maps, add for example "maps": [{"kind": "mlp"}, {"kind": "attention"}]. '
    "Returns the map as HiddenFlow.to_dict writes it: scores [token][layer], null for cells not computed yet. Several "
    'maps are returned as an object by name: the given names, or each map\'s kind. The field "progress" is added, with '
    "done, total, seconds, cached, waiting and position. Partial results are streamed; the last one is complete."
)
"""The description of /trace."""

ABOUT_LENS = (
    "Read the residual stream after each block through the model's own final norm and LM head (logit lens), in the "
    "clean run, the corrupted run, or the run with one cell restored. "
    'Takes one JSON object, at least {"request": {"prompt": "The Space Needle is located in the city of"}}. '
    "Returns LogitLens.to_dict: token ids and probabilities [token][layer][top], entropy, and the answer's "
    "probability and rank."
)
"""The description of /lens."""

ABOUT_PATCH = (
    "Run one prompt with activations of another prompt's clean run patched in: any cell into any cell. "
    'Takes one JSON object, for example {"source": "Paris is the capital of", "base": "Rome is the capital of", '
    '"pairs": [[[1, 3], [1, 3]]]}. '
    "Returns PatchedRun.to_dict: the answers' probabilities in the source run, the base run and the patched run, and "
    "the logit lens of the patched run."
)
"""The description of /patch."""


@dataclass(frozen=True)
class TaskField(AppField):
    """An argument that is one JSON object.

    Attributes:
        field_help: A description of each of the object's fields.
    """

    field_help: Mapping[str, str] = field(default_factory=dict)


def _fields(record: type[Any]) -> str:
    listed = (f"{name} ({' '.join(str(info.description).split())})" for name, info in record_fields(record).items())
    return ", ".join(listed)


_FIELD_HELP: Mapping[str, str] = {
    "request": f"Fields: {_fields(TraceRequest)}. "
    'As objects: samples {"width": 0.02, "step": 10, "most": 100}, noise {"subjects": ["..."], "multiplier": 3}, '
    'corruption {"class": "CounterfactualSubjects", "subjects": ["..."]}. '
    f"Fields of second and placebo: {_fields(OtherPrompt)}. {_CONVERSATION}",
    "maps": f"Fields of a map: {_fields(MapSpec)}.",
    "map": f"Fields: {_fields(MapSpec)}.",
    "options": f"Fields: {_fields(RunOptions)}.",
    "source": _CONVERSATION,
    "base": _CONVERSATION,
}


def _task(kind: type[Any], known: Mapping[str, str]) -> dict[str, AppField]:
    field_help = {name: f"{about} {_FIELD_HELP.get(name, '')}".strip() for name, about in known.items()}
    return {
        "task": TaskField(kind, None, "Task", f"An object with the fields {', '.join(known)}.", field_help=field_help)
    }


TRACE_TASK = _task(TraceTask, TRACE_FIELDS)
LENS_TASK = _task(LensTask, LENS_FIELDS)
PATCH_TASK = _task(PatchTask, PATCH_FIELDS)
