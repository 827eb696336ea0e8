"""`HiddenFlow`: the result of one trace, as plain data that can be saved and loaded."""

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
    """One map of one prompt: the metric after restoring the activation of each token and layer.

    The rows are the prompt's tokens. In a map of kind "head" they are the attention heads at one token
    (`settings.token`); with grouped-query attention a head is a query head. In a knockout map nothing is restored: a
    cell is the metric after blocking the attention of `settings.token` to a token, or to a span of the prompt.

    Attributes:
        scores: Mean metric over samples, by default the answer's probability, for each token and layer restored
            [rows, layers]. NaN in cells that were not computed.
        low_score: Mean metric in the corrupted runs.
        high_score: The metric in the clean run.
        input_ids: The prompt's token ids [tokens].
        input_tokens: The texts of the prompt's tokens.
        subject_range: First token of the subject, and one past its last token.
        answer: The answer's text.
        kind: Which activations were restored.
        layer_outputs: Clean activations by module name [tokens, d_model]; for heads, the input of each output
            projection. Empty in a loaded result and in an incomplete one.
        answer_id: The answer's token id.
        prompt: The prompt.
        subject: The subject.
        subject_guessed: Whether the subject was guessed.
        sample_scores: The metric in each sample [samples, rows, layers].
        low_sample_scores: The metric in the corrupted run of each sample [samples].
        settings: The settings that the result was computed with.
        notes: Notes for the reader, such as layers that lack the kind.
        answer_ids: The answer's token ids: several only if an answer of several tokens was requested.
        top_tokens: The most probable next tokens of each cell; None if they were not requested.
        audit: The cells that the full sweep recomputed, and the largest difference. None if the full sweep computed
            the whole map, if no audit was requested, and in results of older versions.
        request: The request as JSON types (see `asked`); None in results that do not store it.
        alignment: The tokens of the second or placebo prompt that are aligned with those of the prompt; None for maps
            without another prompt.

    All tensors are on the CPU, in float32 (ids in int64). The first nine fields are those of causal-tracer 1.1.0.
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
        """Return prompt, answer, scores and peaks in a few lines."""
        return flow_lines(self)

    def _repr_html_(self) -> str | None:
        """Return the figure, which notebooks show in place of the text; None without Plotly."""
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

        The restored and the corrupted run of a sample share its noise, so this is the error of paired differences:
        sd(differences) / sqrt(samples). For direction="corrupt" the differences are from the clean run.
        """
        return reading.standard_error(self)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the confidence interval of each cell's effect (`Peak.effect`) as (low, high), each [rows, layers].

        Computed by Student's t from the paired differences of the noise samples; NaN with a single sample.

        Raises:
            SettingsError: `level` is not between 0 and 1.
        """
        level = real_number("level", level)
        if not 0 < level < 1:
            raise SettingsError(f"level={level} is out of range. Give a number between 0 and 1, such as 0.95.")
        return reading.interval(self, level)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The role of each token, such as "last subject", by which the paper averages (Figure 2)."""
        return reading.token_roles(len(self.input_tokens), self.subject_range)

    def peaks(self, count: int = 3) -> tuple[Peak, ...]:
        """Return the cells with the largest effect, at most one per row, the largest effect first.

        With direction="corrupt" these are the cells that lower the metric most. The metric determines which scores are
        better: the largest probability, but the smallest rank.
        """
        return reading.peaks(self, whole_number("count", count, least=0))

    def peak_width(self) -> float:
        """Return the half-width of the 95 % interval of the effect at the peak."""
        return reading.peak_width(self)

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a table with a row for every cell: token, layer, score, effects, errors, intervals and settings.

        Raises:
            ExportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ExportError("A dataframe needs pandas, which is not installed: pip install pandas") from error
        return pandas.DataFrame(reading.rows(self), columns=list(reading.COLUMNS))

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types, without `layer_outputs`. Cells that were not computed are null."""
        return files.to_dict(self)

    def asked(self) -> StoredRequest:
        """Return the stored request: `tracer.trace(asked.request, spec=asked.map)` traces it again.

        Raises:
            SettingsError: The result does not store its request, or the request has a user-defined object.
        """
        from causal_tracer.request.record import from_data
        from causal_tracer.request.records import StoredRequest

        if self.request is None:
            raise SettingsError("This result does not store how it was made. Trace the prompt again.")
        return from_data(StoredRequest, self.request)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the result as JSON; missing folders are created. `HiddenFlow.load` returns identical numbers.

        Raises:
            ExportError: The result has infinite numbers, or the file cannot be written.
        """
        saved_form.save(self.to_dict(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> HiddenFlow:
        """Read a result that `save` wrote.

        Raises:
            ResultFormatError: The file cannot be read, or is not a saved `HiddenFlow`.
        """
        return cls.from_dict(saved_form.load(path, cls.__name__))

    @classmethod
    def from_dict(cls, data: Any) -> HiddenFlow:
        """Return the result that `to_dict` wrote.

        Raises:
            ResultFormatError: The data is not such a result, is from a newer version, or is inconsistent.
        """
        return files.from_dict(cls, data)
