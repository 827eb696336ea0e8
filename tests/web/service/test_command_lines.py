"""The command beside a map, read by the command line itself, asks for what the page asks for."""

from __future__ import annotations

import shlex
from dataclasses import replace
from typing import Any

import pytest

from causal_tracer.cli import main as cli
from causal_tracer.cli import trace as trace_cli
from causal_tracer.errors import TraceCancelled
from causal_tracer.request.records import MapSpec, OtherPrompt, RunOptions, TraceRequest
from causal_tracer.web.service.command_lines import trace_command
from causal_tracer.web.service.field_checks import CheckedFields, check_fields
from causal_tracer.web.service.gallery import GALLERY
from causal_tracer.web.service.settings import ServiceSettings

PROMPT, SUBJECT = "The Space Needle is in the city of", "The Space Needle"
AWKWARD = '--it\'s "x" $(rm) `y` \\ !\nThe Space Needle is in'


@pytest.fixture
def read_back(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs a command with a stand-in for the model; returns what the command asked it for."""
    asked: dict[str, Any] = {}

    class Noted:
        def trace_maps(self, request: Any, specs: Any, options: Any, **_: Any) -> Any:
            asked.update(request=request, specs=specs, options=options)
            raise TraceCancelled("It was noted.")

    def load(model: str, revision: str | None, *_: Any, **__: Any) -> Any:
        asked["model"] = (model, revision)
        return Noted()

    monkeypatch.setattr(trace_cli, "load_tracer", load)

    def run(line: str) -> dict[str, Any]:
        words = shlex.split(line, comments=True)
        assert words[:2] == ["causal-tracer", "trace"]
        cli.main(words[1:])
        return asked

    return run


REQUESTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all three": {"kind": "all"},
    "all three, one window": {"kind": "all", "window": 4, "start_layer": 2, "end_layer": 9},
    "heads at a token": {"kind": "head", "token": -2},
    "knockout": {"kind": "knockout", "token": 3, "window": 5},
    "spans": {"kind": "span_knockout"},
    "subject only, first of two": {"subject": "the", "occurrence": "first", "subject_tokens_only": True},
    "corruption": {"corruption": "uniform replacing", "noise": 1.23456789, "samples": 7, "seed": 4294967295},
    "metric": {"metric": "logit difference", "answer": " Rome", "foil": "-1", "answer_form": "exact"},
    "corrupt": {"patch": "corrupt", "kind": "mlp"},
    "zero": {"patch": "zero", "kind": "attention"},
    "mean": {"patch": "mean", "mean_prompts": "One text\n--another one"},
    "second prompt": {"second_prompt": "The Colosseum is in the city of", "second_subject": "The Colosseum"},
    "another subject": {"second_subject": "Big Ben", "metric": "rank"},
    "chat": {"chat": True, "prompt": AWKWARD},
    "awkward": {"prompt": AWKWARD},
    "subject like an option": {"prompt": "--help is in", "subject": "--help", "answer": "-s"},
}


def checked(**changes: Any) -> CheckedFields:
    return check_fields({"prompt": PROMPT, "subject": SUBJECT, **changes}, ServiceSettings())


def as_asked(fields: CheckedFields) -> tuple[Any, ...]:
    """Return the request as a command can make it: without the top tokens, which the app adds for its page."""
    return replace(fields.request, top_tokens=0), list(fields.specs.values()), fields.options


@pytest.mark.parametrize("name", REQUESTS)
def test_the_command_asks_for_the_same(read_back: Any, name: str) -> None:
    fields = checked(**REQUESTS[name])
    asked = read_back(trace_command(fields, "some/model", "r1"))
    request = asked["request"]
    if request.noise is not None:
        # Options are texts: read as a number by the tracer.
        request = replace(request, noise=float(request.noise))
    assert (request, list(asked["specs"].values()), asked["options"]) == as_asked(fields)
    assert asked["model"] == ("some/model", "r1")


def test_a_severed_map_comes_with_the_one_that_is_not(read_back: Any) -> None:
    line = trace_command(checked(severed="mlp"), "embedded")
    assert "without severed paths" in line
    asked = read_back(line)
    assert list(asked["specs"].values()) == [MapSpec("hidden"), MapSpec("hidden", severed="mlp")]
    assert asked["model"] == ("embedded", None)


@pytest.mark.parametrize("entry", GALLERY, ids=lambda entry: entry.name)
def test_the_gallery_has_commands(read_back: Any, entry: Any) -> None:
    fields = check_fields(entry.fields, ServiceSettings())
    asked = read_back(trace_command(fields, str(fields.model)))
    noise = asked["request"].noise
    request = replace(asked["request"], noise=None if noise is None else float(noise))
    assert request == as_asked(fields)[0]
    assert list(asked["specs"].values())[-1] == list(fields.specs.values())[-1]
    assert asked["model"] == (fields.model, None)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        (checked(kind="mlp", severed="attention"), "only in maps of hidden states"),
        (checked(patch="zero", severed="mlp"), "cannot sever paths of an ablation"),
        (checked(elsewhere=5), "no option for elsewhere"),
        (checked(answer_id=7), "no option for answer_id=7"),
        (checked(chat=True, second_prompt="Is Big Ben in Rome?", second_subject="Big Ben"), "is a conversation"),
        (
            CheckedFields(TraceRequest(PROMPT), {"hidden": MapSpec(positions=(1, 2))}, RunOptions()),
            "no option for positions",
        ),
        (
            CheckedFields(TraceRequest(PROMPT, placebo=OtherPrompt("Rome is")), {"hidden": MapSpec()}, RunOptions()),
            "no option for placebo",
        ),
        (
            CheckedFields(TraceRequest(PROMPT), {"a": MapSpec(window=2), "b": MapSpec("mlp")}, RunOptions()),
            "one window for all",
        ),
        (
            CheckedFields(TraceRequest(PROMPT), {"a": MapSpec(), "b": MapSpec("mlp", end_layer=2)}, RunOptions()),
            "same settings for all",
        ),
    ],
)
def test_what_the_command_cannot_ask_for_is_said(made: CheckedFields, words: str) -> None:
    line = trace_command(made, "embedded")
    assert line.startswith("# ")
    assert words in line
    assert line.count("\n") == 1
    assert "Python lines" in line
