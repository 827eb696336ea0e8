"""The card of a patched run: its request, and its differences from the card before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from causal_tracer.arguments import as_list, quoted, whole_number
from causal_tracer.errors import SettingsError
from causal_tracer.request.other_prompt import checked_prompt_text
from causal_tracer.request.record import Check, from_data, record
from causal_tracer.request.records import Text, TraceRequest
from causal_tracer.request.sites import SITES, SiteName, require_kind
from causal_tracer.results.labels import display_token
from causal_tracer.results.lens import LogitLens
from causal_tracer.results.patched import PatchedRun, Place
from causal_tracer.web.page.card import LONGEST_TEXTS, Card, printable, read_summary, short_data
from causal_tracer.web.page.map_card import prompt_text
from causal_tracer.web.page.patch_views import Pair
from causal_tracer.web.page.thumbnails import change_levels

# Far more tokens and layers than any model has.
_LARGEST = 2**31


def _site(_name: str, value: Any) -> SiteName:
    return require_kind(value)


def _pairs(name: str, value: Any) -> tuple[Pair, ...]:
    found = [[_place(name, place) for place in as_list(name, pair)] for pair in as_list(name, value)]
    if not found or any(len(pair) != 2 for pair in found):
        raise SettingsError(f"{name} must be pairs of a source cell and a base cell (given: {quoted(value)}).")
    return tuple((source, base) for source, base in found)


def _place(name: str, value: Any) -> Place:
    numbers = tuple(whole_number(name, number, 0, _LARGEST) for number in as_list(name, value))
    if len(numbers) != 2:
        raise SettingsError(f"A cell of {name} must be (token, layer) (given: {quoted(value)}).")
    return numbers


@record
class PatchAsked:
    """A patched run, as the tab Patch asks for it."""

    source: TraceRequest
    """The prompt whose activations are taken, with the answer that is read."""

    base: Annotated[Text, Check(checked_prompt_text)]
    """The prompt that is run with these activations."""

    pairs: Annotated[tuple[tuple[Place, Place], ...], Check(_pairs)]
    """Each cell of the source, (token, layer), with the cell of the base into which it is patched."""

    site: Annotated[SiteName, Check(_site)] = "hidden"
    """Which activations are patched."""

    answers: tuple[int, ...] = ()
    """Token ids of the answers whose probabilities are read."""


@dataclass(frozen=True, kw_only=True)
class PatchCard(Card):
    """The card of a patched run.

    Attributes:
        asked: The request of the run.
    """

    asked: PatchAsked

    @property
    def kinds(self) -> tuple[str, ...]:
        """The site whose activations were patched."""
        return (self.asked.site,)

    @property
    def title(self) -> str:
        """The number of pairs, as text."""
        count = len(self.asked.pairs)
        return f"Patch: {count} {'pair' if count == 1 else 'pairs'}"

    @property
    def prompt(self) -> str:
        """Both prompts as text."""
        return f"{prompt_text(self.asked.source.prompt)} → {prompt_text(self.asked.base)}"

    def change_from(self, before: Card | None) -> str:
        """Return the site, and what changed from another patched run."""
        changes = [SITES[self.asked.site].label]
        if not isinstance(before, PatchCard):
            return changes[0]
        own, other = self.asked, before.asked
        if before.model != self.model:
            changes.append(f"model {self.model}")
        if own.source.prompt != other.source.prompt:
            changes.append("other source")
        elif own.source != other.source:
            changes.append("other answer")
        if own.base != other.base:
            changes.append("other base")
        if own.pairs != other.pairs:
            changes.append("other pairs")
        return ", ".join(changes)

    def extends(self, other: Card) -> bool:
        """Return whether this run is an earlier one with pairs added."""
        return (
            isinstance(other, PatchCard)
            and self.model == other.model
            and (self.asked.source, self.asked.base, self.asked.site)
            == (other.asked.source, other.asked.base, other.asked.site)
            and set(self.asked.pairs) > set(other.asked.pairs)
        )

    def _request_data(self) -> dict[str, Any]:
        return {"model": self.model, "patch": {**short_data(self.asked), "source": short_data(self.asked.source)}}


def patch_card_of(model: str, source: TraceRequest, base: Text, run: PatchedRun, base_lens: LogitLens) -> PatchCard:
    """Return the card of a finished patched run.

    Args:
        model: The model's name.
        source: The source prompt with its answer.
        base: The base prompt.
        run: The patched run.
        base_lens: The lens of the base run, with the same answer.
    """
    answer = run.answers[0]
    asked = PatchAsked(source, base, run.pairs, run.site, tuple(each.token_id for each in run.answers))
    return PatchCard(
        model=printable(model, LONGEST_TEXTS["model"]),
        asked=asked,
        answer=printable(display_token(answer.text), LONGEST_TEXTS["answer"]),
        number=f"P {answer.base:.2f} → {answer.patched:.2f}",
        thumbnail=(change_levels(run.lens.answer_probabilities - base_lens.answer_probabilities),),
    )


def read_patch_card(entry: Mapping[str, Any]) -> PatchCard:
    """Return the card of an untrusted entry of a list (`Card.to_data`).

    Raises:
        CausalTracerError: The entry is invalid or too long.
    """
    summary = read_summary(entry)
    return PatchCard(asked=from_data(PatchAsked, entry.get("patch")), **summary)
