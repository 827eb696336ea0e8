"""HiddenFlow: the result of one trace, plain data that saves, loads and explains how it was made."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from os import PathLike
from typing import TYPE_CHECKING, Any

from torch import Tensor

from causal_tracer.arguments import real_number, whole_number
from causal_tracer.errors import ExportError, SettingsError
from causal_tracer.request.sites import SiteName
from causal_tracer.results import analysis as reading
from causal_tracer.results import files, saved_form
from causal_tracer.results.analysis import Peak as Peak
from causal_tracer.results.analysis import Role
from causal_tracer.results.audit import Audit
from causal_tracer.results.settings import TraceSettings as TraceSettings
from causal_tracer.results.short_forms import flow_figure, flow_lines
from causal_tracer.results.token_alignment import TokenAlignment
from causal_tracer.results.top_tokens import TopTokens

if TYPE_CHECKING:
    import pandas

    from causal_tracer.request.records import StoredRequest


@dataclass(frozen=True, eq=False)
class HiddenFlow:
    """A map of where, in one prompt, restoring an activation brings back the answer.

    Its rows are the prompt's tokens. In a map of kind "head" they are the attention heads at one token
    (`settings.token`); with grouped-query attention a head is a query head. A map of a knockout shows instead where
    blocking the attention of a token (`settings.token`) takes the answer away: attention to each token, or to spans.

    Attributes:
        scores: Mean metric over samples, by default the answer's probability, for each token and layer restored
            [rows, layers]; NaN in cells that were not computed.
        low_score: Mean metric in the corrupted runs.
        high_score: The metric in the clean run.
        input_ids: The prompt's token ids [tokens].
        input_tokens: Their texts.
        subject_range: First token of the subject, and one past its last.
        answer: The answer's text.
        kind: Which activations were restored.
        layer_outputs: Clean activations by module name [tokens, d_model], for heads what each output projection takes;
            empty in a result that was loaded, or that is not complete yet.
        answer_id: The answer's token id.
        prompt: The prompt.
        subject: The subject.
        subject_guessed: Whether the subject was guessed.
        sample_scores: The metric in each sample [samples, rows, layers].
        low_sample_scores: The same in the corrupted runs [samples].
        settings: How the result was made.
        notes: What a reader has to know, such as layers that lack the kind.
        answer_ids: The answer's tokens; one, but where an answer of several was asked for.
        top_tokens: The most probable next tokens of each cell, where they were asked for.
        audit: Cells that the full sweep computed again, and how far they were off. None where the full sweep computed
            the whole map, where no audit was asked for, and in results of older versions.
        request: What was asked for, as JSON types (see `asked`); None in results that do not store it.
        alignment: The tokens of the second prompt, or of the placebo's, that stand for those of the prompt; None for
            maps that no other prompt takes part in.

    All tensors are float32 (ids int64) on the CPU. The first nine fields are those of causal-tracer 1.1.0.
    """

    scores: Tensor
    low_score: float
    high_score: float
    input_ids: Tensor
    input_tokens: list[str]
    subject_range: tuple[int, int]
    answer: str
    kind: SiteName
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
    alignment: TokenAlignment | None = None

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
        """IE of each cell: scores - low_score [rows, layers]."""
        return self.scores - self.low_score

    @property
    def standard_error(self) -> Tensor:
        """Standard error of each cell's effect (`Peak.effect`) [rows, layers]; NaN with a single sample.

        Restored and corrupted run share each sample's noise, so the error is that of their paired differences:
        sd(differences) / sqrt(samples). For direction="corrupt" the differences are from the clean run.
        """
        return reading.standard_error(self)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """The interval of each cell's effect (`Peak.effect`) over noise samples, (low, high), each [rows, layers].

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
        """The cells that restore most, or that take most away in direction "corrupt"; at most one a row, best first.

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
        return files.to_dict(self)

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
        saved_form.save(self.to_dict(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> HiddenFlow:
        """Read a result that `save` wrote.

        Raises:
            ResultFormatError: The file cannot be read, or is not such a result.
        """
        return cls.from_dict(saved_form.load(path, cls.__name__))

    @classmethod
    def from_dict(cls, data: Any) -> HiddenFlow:
        """The result that `to_dict` described.

        Raises:
            ResultFormatError: The data is not such a result, is from a newer version, or does not fit together.
        """
        return files.from_dict(cls, data)
