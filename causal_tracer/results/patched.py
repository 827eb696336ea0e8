"""`PatchedRun`: the result of copying activations of one prompt's run into another prompt's run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor

from causal_tracer.errors import ResultFormatError
from causal_tracer.request.sites import SITES, SiteName, require_site
from causal_tracer.results import saved_form
from causal_tracer.results.lens import LogitLens
from causal_tracer.results.reprs import lens_figure, patched_lines
from causal_tracer.results.top_tokens import Tokens

Place = tuple[int, ...]
"""A cell: (token, layer), or (token, layer, head) for attention heads."""


@dataclass(frozen=True)
class PatchedAnswer:
    """The probability of one answer in the three runs.

    Attributes:
        token_id: The answer's token id.
        text: The answer's text.
        source: The answer's probability in the source prompt's clean run.
        base: The probability in the base prompt's clean run.
        patched: The probability in the patched run.
    """

    token_id: int
    text: str
    source: float
    base: float
    patched: float


@dataclass(frozen=True, eq=False)
class PatchedRun:
    """A run of the base prompt in which some activations have the values of the source prompt's clean run.

    Attributes:
        source_prompt: The prompt whose activations were copied.
        source_tokens: The texts of the source prompt's tokens.
        base_prompt: The prompt that was run with these activations.
        base_tokens: The texts of the base prompt's tokens.
        site: The kind of activations that were copied.
        pairs: For each copy, the cell of the source that was read and the cell of the base that was written.
        answers: The probability of each answer after the last token. Without given answers these are the most
            probable token of the source's clean run and that of the base's, once if they are the same.
        lens: The logit lens of the patched run. Its answer is the first of `answers`.
        cone: The cells of the residual stream that the patch can change [tokens, layers], bool: the written cells,
            and later layers at the same and later tokens. In a causal model all others equal the base's clean run.
        notes: Warnings for the reader.
    """

    source_prompt: str
    source_tokens: tuple[str, ...]
    base_prompt: str
    base_tokens: tuple[str, ...]
    site: SiteName
    pairs: tuple[tuple[Place, Place], ...]
    answers: tuple[PatchedAnswer, ...]
    lens: LogitLens
    cone: Tensor
    notes: tuple[str, ...] = ()

    def __repr__(self) -> str:
        """Return the prompts, pairs and answers in a few lines."""
        return patched_lines(self)

    def _repr_html_(self) -> str | None:
        """Return the lens's figure as HTML for notebooks; None without Plotly, so that they show the text."""
        return lens_figure(self.lens)

    @property
    def top_tokens(self) -> Tokens:
        """The patched run's most probable tokens after the last token, most probable first."""
        return self.lens.top(-1, -1)

    def to_dict(self) -> dict[str, Any]:
        """Return the result as JSON types."""
        return {
            **saved_form.format_header("PatchedRun"),
            "source_prompt": self.source_prompt,
            "source_tokens": list(self.source_tokens),
            "base_prompt": self.base_prompt,
            "base_tokens": list(self.base_tokens),
            "site": self.site,
            "pairs": [[list(place) for place in pair] for pair in self.pairs],
            "answers": [asdict(answer) for answer in self.answers],
            "lens": self.lens.to_dict(),
            "cone": self.cone.tolist(),
            "notes": list(self.notes),
        }

    @classmethod
    def from_dict(cls, data: Any) -> PatchedRun:
        """Return the result that `to_dict` wrote.

        Raises:
            ResultFormatError: The data is not a saved PatchedRun, is from a newer version, or is inconsistent.
        """
        with saved_form.checked_format("PatchedRun", data):
            found = cls(
                source_prompt=str(data["source_prompt"]),
                source_tokens=tuple(str(token) for token in data["source_tokens"]),
                base_prompt=str(data["base_prompt"]),
                base_tokens=tuple(str(token) for token in data["base_tokens"]),
                site=require_site(data["site"]),
                pairs=tuple((_place(source), _place(base)) for source, base in data["pairs"]),
                answers=tuple(
                    PatchedAnswer(
                        int(answer["token_id"]),
                        str(answer["text"]),
                        *(float(answer[run]) for run in ("source", "base", "patched")),
                    )
                    for answer in data["answers"]
                ),
                lens=LogitLens.from_dict(data["lens"]),
                cone=torch.tensor(data["cone"], dtype=torch.bool, device="cpu"),
                notes=tuple(str(note) for note in data["notes"]),
            )
        found._check()
        return found

    def _check(self) -> None:
        length = 3 if SITES[self.site].rows == "heads" else 2
        ends = (len(self.source_tokens), len(self.base_tokens))
        fits = (
            self.answers
            and self.base_tokens == self.lens.input_tokens
            and self.cone.shape == self.lens.entropies.shape
            and all(
                len(place) == length and 0 <= place[0] < tokens and 0 <= place[1] < self.lens.entropies.shape[1]
                for pair in self.pairs
                for place, tokens in zip(pair, ends, strict=True)
            )
        )
        if not fits:
            raise ResultFormatError(
                f"This saved PatchedRun is inconsistent: {ends[0]} and {ends[1]} tokens, pairs {self.pairs}, "
                f"{len(self.answers)} answers."
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the result as JSON. `PatchedRun.load` reads it back with identical numbers.

        Args:
            path: The file. Missing folders are created.

        Raises:
            ExportError: The result has infinite numbers, or the file cannot be written.
        """
        saved_form.save(self.to_dict(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PatchedRun:
        """Read a result that `save` wrote.

        Raises:
            ResultFormatError: The file cannot be read, or is not a saved PatchedRun.
        """
        return cls.from_dict(saved_form.load(path, cls.__name__))


def _place(data: Any) -> Place:
    return tuple(int(number) for number in data)
