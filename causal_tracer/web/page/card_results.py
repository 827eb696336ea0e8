"""The results of the history's cards, as far as they are kept, and the fields that compute them again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from causal_tracer.errors import ResultLostError, SettingsError
from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.records import MapSpec, RunOptions, StoredRequest
from causal_tracer.web.page.card import Card
from causal_tracer.web.page.handlers import together
from causal_tracer.web.page.map_card import MapCard, map_card_of
from causal_tracer.web.page.patch_card import PatchCard
from causal_tracer.web.service.app_fields import Fields
from causal_tracer.web.service.field_checks import check_fields
from causal_tracer.web.service.figures import Flows
from causal_tracer.web.service.links import asked_fields, linked_revision, typed_text
from causal_tracer.web.service.tracing import TraceService


@dataclass(frozen=True)
class CardResults:
    """The results of the history's cards.

    Attributes:
        service: The models and the results.
    """

    service: TraceService

    def keeps(self, card: Card) -> bool | None:
        """Return whether the app still has a card's result; None while that is not known."""
        kept = self.service.kept
        if isinstance(card, PatchCard):
            asked, answers = card.asked, list(card.asked.answers)
            return kept.has_patch(card.model, asked.source.prompt, asked.base, asked.pairs, asked.site, answers)
        if not isinstance(card, MapCard):
            return None
        return kept.has_file(card.opened) if card.opened else kept.has(card.model, card.asked)

    def flows(self, card: MapCard) -> Any:
        """Return the maps of a card by site; None if they are no longer kept."""
        kept = self.service.kept
        if not card.opened:
            found = kept.flows(card.model, card.asked)
        else:
            found = None if (flow := kept.file(card.opened)) is None else (flow,)
        return None if found is None else dict(zip(card.kinds, found, strict=True))

    def fields(self, card: MapCard, *, lost: bool) -> Fields | None:
        """Return the fields of a card; None leaves the page's fields unchanged, if they cannot describe the result.

        Raises:
            CausalTracerError: The result is lost, and the fields cannot describe it, so it cannot be computed again.
        """
        if card.opened:
            if lost:
                raise ResultLostError("The opened file is no longer kept. Open it again.")
            return None
        try:
            model = self.service.status(card.model).model
            asked = together([asked_fields(each, model, each.request.noise) for each in card.asked])
            return {**asked, "model": model}
        except SettingsError:
            if lost:
                raise
            return None

    def patch_fields(self, card: PatchCard) -> Fields:
        """Return the fields of a patched run's source.

        Raises:
            SettingsError: The app does not have the model, or the page's fields cannot describe the prompts.
        """
        asked, model = card.asked, self.service.status(card.model).model
        found = {**asked_fields(StoredRequest(asked.source, MapSpec(), RunOptions()), model, None), "model": model}
        if typed_text(asked.base) is None or isinstance(asked.base, ChatText) != found["chat"]:
            raise SettingsError("This patched run's base prompt cannot be typed into the page, so it cannot be opened.")
        return found

    def asked_anew(self, card: MapCard, fields: Fields | None) -> MapCard:
        """Return the card with the request that the app will run, so that its run fills this card.

        Raises:
            CausalTracerError: The request is over one of the app's limits.
        """
        checked = check_fields(fields or {}, self.service.settings)
        asked = tuple(StoredRequest(checked.request, spec, checked.options) for spec in checked.specs.values())
        return replace(card, asked=asked)

    def card_of(self, flows: Sequence[Any]) -> MapCard:
        """Return the card of a finished run.

        Raises:
            SettingsError: The result does not store its request.
        """
        return map_card_of(flows, self.service.status(flows[0].settings.model).model)

    def filled(self, card: MapCard, flows: Flows) -> MapCard:
        """Return a card completed from its result: a card that a link has added has no answer, number or thumbnail."""
        if card.number:
            return card
        return replace(map_card_of(tuple(flows.values()), card.model, card.asked, card.opened), name=card.name)

    def with_revision(self, card: Card) -> Card:
        """Return a card with the revision that a link to this one run would name."""
        try:
            return replace(card, revision=linked_revision(self.service.revision(card.model, card.revision)))
        except SettingsError:
            # The app does not have this model.
            return card
