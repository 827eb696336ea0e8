"""The command line that reproduces a run of the page."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from causal_tracer.errors import SettingsError
from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.map_spec import MapSpec
from causal_tracer.request.record import changed_fields
from causal_tracer.request.records import OtherPrompt, TraceRequest
from causal_tracer.web.service.field_checks import CheckedFields

_IN_THE_CLEAN_RUN = {"direction": "corrupt", "corruption": "none"}
# Fields that have no option; fields whose values are objects have none either.
_ONLY_PYTHON = ("elsewhere", "read", "positions", "answer_id")


def trace_command(checked: CheckedFields, model: str, revision: str | None = None) -> str:
    """Return the command that reproduces a run, quoted for a shell; or a comment with the reason if there is none.

    Args:
        checked: The request.
        model: The model, as `load_model` takes it.
        revision: The hub revision to load; None for models that have only one.
    """
    try:
        options = {
            **_of_request(checked.request),
            **_of_maps(checked.specs),
            **_plain(changed_fields(checked.options)),
        }
    except SettingsError as error:
        return f"# {error} Use the Python lines.\n"
    if all(spec.in_clean_run for spec in checked.specs.values()) and _IN_THE_CLEAN_RUN.items() <= options.items():
        # The command's defaults for such maps.
        options = {name: value for name, value in options.items() if name not in _IN_THE_CLEAN_RUN}
    options |= {} if model == "embedded" else {"model": model}
    options |= {} if revision is None else {"revision": revision}
    prompt = _typed(checked.request.prompt)
    words = [word for name, value in options.items() for word in _words(name, value)]
    # Options first: the prompt follows "--", since it may begin with a dash.
    line = shlex.join(["causal-tracer", "trace", *words, "--", prompt]) + "\n"
    return f"# Also traces the map without severed paths.\n{line}" if "severed" in options else line


def _of_request(request: TraceRequest) -> dict[str, Any]:
    """Return the options of a request.

    Raises:
        SettingsError: The command has no option for a part of the request.
    """
    given = changed_fields(replace(request, top_tokens=0))
    given.pop("prompt")
    second = given.pop("second", None)
    found: dict[str, Any] = {"chat": True} if isinstance(request.prompt, ChatText) else {}
    if second is not None:
        if second != OtherPrompt(second.text, second.subject) or not isinstance(second.text, str):
            raise SettingsError("The command takes a second prompt as text, and this one is a conversation.")
        found |= {"second_prompt": second.text, "second_subject": second.subject}
    return {**found, **_plain(given)}


def _of_maps(specs: Mapping[str, MapSpec]) -> dict[str, Any]:
    """Return the options of maps, which the command applies to each of them.

    Raises:
        SettingsError: The maps differ in a setting, or the command has no option for one.
    """
    maps = list(specs.values())
    given = [changed_fields(spec) for spec in maps]
    found: dict[str, Any] = {"kind": tuple(spec.kind for spec in maps)}
    windows = {spec.window for spec in maps}
    if any("window" in each for each in given):
        if len(windows) > 1:
            raise SettingsError("The command takes one window for all maps, and these have several.")
        found["window"] = windows.pop()
    rest = [{name: value for name, value in each.items() if name not in ("kind", "window")} for each in given]
    if any(each != rest[0] for each in rest):
        raise SettingsError("The command takes the same settings for all maps, and these differ.")
    if "severed" in rest[0] and found["kind"] != ("hidden",):
        raise SettingsError("The command can sever paths only in maps of hidden states.")
    source = rest[0].pop("source", None)
    if source is not None and "severed" in rest[0]:
        raise SettingsError("The command cannot sever paths of an ablation.")
    return {**found, **_plain(rest[0]), **({} if source is None else {"ablate": source})}


def _plain(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values after checking that the command's options can hold them.

    Raises:
        SettingsError: A value is an object, or has several parts where the option takes one.
    """
    for name, value in given.items():
        if name in _ONLY_PYTHON or not (isinstance(value, str | int | float) or name == "mean_over"):
            raise SettingsError(f"The command has no option for {name}={value!r}.")
    return dict(given)


def _typed(prompt: Any) -> str:
    return str(prompt.messages[-1]["content"]) if isinstance(prompt, ChatText) else str(prompt)


def _words(name: str, value: Any) -> list[str]:
    """Return an option as words of a command line; an option with several values is repeated."""
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    values = value if isinstance(value, tuple) else () if value is None else (value,)
    return [word for each in values for word in (flag, str(each))]
