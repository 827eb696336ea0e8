"""Links that reproduce a result, and the Python lines that do.

A link is a query string of plain names and values. Whoever opens one gets it checked like anything else that was typed:
what is no value of its name is reported and left out.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, get_args
from urllib.parse import urlencode, urlsplit, urlunsplit

from causal_tracer.answer_forms import AnswerForm
from causal_tracer.chat import ChatText
from causal_tracer.corruption import CORRUPTIONS
from causal_tracer.errors import SettingsError
from causal_tracer.flow import HiddenFlow
from causal_tracer.layers import KINDS
from causal_tracer.request import MapSpec, TraceRequest
from causal_tracer.web.asking import ASKED_KINDS, CORRUPTION_CHOICES, CheckedInput, TraceInput, shown

_SPACE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
_WHOLE = re.compile(r"[0-9]{1,10}")
_NUMBER = re.compile(r"[0-9]{1,17}(\.[0-9]{1,25})?([eE][+-]?[0-9]{1,3})?")
_LONGEST_TEXT = 20_000


@dataclass(frozen=True)
class ParsedLink:
    """What a link asks for.

    Attributes:
        asked: The input, with the defaults where the link says nothing or nothing sensible.
        problems: What was left out, and why.
        given: Whether the link asks for anything at all.
        revision: The revision of the model that the link was made with; empty where it has none.
    """

    asked: TraceInput
    problems: tuple[str, ...] = ()
    given: bool = False
    revision: str = ""


def page_url(request_url: str, environ: Mapping[str, str] = os.environ) -> str:
    """The address of the page without its query: on a Space the Space page's own, which hands its query on.

    Empty, for a link to the page that it stands on, where `request_url` is no address of a page.
    """
    space = environ.get("SPACE_ID", "")
    if _SPACE.fullmatch(space):
        return f"https://huggingface.co/spaces/{space}"
    parts = urlsplit(request_url)
    if parts.scheme not in ("http", "https"):
        return ""
    return urlunsplit((parts.scheme, parts.netloc, parts.path, "", ""))


def share_link(asked: TraceInput, page: str, *, revision: str | None = None) -> str:
    """The link to a page that reproduces what was asked for.

    Args:
        asked: What was asked for, valid.
        page: The page's address (`page_url`).
        revision: The model's revision, so that whoever opens the link is told if it has changed.
    """
    default = TraceInput("")
    fields: dict[str, Any] = {"prompt": asked.prompt, "subject": asked.subject or "", "model": asked.model}
    fields["revision"] = revision or ""
    fields["kind"] = asked.kind
    if isinstance(asked.answer, str):
        fields["answer"] = asked.answer
    elif asked.answer is not None:
        fields["answer_id"] = int(asked.answer)
    for name in ("samples", "seed"):
        fields[name] = _plain(getattr(asked, name))
    for name in ("window", "noise", "start_layer", "end_layer", "batch_size"):
        value = getattr(asked, name)
        fields[name] = "" if value == getattr(default, name) else _plain(value)
    if asked.kind == "all" and any(window is not None for window in asked.windows):
        fields["windows"] = ",".join("" if window is None else _plain(window) for window in asked.windows)
    for name in ("subject_tokens_only", "chat"):
        fields[name] = "1" if getattr(asked, name) else ""
    for name in ("occurrence", "corruption", "answer_form"):
        value = getattr(asked, name)
        fields[name] = "" if value == getattr(default, name) else value
    return f"{page}?{urlencode({name: value for name, value in fields.items() if value != ''})}"


def parse_link(query: Mapping[str, Any]) -> ParsedLink:
    """What the query of a page asks for. Never raises: what is wrong is in `problems`; unknown names are not ours."""
    found: dict[str, Any] = {}
    problems: list[str] = []
    revision = ""
    for name, (field, read) in _READERS.items():
        if name not in query:
            continue
        text = query[name]
        try:
            value = read(text if isinstance(text, str) else "")
        except ValueError:
            problems.append(f"{name}={shown(text)} in the link is none of its values, and was left out.")
            continue
        if name == "revision":
            revision = value
        else:
            found[field] = value
    return ParsedLink(replace(TraceInput(""), **found), tuple(problems), bool(found or problems), revision)


def input_of(flow: HiddenFlow, model: str = "") -> TraceInput:
    """What to ask for to get a result again, as far as the app can trace it.

    Args:
        flow: The result, perhaps an uploaded one; of a text, since it does not tell the messages of a conversation.
        model: The name by which the app knows the model; empty takes the result's own.

    Raises:
        SettingsError: It was made in a way that the app does not have.
    """
    settings = flow.settings
    names = {make(settings.noise, settings.seed).description: name for name, make in CORRUPTIONS.items()}
    names["Gaussian noise"] = "gaussian"
    special = (settings.severed, settings.placebo, settings.read, settings.foil, settings.elsewhere)
    plain = (settings.metric, settings.direction, *special) == ("probability", "restore", *(None,) * len(special))
    if settings.corruption not in names or not plain:
        raise SettingsError("This result was made in a way that only the package has, so the app has no link to it.")
    layers = flow.scores.shape[1]
    after = "".join(flow.input_tokens[flow.subject_range[1] :])
    several = len(flow.answer_ids) > 1
    return TraceInput(
        prompt=flow.prompt,
        subject="" if flow.subject_guessed else flow.subject,
        kind=flow.kind,
        samples=settings.samples,
        window=settings.window,
        noise=settings.noise if settings.noise_rule == "given" else None,
        seed=settings.seed,
        subject_tokens_only=settings.subject_tokens_only,
        start_layer=settings.start_layer,
        end_layer=None if settings.end_layer == layers else settings.end_layer,
        model=model or settings.model,
        answer=flow.answer if several else flow.answer_id,
        occurrence="first" if flow.subject in after else "last",
        corruption=names[settings.corruption],
        batch_size=settings.batch_size,
    )


def python_lines(checked: CheckedInput, model: str, revision: str | None = None) -> str:
    """The lines of Python that reproduce a run. Texts stand in them as literals, whatever they are.

    Args:
        checked: What was asked for.
        model: What `load_model` takes.
        revision: The hub revision to load; None for models that have one only.
    """
    request = replace(checked.request, top_tokens=0)
    maps = ", ".join(f"{kind!r}: {_call('MapSpec', spec, ('kind', 'window'))}" for kind, spec in checked.specs.items())
    loading = [repr(model)]
    if revision is not None:
        loading.append(f"revision={revision!r}")
    if checked.noise is not None:
        loading.append(f"noise={checked.noise!r}")
    text, imports = repr(request.text), []
    if isinstance(request.text, ChatText):
        text = f"ChatText.from_user({request.text.messages[-1]['content']!r})"
        imports = ["from causal_tracer.chat import ChatText"]
    names = [name for name in _REQUEST_FIELDS if getattr(request, name) != getattr(TraceRequest(""), name)]
    lines = [
        "from causal_tracer import CausalTracer, MapSpec, TraceRequest, plot_hidden_flow_heatmap",
        *imports,
        "",
        f"tracer = CausalTracer.from_pretrained({', '.join(loading)})",
        "request = TraceRequest(",
        f"    text={text},",
        *(f"    {name}={getattr(request, name)!r}," for name in names),
        ")",
        f"maps = tracer.trace_maps(request, {{{maps}}})",
        "for flow in maps.values():",
        "    print(flow.kind, flow.answer, flow.high_score, flow.low_score, flow.peaks())",
        "    plot_hidden_flow_heatmap(flow)",
    ]
    return "\n".join(lines) + "\n"


_REQUEST_FIELDS = (
    "subject",
    "answer",
    "answer_id",
    "answer_form",
    "samples",
    "seed",
    "batch_size",
    "start_layer",
    "end_layer",
    "subject_tokens_only",
    "occurrence",
    "corruption",
)


def _call(name: str, value: MapSpec, fields: Sequence[str]) -> str:
    return f"{name}({', '.join(repr(getattr(value, field)) for field in fields)})"


def _plain(value: float | None) -> str:
    """A number as short as it can be written and read back the same."""
    if value is None:
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))


def _text(text: str) -> str:
    if len(text) > _LONGEST_TEXT or any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError
    return text


def _number(text: str) -> float:
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not math.isfinite(value):
        raise ValueError
    return value


def _whole(text: str) -> int:
    if not _WHOLE.fullmatch(text):
        raise ValueError
    return int(text)


def _windows(text: str) -> tuple[int | None, ...]:
    parts = text.split(",")
    if len(parts) != len(KINDS):
        raise ValueError
    return tuple(_whole(part) if part else None for part in parts)


def _yes(text: str) -> bool:
    if text not in ("0", "1", "true", "false"):
        raise ValueError
    return text in ("1", "true")


def _choice(*choices: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in choices:
            raise ValueError
        return text

    return read


def _revision(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._/-]{1,100}", text):
        raise ValueError
    return text


# From the link's name to the input's field, and what makes a value of its text.
_READERS: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "prompt": ("prompt", _text),
    "subject": ("subject", _text),
    "model": ("model", _text),
    "revision": ("", _revision),
    "kind": ("kind", _choice(*ASKED_KINDS)),
    "answer": ("answer", _text),
    "answer_id": ("answer", _whole),
    "samples": ("samples", _whole),
    "seed": ("seed", _whole),
    "window": ("window", _whole),
    "windows": ("windows", _windows),
    "noise": ("noise", _number),
    "start_layer": ("start_layer", _whole),
    "end_layer": ("end_layer", _whole),
    "batch_size": ("batch_size", _whole),
    "subject_tokens_only": ("subject_tokens_only", _yes),
    "chat": ("chat", _yes),
    "occurrence": ("occurrence", _choice("first", "last")),
    "answer_form": ("answer_form", _choice(*get_args(AnswerForm))),
    "corruption": ("corruption", _choice(*CORRUPTION_CHOICES)),
}
