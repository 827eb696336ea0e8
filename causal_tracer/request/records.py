"""The records of a request: plain data, checked as far as possible without a model.

TraceRequest    prompt, subject, answer, corruption, samples, metric, direction, controls
OtherPrompt     the second prompt or the placebo prompt of a request
MapSpec         one map of a request: kind, window, layers, tokens
RunOptions      batch size, engine and audit: settings that change numbers by rounding only
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import Field

from causal_tracer import arguments
from causal_tracer.arguments import MOST_SAMPLES, as_list, flag, instance, optional, quoted, real_number, text
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
from causal_tracer.request.other_prompt import checked_prompt_text
from causal_tracer.request.record import Check, integer, one_of, or_none, record

MOST_ROWS = 2**31
"""The largest batch size that can be set."""

EngineChoice = Literal["auto", "full"]
"""Which sweep to use: the fastest one that passes its check on the model ("auto"), or always the full one."""

Direction = Literal["restore", "corrupt"]
"""Patch clean activations into the corrupted run, or corrupted activations into the clean run."""

_FLAG, _WORD, _WHOLE = Check(flag), Check(optional(text)), Check(optional(arguments.whole_number))
# Above it, sums of squares overflow float32.
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
        raise SettingsError(f"noise={quoted(value)} is not a noise level. Give 0 or a positive number.")
    return level


def _other(name: str, value: Any) -> Any:
    return value if value is None or isinstance(value, dict) else instance(name, value, OtherPrompt)


def _texts(name: str, value: Any) -> Any:
    return tuple(check_text(f"Each of {name}", item) for item in as_list(name, value))


def _default_metric(fields: dict[str, Any]) -> str:
    return "probability" if fields["second"] is None else "logit difference"


@record
class HiddenFlowQuery:
    """One of several prompts to trace, with its subject and answer."""

    text: Annotated[Text, Check(checked_prompt_text)]
    """The prompt."""

    subject: str | None = None
    """The part of the prompt to corrupt; None guesses it."""

    override_answer_id: int | None = None
    """The token id whose probability is measured; None takes the clean run's most probable token."""


@record
class SamplesUntil:
    """Add noise samples until the confidence interval of the map's peak is narrow enough."""

    width: Annotated[float, Check(real_number)]
    """Stop when the half-width of the 95 % interval of the peak's effect is at most this, in units of the metric."""

    step: Annotated[int, integer()] = 10
    """Number of samples added at a time."""

    most: Annotated[int, integer(most=MOST_SAMPLES)] = 100
    """Largest number of samples. A note in the result reports when it is reached."""

    def __post_init__(self) -> None:
        if not self.width > 0 or self.step < 2 or self.most < self.step:
            raise SettingsError(
                f"{self} is not valid. Give a width above 0, a step of at least 2, and a `most` of at least the step."
            )


@record
class TraceRequest:
    """One prompt to trace: subject, answer, corruption, metric and controls."""

    prompt: Annotated[Text, Check(checked_prompt_text)]
    """The text that the model continues."""

    subject: Annotated[str | None, _WORD] = None
    """The part of the prompt to corrupt; guessed if not given."""

    answer: Annotated[str | None, _ANSWER] = None
    """The answer to measure, as text. If it has several tokens, each is read after the tokens before it."""

    answer_id: Annotated[int | None, _WHOLE] = None
    """The answer to measure, as a token id. Without an answer, the clean run's most probable token is measured."""

    answer_form: Annotated[AnswerForm, one_of(AnswerForm)] = "auto"
    """"exact" appends answer and foil to the prompt as they are written; "auto" also tries a space before the answer
    and takes the more probable form."""

    occurrence: Annotated[Occurrence, one_of(Occurrence)] = "last"
    """Which occurrence of the subject is used: "first" or "last"."""

    second: Annotated[OtherPrompt | None, Check(_other)] = None
    """A second prompt, run in place of the corrupted prompt. The default metric is then the logit difference between
    the two prompts' answers."""

    corruption: Annotated[str | Corruption, NameOrObject(tuple(CORRUPTIONS))] = Field(
        default="gaussian", title="Corruption"
    )
    """The corruption of the subject: gaussian, uniform, either with " replacing"; multivariate, student-t, zero, mean,
    none; or a corruption of `causal_tracer.corruption`."""

    noise: Annotated[NoiseRule, Check(_noise_rule)] = Field(default=None, title="Noise level")
    """Noise level: a number, or a multiple of the embeddings' standard deviation such as "2 sigma"; if not given, the
    tracer's level."""

    samples: Annotated[int | SamplesUntil, _SAMPLES] = Field(default=10, title="Noise samples")
    """Number of noise samples, or the precision to reach. Corruptions that are not random have a fixed number."""

    seed: Annotated[int, integer(0, 2**32 - 1)] = Field(default=1, title="Seed of the noise")
    """Seed of the noise."""

    metric: Annotated[str | Callable[[Target], Metric], NameOrObject(tuple(METRICS))] = Field(
        default_factory=_default_metric, title="Metric"
    )
    """The metric: probability, log-probability, logit, "logit difference", rank, "KL from clean"; or a function
    from a `Target` to a metric. If not given, the probability; with a second prompt, the logit difference."""

    foil: Annotated[str | None, _ANSWER] = None
    """The text whose logit is subtracted by "logit difference"; with a second prompt, by default that prompt's most
    probable next token."""

    direction: Annotated[Direction, one_of(Direction)] = "restore"
    """"restore" patches clean activations into the corrupted run, "corrupt" patches corrupted activations into the
    clean run. With a second prompt, its run is the corrupted run."""

    read: Annotated[int | None, _WHOLE] = None
    """The position whose next token is read; if not given, the last position."""

    elsewhere: Annotated[int | None, _WHOLE] = None
    """Control: the first token of a span outside the subject that is corrupted instead. The span is as long as the
    subject."""

    placebo: Annotated[OtherPrompt | None, Check(_other)] = None
    """Control: another prompt, whose clean activations are restored by maps with source="placebo"."""

    mean_over: Annotated[tuple[str, ...], Check(_texts)] = ()
    """Prompts over whose tokens activations are averaged for maps with source="mean"."""

    top_tokens: Annotated[int, integer(least=0)] = 0
    """Number of most probable next tokens to keep for every cell."""

    def __post_init__(self) -> None:
        if isinstance(self.samples, SamplesUntil) and self.top_tokens:
            raise SettingsError(f"top_tokens needs a fixed number of samples (given: {self.samples}). Give an integer.")
        if self.answer is not None and self.answer_id is not None:
            raise SettingsError(f"answer={self.answer!r} and answer_id={self.answer_id} are both given. Give one.")
        in_place = {"corruption": "gaussian", "noise": None, "elsewhere": None}
        given = [name for name, default in in_place.items() if getattr(self, name) != default]
        if self.second is not None and given:
            raise SettingsError(
                f"{given[0]}={quoted(getattr(self, given[0]))} does not apply with a second prompt, which is run "
                f"in place of the corrupted one. Leave out {given[0]} or second."
            )


@record
class RunOptions:
    """Options of a run: settings that change numbers by rounding only."""

    batch_size: Annotated[int | None, or_none(integer(1, MOST_ROWS))] = Field(default=None, title="Batch size")
    """Largest number of rows in a batch; if not given, chosen for the model and the machine."""

    engine: Annotated[EngineChoice, one_of(EngineChoice)] = "auto"
    """"auto" takes the fastest sweep that passes its check on the model, "full" runs the whole model for each cell."""

    audit: Annotated[bool, _FLAG] = True
    """Recompute a few cells of each map by the full sweep, and the whole map if they differ."""


@record
class StoredRequest:
    """The request that a result stores, complete enough to trace it again."""

    request: TraceRequest
    """The prompt, and what is measured."""

    map: MapSpec
    """The map."""

    options: RunOptions
    """The options that the map was computed with."""


def trace_records(
    prompt: Any, settings: Mapping[str, Any], made: Sequence[MapSpec | RunOptions | None] = ()
) -> tuple[TraceRequest, MapSpec, RunOptions]:
    """Make a request, a map and options from keyword arguments. Each argument is a field of one of these records.

    Ablations and blocked attention are made in the clean run: if none of direction, corruption and second is given,
    the request gets direction="corrupt" and corruption="none".

    Args:
        prompt: The prompt, or a finished request.
        settings: The arguments by name.
        made: A finished map and finished options. A record that is None or missing is made from `settings`.

    Raises:
        SettingsError: An argument has an invalid value, or is not a field of a record that is made here.
    """
    done: dict[type[Any], Any] = {type(each): each for each in (prompt, *made) if isinstance(each, _KINDS)}
    homes = {item.name: kind for kind in _KINDS if kind not in done for item in fields(kind) if item.name != "prompt"}
    if unknown := [name for name in settings if name not in homes]:
        raise SettingsError(f"{unknown[0]} is not a setting here. The settings are {', '.join(homes)}.")
    # The map comes first: the request's defaults depend on it.
    for kind in (MapSpec, RunOptions, TraceRequest):
        given = {name: value for name, value in settings.items() if homes[name] is kind}
        if kind is TraceRequest and kind not in done:
            done[kind] = TraceRequest(
                prompt, **(with_clean_run_defaults(given) if done[MapSpec].in_clean_run else given)
            )
        elif kind not in done:
            done[kind] = kind(**given)
    return done[TraceRequest], done[MapSpec], done[RunOptions]


def with_clean_run_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request's fields, with defaults for maps in the clean run: direction="corrupt", corruption="none"."""
    chosen = {"direction", "corruption", "second"} & set(given)
    return dict(given) if chosen else {**given, "direction": "corrupt", "corruption": "none"}


_KINDS: tuple[type[Any], ...] = (TraceRequest, MapSpec, RunOptions)
