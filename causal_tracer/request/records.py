"""What a user asks for, as plain data: checked as far as it can be without the model.

TraceRequest    what is asked: prompt, subject, answer, corruption, samples, metric, direction, controls
OtherPrompt     a second prompt of it, or a placebo's
MapSpec         one map of it: kind, window, layers, tokens
RunOptions      what cannot change a number beyond rounding
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field

from causal_tracer import arguments
from causal_tracer.arguments import MOST_SAMPLES, flag, instance, optional, real_number, several, shown, text
from causal_tracer.corruption import CORRUPTIONS, Corruption, NoiseRule, SubjectsNoise
from causal_tracer.errors import SettingsError
from causal_tracer.metrics.metric import METRICS, Metric, Target
from causal_tracer.prompts.answer_forms import AnswerForm
from causal_tracer.prompts.encoding import check_text
from causal_tracer.prompts.subject import Occurrence
from causal_tracer.request.map_spec import MapSpec as MapSpec
from causal_tracer.request.objects import NameOrObject
from causal_tracer.request.other_prompt import OtherPrompt as OtherPrompt
from causal_tracer.request.other_prompt import Text as Text
from causal_tracer.request.other_prompt import readable
from causal_tracer.request.record import Check, maybe, one_of, record, whole

MOST_ROWS = 2**31
"""Rows that go through the model together at most."""

EngineChoice = Literal["auto", "full"]
"""The fastest sweep shown to be right on the model, or the full one in any case."""

Direction = Literal["restore", "corrupt"]
"""Put clean activations into the corrupted run, or corrupted ones into the clean run."""

_FLAG, _WORD, _WHOLE = Check(flag), Check(optional(text)), Check(optional(arguments.whole_number))
# Beyond it, sums of squares leave float32.
_HIGHEST_NOISE = 1e15
_ANSWER = Check(optional(check_text))


def _sample_count(name: str, value: Any) -> Any:
    if isinstance(value, SamplesUntil | dict):
        return value
    return arguments.whole_number(name, value, 1, MOST_SAMPLES)


_SAMPLES = Check(_sample_count, {"minimum": 1, "maximum": MOST_SAMPLES})


def _noise_rule(name: str, value: Any) -> Any:
    if value is None or isinstance(value, str | SubjectsNoise | dict):
        return value
    level = real_number(name, value)
    if not 0 <= level <= _HIGHEST_NOISE:
        raise SettingsError(f"noise={shown(value)} is not a noise level. Give 0 or a positive number.")
    return level


def _other(name: str, value: Any) -> Any:
    return value if value is None or isinstance(value, dict) else instance(name, value, OtherPrompt)


def _texts(name: str, value: Any) -> Any:
    return tuple(check_text(f"Each of {name}", item) for item in several(name, value))


def _default_metric(fields: dict[str, Any]) -> str:
    return "probability" if fields["second"] is None else "logit difference"


@record
class HiddenFlowQuery:
    """One prompt of several to trace."""

    text: Annotated[Text, Check(readable)]
    """The prompt."""

    subject: str | None = None
    """A part of the prompt; None has it guessed."""

    override_answer_id: int | None = None
    """The token whose probability is read; None takes the model's own answer."""


@record
class SamplesUntil:
    """As many noise samples as the most telling cell needs."""

    width: Annotated[float, Check(real_number)]
    """Half of the 95 % interval of the peak's indirect effect is to be at most this."""

    step: Annotated[int, whole()] = 10
    """Samples taken at a time."""

    most: Annotated[int, whole(most=MOST_SAMPLES)] = 100
    """Samples after which to stop in any case; the result then says so."""

    def __post_init__(self) -> None:
        if not self.width > 0 or self.step < 2 or self.most < self.step:
            raise SettingsError(
                f"{self} names no number of samples. Give a width above 0, a step of 2 or more and a `most` no "
                "smaller than it."
            )


@record
class TraceRequest:
    """One prompt to trace: what is corrupted, what is read, and the controls."""

    prompt: Annotated[Text, Check(readable)]
    """The text that the model goes on from."""

    subject: Annotated[str | None, _WORD] = None
    """The part of the prompt to corrupt; guessed if not given."""

    answer: Annotated[str | None, _ANSWER] = None
    """The answer that is read, as text; of several tokens, all are read, each after those before it."""

    answer_id: Annotated[int | None, _WHOLE] = None
    """The answer that is read, as a token id. Without an answer, the clean run's most probable token is read."""

    answer_form: Annotated[AnswerForm, one_of(AnswerForm)] = "auto"
    """"exact" reads answer and foil right after the prompt as they are written; "auto" also tries a space before the
    answer and reads the more probable."""

    occurrence: Annotated[Occurrence, one_of(Occurrence)] = "last"
    """Which occurrence of the subject is meant: "first" or "last"."""

    second: Annotated[OtherPrompt | None, Check(_other)] = None
    """A second prompt, which is run in place of a corrupted one. Metric and foil are then by default the difference of
    the two prompts' answers in logits."""

    corruption: Annotated[str | Corruption, NameOrObject(tuple(CORRUPTIONS))] = Field(
        default="gaussian", title="Corruption"
    )
    """What is done to the subject: gaussian, uniform, either with " replacing"; multivariate, student-t, zero, mean;
    or a corruption of `causal_tracer.corruption`."""

    noise: Annotated[NoiseRule, Check(_noise_rule)] = Field(default=None, title="Noise level")
    """Noise level: a number, or times the embeddings' deviation as in "2 sigma"; if not given, the tracer's."""

    samples: Annotated[int | SamplesUntil, _SAMPLES] = Field(default=10, title="Noise samples")
    """Noise samples, or how sure the peak has to be. Corruptions without chance have as many as they have."""

    seed: Annotated[int, whole(0, 2**32 - 1)] = Field(default=1, title="Seed of the noise")
    """Seed of the noise."""

    metric: Annotated[str | Callable[[Target], Metric], NameOrObject(tuple(METRICS))] = Field(
        default_factory=_default_metric, title="Metric"
    )
    """What is read: probability, log-probability, logit, "logit difference", rank, "KL from clean"; or a function from
    a `Target` to a metric. If not given, the probability; with a second prompt, the logit difference."""

    foil: Annotated[str | None, _ANSWER] = None
    """The text that "logit difference" sets the answer against; with a second prompt, by default that prompt's own
    answer."""

    direction: Annotated[Direction, one_of(Direction)] = "restore"
    """"restore" puts clean activations into the corrupted run, "corrupt" corrupted ones into the clean run. A second
    prompt's run is the corrupted one."""

    read: Annotated[int | None, _WHOLE] = None
    """The position whose next token is read; if not given, the last."""

    elsewhere: Annotated[int | None, _WHOLE] = None
    """A control: corrupt as many tokens outside the subject instead; the first of them."""

    placebo: Annotated[OtherPrompt | None, Check(_other)] = None
    """Another prompt, for maps that restore to its activations."""

    mean_over: Annotated[tuple[str, ...], Check(_texts)] = ()
    """Prompts over whose tokens activations are averaged, for maps that set them to their mean."""

    top_tokens: Annotated[int, whole(least=0)] = 0
    """Keep this many most probable next tokens of every cell."""

    def __post_init__(self) -> None:
        if isinstance(self.samples, SamplesUntil) and self.top_tokens:
            raise SettingsError("Top tokens are kept for a fixed number of samples. Give one.")
        if self.answer is not None and self.answer_id is not None:
            raise SettingsError(f"answer={self.answer!r} and answer_id={self.answer_id} are both given. Give one.")
        in_place = {"corruption": "gaussian", "noise": None, "elsewhere": None}
        given = [name for name, default in in_place.items() if getattr(self, name) != default]
        if self.second is not None and given:
            raise SettingsError(
                f"{given[0]}={shown(getattr(self, given[0]))} is for a corrupted prompt, and a second prompt takes its "
                f"place. Leave out {given[0]} or second."
            )


@record
class RunOptions:
    """What cannot change a number beyond rounding."""

    batch_size: Annotated[int | None, maybe(whole(1, MOST_ROWS))] = Field(default=None, title="Batch size")
    """Rows that go through the model together; if not given, what the model and the machine allow."""

    engine: Annotated[EngineChoice, one_of(EngineChoice)] = "auto"
    """"auto" takes the fastest sweep shown to be right on the model, "full" runs the whole model for each cell."""

    audit: Annotated[bool, _FLAG] = True
    """Compute a few cells of each map again by the full sweep, and the whole map where they differ."""


@record
class StoredRequest:
    """What a result stores of how it was asked for: enough to trace it again."""

    request: TraceRequest
    """The prompt, and what is measured."""

    map: MapSpec
    """The map."""

    options: RunOptions
    """How it was run."""


def trace_records(
    prompt: Any, settings: Mapping[str, Any], made: Sequence[MapSpec | RunOptions | None] = ()
) -> tuple[TraceRequest, MapSpec, RunOptions]:
    """Return the records that keyword arguments make; each argument is a field of one of them.

    Ablations and blocked attention are made in the clean run: where neither direction nor corruption are given, the
    request has direction "corrupt" and corruption "none".

    Args:
        prompt: The prompt, or a request that is made already.
        settings: The arguments by name.
        made: A map and options that are made already; None or left out makes them of `settings`.

    Raises:
        SettingsError: An argument is a field of none of the records that are still to be made, or has a value that it
            cannot have.
    """
    done: dict[type[Any], Any] = {type(each): each for each in (prompt, *made) if isinstance(each, _KINDS)}
    homes = {item.name: kind for kind in _KINDS if kind not in done for item in fields(kind) if item.name != "prompt"}
    if unknown := [name for name in settings if name not in homes]:
        raise SettingsError(f"{unknown[0]} is no setting here. The settings are {', '.join(homes)}.")
    # The map comes first: the request's defaults follow from it.
    for kind in (MapSpec, RunOptions, TraceRequest):
        given = {name: value for name, value in settings.items() if homes[name] is kind}
        if kind is TraceRequest and kind not in done:
            done[kind] = TraceRequest(prompt, **(in_the_clean_run(given) if done[MapSpec].in_clean_run else given))
        elif kind not in done:
            done[kind] = kind(**given)
    return done[TraceRequest], done[MapSpec], done[RunOptions]


def in_the_clean_run(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's fields for maps made in the clean run: if they set no corruption, nothing is corrupted."""
    said = {"direction", "corruption", "second"} & set(given)
    return dict(given) if said else {**given, "direction": "corrupt", "corruption": "none"}


_KINDS: tuple[type[Any], ...] = (TraceRequest, MapSpec, RunOptions)
