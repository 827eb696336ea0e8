"""Checks of the JSON objects that programs send, against the app's limits too, and the records made of them.

The fields of a request, of its maps and of the options are those of `TraceRequest`, `MapSpec` and `RunOptions`, in the
form that `request.record.to_data` writes. A prompt is a text or a conversation.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from causal_tracer.arguments import as_list, choice, flag, quoted, whole_number
from causal_tracer.corruption import CounterfactualSubjects
from causal_tracer.errors import SettingsError
from causal_tracer.metrics.metric import METRICS
from causal_tracer.request.record import from_data, record_fields
from causal_tracer.request.records import MapSpec, OtherPrompt, RunOptions, Text, TraceRequest, with_clean_run_defaults
from causal_tracer.request.sites import SITES, SiteName
from causal_tracer.web.service.field_checks import CheckedFields
from causal_tracer.web.service.json_values import at_most, check_sizes, object_with, prompt_of, short_list, short_text
from causal_tracer.web.service.limits import most_samples
from causal_tracer.web.service.settings import ServiceSettings
from causal_tracer.web.service.single_runs import MOST_TOP_TOKENS

MOST_MAPS = 12

_LONGEST_NAME = 100
# The answer has this key beside the maps' names.
_RESERVED = "progress"

_REQUEST = "An object with the fields of a request; only prompt is required."
_OPTIONS = "An object with the fields of RunOptions: how the runs are computed."
_MODEL = "One of the app's models (/models); empty takes the first."
_TOP = f"Number of most probable tokens to return, 1 to {MOST_TOP_TOKENS}; 5 if not given."

TRACE_FIELDS: Mapping[str, str] = {
    "request": _REQUEST,
    "maps": "A list of maps, or an object of maps by names of your choice; each is an object with the fields of a map. "
    "If not given, one map of hidden states.",
    "options": _OPTIONS,
    "model": _MODEL,
}
"""The fields of the object that /trace takes, with their descriptions."""

LENS_FIELDS: Mapping[str, str] = {
    "request": _REQUEST,
    "top": _TOP,
    "corrupted": "true reads the corrupted run instead of the clean run.",
    "restored": "[row, layer] of a cell: reads the run in which this cell of the map is restored instead.",
    "map": "The map that restored is a cell of: an object with the fields of a map; hidden states if not given.",
    "options": _OPTIONS,
    "model": _MODEL,
}
"""The fields of the object that /lens takes, with their descriptions."""

PATCH_FIELDS: Mapping[str, str] = {
    "source": "The prompt whose activations are taken: a text or a conversation.",
    "base": "The prompt that is run with these activations patched in.",
    "pairs": "A list of [[source token, source layer], [base token, base layer]]; for heads, each cell is "
    "[token, layer, head]. Negative tokens count from the end.",
    "site": 'Which activations: "hidden" (if not given), "mlp", "attention" or "head".',
    "answers": "A list of texts or token ids whose probabilities are read; if not given, both prompts' own answers.",
    "top": _TOP,
    "model": _MODEL,
}
"""The fields of the object that /patch takes, with their descriptions."""


@dataclass(frozen=True)
class LensRequest:
    """A checked request to /lens; fields as in `CausalTracer.lens`."""

    request: TraceRequest
    top: int
    corrupted: bool
    restored: tuple[int, int] | None
    spec: MapSpec
    options: RunOptions
    model: Any


@dataclass(frozen=True)
class PatchRequest:
    """A checked request to /patch; fields as in `CausalTracer.patch`."""

    source: Text
    base: Text
    pairs: list[Any]
    site: SiteName
    answers: list[str | int] | None
    top: int
    model: Any


def check_trace(asked: Any, settings: ServiceSettings) -> CheckedFields:
    """Return the records of a JSON object sent to /trace.

    Raises:
        SettingsError: A field is unknown, or its value is invalid or over one of the app's limits.
        PromptError: A text is not a string, or is too long.
    """
    given = _task("/trace", asked, TRACE_FIELDS, settings)
    specs = _maps(given.get("maps"))
    request = _request(given, specs.values(), settings)
    return CheckedFields(request, specs, _options(given, settings), given.get("model", ""))


def check_lens(asked: Any, settings: ServiceSettings) -> LensRequest:
    """Return the checked request of a JSON object sent to /lens; errors as in `check_trace`."""
    given = _task("/lens", asked, LENS_FIELDS, settings)
    spec = _map("map", _or_empty(given.get("map")))
    cell = given.get("restored")
    if cell is not None:
        numbers = [whole_number("Each number of restored", number) for number in as_list("restored", cell)]
        if len(numbers) != 2:
            raise SettingsError(f"restored must be [row, layer] (given: {quoted(cell)}).")
        cell = (numbers[0], numbers[1])
    return LensRequest(
        _request(given, [spec], settings),
        _top(given),
        flag("corrupted", given.get("corrupted", False)),
        cell,
        spec,
        _options(given, settings),
        given.get("model", ""),
    )


def check_patch(asked: Any, settings: ServiceSettings) -> PatchRequest:
    """Return the checked request of a JSON object sent to /patch; errors as in `check_trace`."""
    given = _task("/patch", asked, PATCH_FIELDS, settings)
    for name in ("source", "base", "pairs"):
        if name not in given:
            raise SettingsError(f"/patch needs {name!r}. {PATCH_FIELDS[name]}")
    answers = given.get("answers")
    if answers is not None:
        answers = [_answer("Each of answers", answer) for answer in short_list("answers", answers)]
    site = choice("site", given.get("site", "hidden"), [name for name, each in SITES.items() if not each.blocks])
    return PatchRequest(
        prompt_of("source", given["source"]),
        prompt_of("base", given["base"]),
        list(as_list("pairs", given["pairs"])),
        SITES[site].name,
        answers,
        _top(given),
        given.get("model", ""),
    )


def _task(endpoint: str, asked: Any, known: Mapping[str, str], settings: ServiceSettings) -> dict[str, Any]:
    if not isinstance(asked, Mapping):
        example = '{"request": {"prompt": "..."}}' if "request" in known else '{"source": "...", "base": "...", ...}'
        raise SettingsError(f"{endpoint} takes one JSON object, such as {example} (given: {quoted(asked)}).")
    check_sizes(asked, settings)
    return object_with(f"The object that {endpoint} takes", asked, known)


def _or_empty(value: Any) -> Any:
    return {} if value is None else value


def _maps(given: Any) -> dict[str, MapSpec]:
    """Return the maps by name; those of a list are named by their kinds."""
    if given is None:
        return {"hidden": MapSpec()}
    if isinstance(given, Mapping):
        named = {_map_name(name): _map(f"maps.{name}", each) for name, each in given.items()}
    else:
        named = {}
        for number, each in enumerate(as_list("maps", given)):
            spec = _map(f"maps[{number}]", each)
            same = sum(other.kind == spec.kind for other in named.values())
            named[spec.kind if not same else f"{spec.kind}-{same + 1}"] = spec
    if not 0 < len(named) <= MOST_MAPS:
        raise SettingsError(
            f"maps has {len(named)} maps. Give 1 to {MOST_MAPS}, or leave it out for one of hidden states."
        )
    return named


def _map_name(name: str) -> str:
    if not name.strip() or len(name) > _LONGEST_NAME or name == _RESERVED:
        raise SettingsError(
            f"{quoted(name)} cannot be a map's name. Give a text of 1 to {_LONGEST_NAME} characters other than "
            f"{_RESERVED!r}."
        )
    return name


def _map(name: str, given: Any) -> MapSpec:
    return from_data(MapSpec, object_with(name, given, record_fields(MapSpec)))


def _options(given: Mapping[str, Any], settings: ServiceSettings) -> RunOptions:
    options = from_data(RunOptions, object_with("options", _or_empty(given.get("options")), record_fields(RunOptions)))
    if options.batch_size is None:
        return replace(options, batch_size=settings.batch_size)
    at_most("options.batch_size", options.batch_size, "batch_size", settings)
    return options


def _request(given: Mapping[str, Any], specs: Collection[MapSpec], settings: ServiceSettings) -> TraceRequest:
    asked = object_with("request", _or_empty(given.get("request")), record_fields(TraceRequest))
    if "prompt" not in asked:
        raise SettingsError('request needs a prompt. Give one, such as {"request": {"prompt": "..."}}.')
    made = {**asked, "prompt": prompt_of("prompt", asked["prompt"])}
    for name in ("second", "placebo"):
        if asked.get(name) is not None:
            other = object_with(f"request.{name}", asked[name], [item.name for item in fields(OtherPrompt)])
            made[name] = from_data(OtherPrompt, {**other, "text": prompt_of(f"{name}.text", other.get("text"))})
    for name in ("answer", "foil"):
        if isinstance(asked.get(name), str):
            short_text(name, asked[name])
    if "mean_over" in asked:
        made["mean_over"] = tuple(short_list("mean_over", asked["mean_over"]))
    if "metric" in asked:
        choice("metric", asked["metric"], METRICS)
    if "corruption" in asked and not isinstance(asked["corruption"], str | Mapping):
        raise SettingsError(
            f"corruption must be a name, or an object with its class (given: {quoted(asked['corruption'])})."
        )
    # Nothing is corrupted only if all maps are made in the clean run.
    made = with_clean_run_defaults(made) if all(spec.in_clean_run for spec in specs) else made
    request = from_data(TraceRequest, made)
    at_most("samples", most_samples(request), "max_samples", settings)
    if isinstance(request.corruption, CounterfactualSubjects):
        at_most("The number of other subjects", len(request.corruption.subjects), "max_samples", settings)
    if request.top_tokens > MOST_TOP_TOKENS:
        raise SettingsError(
            f"top_tokens={request.top_tokens} is over this app's limit of {MOST_TOP_TOKENS}. Give less."
        )
    return request


def _answer(name: str, value: Any) -> str | int:
    return short_text(name, value) if isinstance(value, str) else whole_number(name, value)


def _top(given: Mapping[str, Any]) -> int:
    return whole_number("top", given.get("top", 5), 1, MOST_TOP_TOKENS)
