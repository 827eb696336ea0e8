"""What a user asks for: checked as far as it can be without the model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

from causal_tracer.arguments import (
    MOST_SAMPLES,
    check_plain_fields,
    choice,
    function,
    instance,
    several,
    whole_number,
)
from causal_tracer.corruption import CORRUPTIONS, Corruption
from causal_tracer.errors import SettingsError
from causal_tracer.metrics.metric import METRICS, Metric, Target
from causal_tracer.prompts.answer_forms import AnswerForm
from causal_tracer.prompts.chat import ChatText
from causal_tracer.prompts.encoding import check_text
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.prompts.subject import Occurrence
from causal_tracer.request.sites import LayerKind, require_kind

Text = str | ChatText | Prompt
"""What the model goes on from: a text, a conversation, or a prompt that is ready."""

MOST_ROWS = 2**31
"""Rows that go through the model together at most."""

EngineChoice = Literal["auto", "full"]
"""The fastest sweep shown to be right on the model, or the full one in any case."""

Direction = Literal["restore", "corrupt"]
"""Put clean activations into the corrupted run, or corrupted ones into the clean run."""


@dataclass(frozen=True)
class HiddenFlowQuery:
    """One prompt of several to trace.

    Attributes:
        text: The prompt.
        subject: A part of the prompt; None has it guessed.
        override_answer_id: The token whose probability is read; None takes the model's own answer.
    """

    text: Text
    subject: str | None = None
    override_answer_id: int | None = None


@dataclass(frozen=True)
class SamplesUntil:
    """As many noise samples as the most telling cell needs.

    Attributes:
        width: Half of the 95 % interval of the peak's indirect effect is to be at most this.
        step: Samples taken at a time.
        most: Samples after which to stop in any case; the result then says so.
    """

    width: float
    step: int = 10
    most: int = 100

    def __post_init__(self) -> None:
        check_plain_fields(self)
        whole_number("most", self.most, most=MOST_SAMPLES)
        if not self.width > 0 or self.step < 2 or self.most < self.step:
            raise SettingsError(
                f"{self} names no number of samples. Give a width above 0, a step of 2 or more and a `most` no "
                "smaller than it."
            )


@dataclass(frozen=True)
class MapSpec:
    """One map of several in one sweep.

    Attributes:
        kind: Which activations to restore.
        window: Number of consecutive layers restored together.
        severed: Hold the outputs of this kind at the restored token at the corrupted run's values, in all layers and
            in the same noise sample (ROME, Figure 3).
        placebo: Restore to another prompt's clean activations (`TraceRequest.placebo`) instead of this one's.
    """

    kind: LayerKind = "hidden"
    window: int = 1
    severed: LayerKind | None = None
    placebo: bool = False

    def __post_init__(self) -> None:
        require_kind(self.kind)
        check_plain_fields(self)
        whole_number("window", self.window, least=1)
        if self.severed is not None and (require_kind(self.severed) == "hidden" or self.severed == self.kind):
            raise SettingsError(
                f"kind={self.kind!r} cannot be severed from {self.severed!r}. Sever a map from 'mlp' or 'attention', "
                "and not from what it restores."
            )


@dataclass(frozen=True)
class TraceRequest:
    """One prompt to trace, and how.

    Attributes:
        text: What the model goes on from.
        subject: A part of the prompt, or None to have it guessed.
        kind: Which activations to restore.
        answer_id: The token whose probability is read; None takes `answer`, or the clean run's most probable one.
        samples: Noise samples, or how sure the peak has to be. Corruptions without chance have as many as they have.
        window: Number of consecutive layers restored together.
        seed: Seed of the noise.
        batch_size: Rows that go through the model together; None takes what the model and the machine allow.
        start_layer: First layer to compute.
        end_layer: One past the last layer to compute; None computes up to the last block.
        subject_tokens_only: Restore at the subject's tokens only.
        occurrence: Which occurrence of the subject is meant.
        engine: "auto" takes the fastest sweep shown to be right on the model, "full" the full one.
        answer: The answer as text; of several tokens, all of them are read, each after those before it.
        foil: The text that the answer is set against, for the metric "logit difference".
        answer_form: "exact" reads answer and foil right after the prompt as they are written; "auto" also tries the
            answer with a space before it and reads the more probable of the two (`result.notes` says which).
        corruption: What is done to the subject: a name in `corruption.CORRUPTIONS`, or a corruption.
        metric: What is read: a name in `metrics.METRICS`, or a function from a `Target` to a metric.
        direction: Restore clean activations into the corrupted run, or put corrupted ones into the clean run.
        positions: Restore at these tokens only; None means all.
        read: The position whose next token is read; None means the last.
        top_tokens: Keep this many most probable next tokens of every cell.
        placebo: Another prompt, for maps that restore to its activations.
        elsewhere: Corrupt tokens outside the subject instead, as many: a control. The first of them.
        audit: Compute a few cells of each map again by the full sweep, and the whole map where they differ.
    """

    text: Text
    subject: str | None = None
    kind: LayerKind = "hidden"
    answer_id: int | None = None
    samples: int | SamplesUntil = 10
    window: int = 1
    seed: int = 1
    batch_size: int | None = None
    start_layer: int = 0
    end_layer: int | None = None
    subject_tokens_only: bool = False
    occurrence: Occurrence = "last"
    engine: EngineChoice = "auto"
    answer: str | None = None
    foil: str | None = None
    corruption: str | Corruption = "gaussian"
    metric: str | Callable[[Target], Metric] = "probability"
    direction: Direction = "restore"
    positions: tuple[int, ...] | None = None
    read: int | None = None
    top_tokens: int = 0
    placebo: HiddenFlowQuery | None = None
    elsewhere: int | None = None
    audit: bool = True
    answer_form: AnswerForm = "auto"

    def __post_init__(self) -> None:
        require_kind(self.kind)
        check_plain_fields(self)
        for name, allowed in (
            ("engine", EngineChoice),
            ("direction", Direction),
            ("occurrence", Occurrence),
            ("answer_form", AnswerForm),
        ):
            choice(name, getattr(self, name), get_args(allowed))
        for name, known in (("metric", METRICS), ("corruption", CORRUPTIONS)):
            value = getattr(self, name)
            choice(name, value, known) if isinstance(value, str) else function(name, value)
        if not isinstance(self.samples, SamplesUntil):
            object.__setattr__(self, "samples", whole_number("samples", self.samples, 1, MOST_SAMPLES))
        elif self.top_tokens:
            raise SettingsError("Top tokens are kept for a fixed number of samples. Give one.")
        whole_number("window", self.window, least=1)
        whole_number("top_tokens", self.top_tokens, least=0)
        if self.batch_size is not None:
            whole_number("batch_size", self.batch_size, 1, MOST_ROWS)
        if self.positions is not None:
            positions = tuple(whole_number("positions", value) for value in several("positions", self.positions))
            object.__setattr__(self, "positions", positions)
        if self.placebo is not None:
            instance("placebo", self.placebo, HiddenFlowQuery)
        for name in ("answer", "foil"):
            if getattr(self, name) is not None:
                check_text(name, getattr(self, name))
        if self.answer is not None and self.answer_id is not None:
            raise SettingsError(f"answer={self.answer!r} and answer_id={self.answer_id} are both given. Give one.")

    def layer_range(self, n_layers: int) -> range:
        """The layers to compute.

        Raises:
            SettingsError: The range is empty or reaches outside the model.
        """
        end = n_layers if self.end_layer is None else self.end_layer
        if not 0 <= self.start_layer < end <= n_layers:
            raise SettingsError(
                f"start_layer={self.start_layer}, end_layer={self.end_layer} names no layers of a model that has "
                f"{n_layers}. Choose 0 <= start_layer < end_layer <= {n_layers}."
            )
        return range(self.start_layer, end)
