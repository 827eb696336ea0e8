"""HiddenFlow: the result of one trace, plain data that saves, loads and explains how it was made."""

from __future__ import annotations

import json
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from causal_tracer.arguments import file_path, real_number, whole_number
from causal_tracer.errors import ExportError, ResultFormatError, SettingsError
from causal_tracer.files import write_atomically
from causal_tracer.metrics.descriptions import MetricDescription
from causal_tracer.request.sites import KINDS, LayerKind
from causal_tracer.results import analysis as reading
from causal_tracer.results.analysis import Peak as Peak
from causal_tracer.results.analysis import Role
from causal_tracer.results.audit import Audit
from causal_tracer.results.short_forms import flow_figure, flow_lines
from causal_tracer.results.top_tokens import TopTokens

if TYPE_CHECKING:
    import pandas

    from causal_tracer.request.records import StoredRequest

_FORMAT = "causal_tracer.HiddenFlow"
_FORMAT_VERSION = 1


@dataclass(frozen=True)
class TraceSettings:
    """What makes a trace reproducible.

    Attributes:
        model: Hub id, embedded name, or folder name of the model.
        revision: Its commit or file hash, where it has one.
        dtype: Dtype of its weights.
        noise: Standard deviation of the noise on the subject's embeddings.
        noise_rule: Where that number came from.
        samples: Noise samples.
        seed: Seed of the noise.
        window: Number of consecutive layers restored together.
        batch_size: Rows that went through the model together; results are bit-identical at equal batch_size only.
        start_layer: First layer computed.
        end_layer: One past the last layer computed.
        subject_tokens_only: Whether only the subject's tokens were restored.
        engine: Which sweep computed the cells.
        versions: Versions of the libraries that took part.
        corruption: What was done to the subject.
        metric: What was read off the logits.
        direction: "restore": clean activations into the corrupted run; "corrupt": corrupted ones into the clean run.
        severed: The kind whose outputs at the restored token were held at the corrupted run's values.
        placebo: The other prompt whose activations were put in place of clean ones.
        read: The position whose next token was read; None means the last.
        foil: What the answer was set against.
        elsewhere: The first of the tokens that were corrupted in the subject's place.
        metric_description: How figures present a metric of the user's; None for the built-in ones.
    """

    model: str
    revision: str | None
    dtype: str
    noise: float
    noise_rule: str
    samples: int
    seed: int
    window: int
    batch_size: int
    start_layer: int
    end_layer: int
    subject_tokens_only: bool
    engine: str
    versions: Mapping[str, str]
    corruption: str = "Gaussian noise"
    metric: str = "probability"
    direction: str = "restore"
    severed: str | None = None
    placebo: str | None = None
    read: int | None = None
    foil: str | None = None
    elsewhere: int | None = None
    metric_description: MetricDescription | None = None


@dataclass(frozen=True, eq=False)
class HiddenFlow:
    """A map of where, in one prompt, restoring an activation brings back the answer.

    Attributes:
        scores: Mean metric over samples, by default the answer's probability, for each token and layer restored
            [tokens, layers]; NaN in cells that were not computed.
        low_score: Mean metric in the corrupted runs.
        high_score: The metric in the clean run.
        input_ids: The prompt's token ids [tokens].
        input_tokens: Their texts.
        subject_range: First token of the subject, and one past its last.
        answer: The answer's text.
        kind: Which activations were restored.
        layer_outputs: Clean activations by module name [tokens, d_model]; empty in a result that was loaded, or that is
            not complete yet.
        answer_id: The answer's token id.
        prompt: The prompt.
        subject: The subject.
        subject_guessed: Whether the subject was guessed.
        sample_scores: The metric in each sample [samples, tokens, layers].
        low_sample_scores: The same in the corrupted runs [samples].
        settings: How the result was made.
        notes: What a reader has to know, such as layers that lack the kind.
        answer_ids: The answer's tokens; one, but where an answer of several was asked for.
        top_tokens: The most probable next tokens of each cell, where they were asked for.
        audit: Cells that the full sweep computed again, and how far they were off. None where the full sweep computed
            the whole map, where no audit was asked for, and in results of older versions.
        request: What was asked for, as JSON types (see `asked`); None in results that do not store it.

    All tensors are float32 (ids int64) on the CPU. The first nine fields are those of causal-tracer 1.1.0.
    """

    scores: Tensor
    low_score: float
    high_score: float
    input_ids: Tensor
    input_tokens: list[str]
    subject_range: tuple[int, int]
    answer: str
    kind: LayerKind
    layer_outputs: OrderedDict[str, Tensor]
    answer_id: int
    prompt: str
    subject: str
    subject_guessed: bool
    sample_scores: Tensor
    low_sample_scores: Tensor
    settings: TraceSettings
    notes: tuple[str, ...] = ()
    answer_ids: tuple[int, ...] = ()
    top_tokens: TopTokens | None = None
    audit: Audit | None = None
    request: dict[str, Any] | None = None

    def __repr__(self) -> str:
        """Prompt, answer, scores and peaks in a few lines."""
        return flow_lines(self)

    def _repr_html_(self) -> str | None:
        """The figure, which notebooks show in place of the text where Plotly is installed."""
        return flow_figure(self)

    @property
    def total_effect(self) -> float:
        """TE: high_score - low_score."""
        return self.high_score - self.low_score

    @property
    def indirect_effect(self) -> Tensor:
        """IE of each cell: scores - low_score [tokens, layers]."""
        return self.scores - self.low_score

    @property
    def standard_error(self) -> Tensor:
        """Standard error of each cell's effect (`Peak.effect`) [tokens, layers]; NaN with a single sample.

        Restored and corrupted run share each sample's noise, so the error is that of their paired differences:
        sd(differences) / sqrt(samples). For direction="corrupt" the differences are from the clean run.
        """
        return reading.standard_error(self)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """The interval of each cell's effect (`Peak.effect`) over noise samples, (low, high), each [tokens, layers].

        Student's t on the paired differences; NaN with a single sample.

        Raises:
            SettingsError: `level` is not between 0 and 1.
        """
        level = real_number("level", level)
        if not 0 < level < 1:
            raise SettingsError(f"level={level} is not a level of confidence. Give one between 0 and 1, such as 0.95.")
        return reading.interval(self, level)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The role of each token, as the paper averages them (Figure 2)."""
        return reading.token_roles(len(self.input_tokens), self.subject_range)

    def peaks(self, count: int = 3) -> tuple[Peak, ...]:
        """The cells that restore most, or that take most away in direction "corrupt"; at most one a token, best first.

        Which scores are better is the metric's: the smallest rank, the largest probability.
        """
        return reading.peaks(self, whole_number("count", count, least=0))

    def peak_width(self) -> float:
        """Half of the 95 % interval of the effect at the peak."""
        return reading.peak_width(self)

    def to_dataframe(self) -> pandas.DataFrame:
        """One row for every cell: token, layer, score, effects with error and interval, metric, direction and control.

        Raises:
            ExportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ExportError("A dataframe needs pandas, which is not installed: pip install pandas") from error
        return pandas.DataFrame(reading.rows(self), columns=list(reading.COLUMNS))

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types, without `layer_outputs`; null stands for cells that were not computed."""
        data: dict[str, Any] = {"format": _FORMAT, "format_version": _FORMAT_VERSION}
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name == "layer_outputs":
                continue
            if isinstance(value, Tensor):
                value = _nested(value.tolist())
            elif isinstance(value, TraceSettings):
                value = {**asdict(value), "versions": dict(value.versions)}
            elif isinstance(value, (TopTokens, Audit)):
                value = value.to_dict()
            elif isinstance(value, tuple):
                value = list(value)
            data[item.name] = value
        return data

    def asked(self) -> StoredRequest:
        """Return what was asked for: `tracer.trace(asked.request, spec=asked.map)` traces it again.

        Raises:
            SettingsError: The result does not store it, or it has an object of the user's own.
        """
        from causal_tracer.request.record import from_data
        from causal_tracer.request.records import StoredRequest

        if self.request is None:
            raise SettingsError("This result does not store how it was made. Trace the prompt again.")
        return from_data(StoredRequest, self.request)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the result as JSON, into a folder that is made if needed; `HiddenFlow.load` gives identical numbers.

        Raises:
            ExportError: The result has infinite numbers, or the file cannot be written.
        """
        file = file_path(path)
        try:
            write_atomically(file, json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False))
        except (OSError, ValueError) as error:
            raise ExportError(f"The result could not be written to {str(file)!r}: {error}") from error

    @classmethod
    def load(cls, path: str | PathLike[str]) -> HiddenFlow:
        """Read a result that `save` wrote.

        Raises:
            ResultFormatError: The file cannot be read, or is not such a result.
        """
        file = file_path(path)
        try:
            data = json.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            raise ResultFormatError(f"{str(file)!r} could not be read: {error}") from error
        except (ValueError, RecursionError) as error:
            raise ResultFormatError(f"{path} is not JSON ({error}). Give a file that HiddenFlow.save wrote.") from error
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: Any) -> HiddenFlow:
        """The result that `to_dict` described.

        Raises:
            ResultFormatError: The data is not such a result, is from a newer version, or does not fit together.
        """
        if not isinstance(data, dict) or data.get("format") != _FORMAT:
            raise ResultFormatError(f"This is not a saved HiddenFlow: it has no format {_FORMAT!r}.")
        if data.get("format_version") != _FORMAT_VERSION:
            raise ResultFormatError(
                f"This result has format version {data.get('format_version')!r}, and this version of causal_tracer "
                f"reads {_FORMAT_VERSION}. Upgrade causal_tracer."
            )
        try:
            flow = cls(
                scores=_tensor(data["scores"]),
                low_score=float(data["low_score"]),
                high_score=float(data["high_score"]),
                input_ids=torch.tensor([int(i) for i in data["input_ids"]], dtype=torch.long, device="cpu"),
                input_tokens=[str(token) for token in data["input_tokens"]],
                subject_range=(int(data["subject_range"][0]), int(data["subject_range"][1])),
                answer=str(data["answer"]),
                kind=data["kind"],
                layer_outputs=OrderedDict(),
                answer_id=int(data["answer_id"]),
                prompt=str(data["prompt"]),
                subject=str(data["subject"]),
                subject_guessed=bool(data["subject_guessed"]),
                sample_scores=_tensor(data["sample_scores"]),
                low_sample_scores=_tensor(data["low_sample_scores"]),
                settings=_settings(data["settings"]),
                notes=tuple(str(note) for note in data["notes"]),
                answer_ids=tuple(int(token) for token in data["answer_ids"]),
                top_tokens=None if data["top_tokens"] is None else TopTokens.from_dict(data["top_tokens"]),
                audit=None if data.get("audit") is None else Audit.from_dict(data["audit"]),
                request=None if data.get("request") is None else dict(data["request"]),
            )
        except (
            KeyError,
            TypeError,
            ValueError,
            IndexError,
            OverflowError,
            RuntimeError,
            AttributeError,
            SettingsError,
        ) as error:
            raise ResultFormatError(f"This saved HiddenFlow is incomplete or damaged ({error!r}).") from error
        flow._check()
        return flow

    def _check(self) -> None:
        samples, tokens, layers = self.sample_scores.shape if self.sample_scores.dim() == 3 else (0, 0, 0)
        start, end = self.subject_range
        fits = (
            self.kind in KINDS
            and samples > 0
            and self.scores.shape == (tokens, layers)
            and self.low_sample_scores.shape == (samples,)
            and len(self.input_ids) == len(self.input_tokens) == tokens
            and 0 <= start < end <= tokens
        )
        if not fits:
            raise ResultFormatError(
                f"This saved HiddenFlow does not fit together: scores {list(self.scores.shape)}, sample scores "
                f"{list(self.sample_scores.shape)}, {len(self.input_tokens)} tokens, subject {self.subject_range}, "
                f"kind {self.kind!r}."
            )


def _nested(value: Any) -> Any:
    if isinstance(value, list):
        return [_nested(item) for item in value]
    return None if isinstance(value, float) and math.isnan(value) else value


def _tensor(value: Any) -> Tensor:
    def numbers(item: Any) -> Any:
        return [numbers(part) for part in item] if isinstance(item, list) else math.nan if item is None else item

    return torch.tensor(numbers(value), dtype=torch.float32, device="cpu")


_TYPES: Mapping[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str | None": (str, type(None)),
    "int | None": (int, type(None)),
    "Mapping[str, str]": Mapping,
}


def _settings(data: Any) -> TraceSettings:
    described = data.get("metric_description")
    described = None if described is None else MetricDescription.from_dict(described)
    settings = TraceSettings(**{**data, "metric_description": described})
    for item in fields(TraceSettings):
        value = getattr(settings, item.name)
        if not isinstance(value, _TYPES.get(str(item.type), object)):
            raise TypeError(f"settings.{item.name} is {value!r}")
    return settings
