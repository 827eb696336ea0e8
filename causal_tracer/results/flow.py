"""`HiddenFlow`: the result of one trace, as plain data with the settings that made it."""

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
from causal_tracer.results.reprs import flow_figure, flow_lines
from causal_tracer.results.settings import TraceSettings as TraceSettings
from causal_tracer.results.token_alignment import TokenAlignment
from causal_tracer.results.top_tokens import TopTokens

if TYPE_CHECKING:
    import pandas

    from causal_tracer.request.records import StoredRequest


@dataclass(frozen=True, eq=False)
class HiddenFlow:
    """One map: the metric for each cell (row and layer) when its activations are restored, corrupted or blocked.

    The rows are the prompt's tokens. In a map of kind "head" the rows are the attention heads at one token
    (`settings.token`); with grouped-query attention a head is a query head. In a map of a knockout the attention of
    one or several tokens (`settings.token`) is blocked, and the rows are the tokens or spans that it is blocked to.

    Attributes:
        scores: The metric of each cell, by default the answer's probability, as the mean over samples [rows, layers].
            NaN in cells that were not computed.
        low_score: The metric in the corrupted run, as the mean over samples.
        high_score: The metric in the clean run.
        input_ids: The prompt's token ids [tokens].
        input_tokens: The text of each token.
        subject_range: The first token of the subject, and one past its last token.
        answer: The answer's text.
        kind: The kind of activations that were patched, or of attention that was blocked.
        layer_outputs: Clean activations by module name [tokens, d_model]. For heads they are the inputs of the
            attention's output projections. Empty in a loaded result and in a partial one.
        answer_id: The answer's token id.
        prompt: The prompt.
        subject: The subject.
        subject_guessed: Whether the subject was guessed.
        sample_scores: The metric of each cell in each sample [samples, rows, layers].
        low_sample_scores: The metric in the corrupted run of each sample [samples].
        settings: The settings that made the result.
        notes: Warnings for the reader, such as layers that lack the kind.
        answer_ids: The answer's token ids: one, or several if the request has an answer of several tokens.
        top_tokens: The most probable next tokens of each cell, if the request asks for them.
        audit: The record of the cells that the full sweep computed again. None if the full sweep computed the whole
            map, if the audit was switched off, and in results of older versions.
        request: The request as JSON types (see `stored_request`); None in results that do not store it.
        alignment: The alignment of the prompt with the second prompt or the placebo prompt; None for maps without
            another prompt.

    All tensors are on the CPU: float32, and int64 for ids. The first nine fields are those of causal-tracer 1.1.0.
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
        """Return the prompt, answer, scores and peaks in a few lines."""
        return flow_lines(self)

    def _repr_html_(self) -> str | None:
        """Return the figure as HTML for notebooks; None without Plotly, so that they show the text."""
        return flow_figure(self)

    @property
    def total_effect(self) -> float:
        """The total effect (TE): high_score - low_score."""
        return self.high_score - self.low_score

    @property
    def indirect_effect(self) -> Tensor:
        """The indirect effect (IE) of each cell: scores - low_score [rows, layers]."""
        return self.scores - self.low_score

    @property
    def standard_error(self) -> Tensor:
        """The standard error of each cell's effect (`Peak.effect`) [rows, layers]; NaN with a single sample.

        In each sample the restored and the corrupted run have the same noise, so this is the error of their paired
        differences: sd(differences) / sqrt(samples). For direction="corrupt" the differences are from the clean run.
        """
        return reading.standard_error(self)

    def interval(self, level: float = 0.95) -> tuple[Tensor, Tensor]:
        """Return the confidence interval of each cell's effect (`Peak.effect`) over noise samples.

        By Student's t on the paired differences.

        Args:
            level: Confidence level, between 0 and 1.

        Returns:
            The lower and the upper ends, each [rows, layers]; NaN with a single sample.

        Raises:
            SettingsError: `level` is not between 0 and 1.
        """
        level = real_number("level", level)
        if not 0 < level < 1:
            raise SettingsError(f"level={level} is out of range. Give a number between 0 and 1, such as 0.95.")
        return reading.interval(self, level)

    @property
    def roles(self) -> tuple[Role, ...]:
        """The role of each token, as in Meng et al. 2022 (ROME), Figure 2."""
        return reading.token_roles(len(self.input_tokens), self.subject_range)

    def peaks(self, count: int = 3) -> tuple[Peak, ...]:
        """Return the strongest cells, the strongest first, with at most one cell of each row.

        The strongest cell has the best score of the metric (the largest probability, the smallest rank). In direction
        "corrupt" it has the worst.

        Args:
            count: The number of cells to return.
        """
        return reading.peaks(self, whole_number("count", count, least=0))

    def peak_width(self) -> float:
        """Return half the width of the 95 % interval of the effect at the strongest cell."""
        return reading.peak_width(self)

    def to_dataframe(self) -> pandas.DataFrame:
        """Return a table with a row for each cell, with the columns `results.analysis.COLUMNS`.

        Raises:
            ExportError: pandas is not installed.
        """
        try:
            import pandas
        except ImportError as error:
            raise ExportError("A dataframe needs pandas, and it is not installed: pip install pandas") from error
        return pandas.DataFrame(reading.rows(self), columns=list(reading.COLUMNS))

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types, without `layer_outputs`. Cells that were not computed are null."""
        return files.to_dict(self)

    def stored_request(self) -> StoredRequest:
        """Return the request that the result was made from: `tracer.trace(stored.request, spec=stored.map)` repeats it.

        Raises:
            SettingsError: The result does not store its request, or the request had a metric or a corruption of the
                user's.
        """
        from causal_tracer.request.record import from_data
        from causal_tracer.request.records import StoredRequest

        if self.request is None:
            raise SettingsError("This result does not store its request. Trace the prompt again.")
        return from_data(StoredRequest, self.request)

    def save(self, path: str | PathLike[str]) -> None:
        """Write the result as JSON. `HiddenFlow.load` reads it back with identical numbers.

        Args:
            path: The file. Missing folders are created.

        Raises:
            ExportError: The result has infinite numbers, or the file cannot be written.
        """
        saved_form.save(self.to_dict(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> HiddenFlow:
        """Read a result that `save` wrote.

        Raises:
            ResultFormatError: The file cannot be read, or is not a saved HiddenFlow.
        """
        return cls.from_dict(saved_form.load(path, cls.__name__))

    @classmethod
    def from_dict(cls, data: Any) -> HiddenFlow:
        """Return the result that `to_dict` wrote.

        Raises:
            ResultFormatError: The data is not a saved HiddenFlow, is from a newer version, or is inconsistent.
        """
        return files.from_dict(cls, data)
