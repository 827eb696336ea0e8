"""PatchedRun: the result of putting activations of one prompt's run into another prompt's run."""

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
from causal_tracer.results.short_forms import lens_figure, patched_lines
from causal_tracer.results.top_tokens import Tokens

Place = tuple[int, ...]
"""A cell: (token, layer), of single attention heads (token, layer, head)."""


@dataclass(frozen=True)
class PatchedAnswer:
    """The probability of one answer in the three runs.

    Attributes:
        token_id: The answer's token id.
        text: Its text.
        source: Its probability in the source prompt's clean run.
        base: The same in the base prompt's clean run.
        patched: The same in the patched run.
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
        source_prompt: The prompt that activations come from.
        source_tokens: Its tokens' texts.
        base_prompt: The prompt that is run.
        base_tokens: Its tokens' texts.
        site: Which activations were put in.
        pairs: Where each comes from, and where it was put: cells of the source and of the base.
        answers: The probability of some answers after the last token: those asked for, else the most probable token
            of the source's run and of the base's, once where they are the same.
        lens: The logit lens of the patched run; its answer is the first of `answers`.
        cone: The cells of the residual stream that could change [tokens, layers], bool: those of the pairs, and at the
            same and later tokens those of later layers. In a causal model all others are as in the base's clean run.
        notes: What a reader has to know.
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
        """Prompts, pairs and answers in a few lines."""
        return patched_lines(self)

    def _repr_html_(self) -> str | None:
        """The lens's figure, which notebooks show in place of the text where Plotly is installed."""
        return lens_figure(self.lens)

    @property
    def top_tokens(self) -> Tokens:
        """What the patched model says after the last token, most probable first."""
        return self.lens.top(-1, -1)

    def to_dict(self) -> dict[str, Any]:
        """The result as JSON types."""
        return {
            **saved_form.head("PatchedRun"),
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
        """The result that `to_dict` described.

        Raises:
            ResultFormatError: The data is not such a result, is from a newer version, or does not fit together.
        """
        with saved_form.reading("PatchedRun", data):
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
                f"This saved PatchedRun does not fit together: {ends[0]} and {ends[1]} tokens, pairs {self.pairs}, "
                f"{len(self.answers)} answers."
            )

    def save(self, path: str | PathLike[str]) -> None:
        """Write the result as JSON, into a folder that is made if needed; `PatchedRun.load` gives identical numbers.

        Raises:
            ExportError: The result has infinite numbers, or the file cannot be written.
        """
        saved_form.save(self.to_dict(), path)

    @classmethod
    def load(cls, path: str | PathLike[str]) -> PatchedRun:
        """Read a result that `save` wrote.

        Raises:
            ResultFormatError: The file cannot be read, or is not such a result.
        """
        return cls.from_dict(saved_form.load(path, cls.__name__))


def _place(data: Any) -> Place:
    return tuple(int(number) for number in data)
