"""`LogitLens`: the next-token distribution at each token and layer, as plain data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from os import PathLike
from typing import Any

from torch import Tensor

from causal_tracer.arguments import whole_number
from causal_tracer.errors import ResultFormatError, SettingsError
from causal_tracer.results import saved_form
from causal_tracer.results.reprs import lens_figure, lens_lines
from causal_tracer.results.tables import csv_text
from causal_tracer.results.top_tokens import TokenProbability, Tokens

COLUMNS = (
    "position", "token", "layer", "rank", "top_id", "top_token", "top_probability", "answer", "answer_probability",
    "answer_rank", "entropy_nats",
)  # fmt: skip
"""The columns of a lens's table."""


@dataclass(frozen=True, eq=False)
class LogitLens:
    """The next-token distribution of each token and layer: the model's final norm and head on each block's output.

    Attributes:
        prompt: The prompt.
        input_ids: The prompt's token ids [tokens].
        input_tokens: The text of each token.
        top_ids: The most probable next tokens, most probable first [tokens, layers, top].
        top_probabilities: The probabilities of `top_ids` [tokens, layers, top].
        texts: The text of each token in `top_ids`, by id.
        answer: The answer's text.
        answer_id: The answer's token id.
        answer_probabilities: The answer's probability [tokens, layers].
        answer_ranks: The answer's rank, 1 for the most probable token [tokens, layers].
        entropies: The entropy of the distribution in nats [tokens, layers].
        run: The name of the run, such as "clean run".
        samples: Number of noise samples whose probabilities were averaged; 1 in a run without noise.
        model: The model's name.
        revision: The model's revision, if it has one.
        dtype: Dtype of the weights.
        final_norm: The module used as the final norm.
        versions: Versions of the libraries used.
        notes: Warnings for the reader, such as an answer of several tokens.

    All tensors are on the CPU: float32, and int64 for ids and ranks. The last layer is the model's own prediction.
    """

    prompt: str
    input_ids: Tensor
    input_tokens: tuple[str, ...]
    top_ids: Tensor
    top_probabilities: Tensor
    texts: Mapping[int, str]
    answer: str
    answer_id: int
    answer_probabilities: Tensor
    answer_ranks: Tensor
    entropies: Tensor
    run: str
    samples: int
    model: str
    revision: str | None
    dtype: str
    final_norm: str
    versions: Mapping[str, str]
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the prompt, the answer and the last token's top tokens in a few lines."""
        return lens_lines(self)

    def _repr_html_(self) -> str | None:
        """Return the figure as HTML for notebooks; None without Plotly, so that they show the text."""
        return lens_figure(self)

    def top(self, token: int, layer: int) -> Tokens:
        """Return the most probable next tokens at a token and layer, most probable first.

        Args:
            token: The token's position; a negative one counts from the end.
            layer: The layer; a negative one counts from the end.

        Raises:
            SettingsError: The token or the layer is out of range.
        """
        tokens, layers = self.entropies.shape
        for name, number, count in (("token", token, tokens), ("layer", layer, layers)):
            if not -count <= whole_number(name, number) < count:
                raise SettingsError(f"{name}={number} is out of range: give 0 to {count - 1}, or -{count} to -1.")
        pairs = zip(self.top_ids[token, layer].tolist(), self.top_probabilities[token, layer].tolist(), strict=True)
        return tuple(TokenProbability(number, self.texts[number], probability) for number, probability in pairs)

    def to_csv(self) -> str:
        """Return a table as CSV: a row for each token, layer and top token (`COLUMNS`)."""
        return csv_text(COLUMNS, self.rows())

    def rows(self) -> Iterator[tuple[Any, ...]]:
        """Yield the rows of the table, with the columns `COLUMNS`."""
        for position, text in enumerate(self.input_tokens):
            for layer in range(self.entropies.shape[1]):
                place = position, layer
                read = (
                    self.answer,
                    float(self.answer_probabilities[place]),
                    int(self.answer_ranks[place]),
                    float(self.entropies[place]),
                )
                for rank, best in enumerate(self.top(*place), start=1):
                    yield position, text, layer, rank, best.token_id, best.text, best.probability, *read

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        data = saved_form.format_header("LogitLens")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, Tensor):
                value = saved_form.nested_lists(value)
            data[item.name] = list(value) if isinstance(value, tuple) else value
        return {
            **data,
            "texts": {str(token): text for token, text in self.texts.items()},
            "versions": dict(self.versions),
        }

    @classmethod
    def from_dict(cls, data: Any) -> LogitLens:
        """Return the result that `to_dict` wrote.

        Raises:
            ResultFormatError: The data is not a saved LogitLens, is from a newer version, or is inconsistent.
        """
        with saved_form.checked_format("LogitLens", data):
            lens = cls(
                prompt=str(data["prompt"]),
                input_ids=saved_form.integer_tensor(data["input_ids"]),
                input_tokens=tuple(str(token) for token in data["input_tokens"]),
                top_ids=saved_form.integer_tensor(data["top_ids"]),
                top_probabilities=saved_form.float_tensor(data["top_probabilities"]),
                texts={int(token): str(text) for token, text in data["texts"].items()},
                answer=str(data["answer"]),
                answer_id=int(data["answer_id"]),
                answer_probabilities=saved_form.float_tensor(data["answer_probabilities"]),
                answer_ranks=saved_form.integer_tensor(data["answer_ranks"]),
                entropies=saved_form.float_tensor(data["entropies"]),
                run=str(data["run"]),
                samples=int(data["samples"]),
                model=str(data["model"]),
                revision=None if data["revision"] is None else str(data["revision"]),
                dtype=str(data["dtype"]),
                final_norm=str(data["final_norm"]),
                versions={str(name): str(version) for name, version in data["versions"].items()},
                notes=tuple(str(note) for note in data["notes"]),
            )
        lens._check()
        return lens

    def _check(self) -> None:
        shape = self.entropies.shape
        fits = (
            len(shape) == 2
            and 0 not in shape
            and shape[0] == len(self.input_tokens)
            and self.input_ids.shape == shape[:1]
            and self.answer_probabilities.shape == self.answer_ranks.shape == shape
            and self.top_ids.shape == self.top_probabilities.shape
            and self.top_ids.dim() == 3
            and self.top_ids.shape[:2] == shape
            and self.top_ids.shape[2] > 0
            and set(self.top_ids.flatten().tolist()) <= self.texts.keys()
        )
        if not fits:
            raise ResultFormatError(
                f"This saved LogitLens is inconsistent: {len(self.input_tokens)} tokens, entropies "
                f"{list(shape)}, top tokens {list(self.top_ids.shape)} with {len(self.texts)} texts."
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the result as JSON. `LogitLens.load` reads it back with identical numbers.

        Args:
            path: The file. Missing folders are created.

        Raises:
            ExportError: The result has infinite numbers, or the file cannot be written.
        """
        saved_form.save(self.to_dict(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> LogitLens:
        """Read a result that `save` wrote.

        Raises:
            ResultFormatError: The file cannot be read, or is not a saved LogitLens.
        """
        return cls.from_dict(saved_form.load(path, cls.__name__))
