"""The card of a run that made maps: its request, and its differences from the card before."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from causal_tracer.errors import SettingsError
from causal_tracer.request.record import changed_fields, from_data, record_fields
from causal_tracer.request.records import MapSpec, RunOptions, StoredRequest, TraceRequest
from causal_tracer.request.sites import KINDS, SITES
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.labels import display_token, low_run_name, metric_of
from causal_tracer.web.page.card import LONGEST_TEXTS, Card, difference, printable, read_summary, short_data, short_list
from causal_tracer.web.page.thumbnails import levels
from causal_tracer.web.service.links import linked_revision


@dataclass(frozen=True, kw_only=True)
class MapCard(Card):
    """The card of a run that made maps.

    Attributes:
        asked: The stored request of each map of the run; all have the same request and options.
    """

    asked: tuple[StoredRequest, ...]

    @property
    def kinds(self) -> tuple[str, ...]:
        """The sites of the run's maps."""
        return tuple(each.map.kind for each in self.asked)

    @property
    def title(self) -> str:
        """The titles of the run's maps, as one text."""
        if self.kinds == KINDS:
            return "All three"
        return " and ".join(SITES[kind].title for kind in self.kinds)

    @property
    def prompt(self) -> str:
        """The prompt as text; for a conversation, its last message."""
        return prompt_text(self.asked[0].request.prompt)

    def change_from(self, before: Card | None) -> str:
        """Return the settings that changed from another run of maps; nothing from a run of another experiment."""
        return differences(before, self) if isinstance(before, MapCard) else ""

    def extends(self, other: Card) -> bool:
        """Return False: each run that made maps has a card of its own."""
        return False

    def _request_data(self) -> dict[str, Any]:
        first = self.asked[0]
        return {
            "model": self.model,
            "request": short_data(first.request),
            "maps": [short_data(each.map) for each in self.asked],
            "options": short_data(first.options),
        }


def map_card_of(
    flows: Sequence[HiddenFlow], model: str = "", asked: Sequence[StoredRequest] = (), opened: str = ""
) -> MapCard:
    """Return the card of a finished run or of an opened file.

    Args:
        flows: The run's maps.
        model: The name by which the app knows the model; empty takes the result's own.
        asked: The stored requests, if they are known already.
        opened: The digest of the file.

    Raises:
        SettingsError: The result does not store its request.
    """
    flow = flows[0]
    metric = metric_of(flow)
    low = low_run_name(flow.settings)
    number = (
        f"clean {metric.format_value(flow.high_score)}"
        if low is None
        else f"total effect {metric.format_value(flow.total_effect)}"
    )
    return MapCard(
        model=printable(model or flow.settings.model, LONGEST_TEXTS["model"]),
        asked=tuple(asked) or tuple(each.stored_request() for each in flows),
        answer=printable(display_token(flow.answer), LONGEST_TEXTS["answer"]),
        number=printable(number, LONGEST_TEXTS["number"]),
        thumbnail=levels(flows),
        opened=opened,
        revision=linked_revision(flow.settings.revision),
    )


def read_map_card(entry: Mapping[str, Any]) -> MapCard:
    """Return the card of an untrusted entry of a list (`Card.to_data`).

    Raises:
        CausalTracerError: The entry is invalid or too long.
    """
    summary = read_summary(entry)
    maps = short_list("maps", entry)
    if not maps:
        raise SettingsError("it has no maps.")
    request, options = from_data(TraceRequest, entry.get("request")), from_data(RunOptions, entry.get("options", {}))
    return MapCard(asked=tuple(StoredRequest(request, from_data(MapSpec, spec), options) for spec in maps), **summary)


def prompt_text(prompt: Any) -> str:
    """Return a prompt as text; for a conversation, its last message."""
    messages = getattr(prompt, "messages", None)
    return str(messages[-1]["content"] if messages else getattr(prompt, "text", prompt))


def differences(before: MapCard, after: MapCard) -> str:
    """Return the settings that changed from one run to another, as text: "samples 10 → 20".

    The sites of the maps are left out, since a card's title names them.
    """
    parts = [] if before.model == after.model else [f"model {after.model}"]
    pairs: list[tuple[Any, Any]] = [(before.asked[0].request, after.asked[0].request)]
    if before.kinds == after.kinds:
        pairs += [(old.map, new.map) for old, new in zip(before.asked, after.asked, strict=True)]
    else:
        pairs.append((before.asked[0].map, after.asked[0].map))
    pairs.append((before.asked[0].options, after.asked[0].options))
    found: dict[str, str] = {}
    for old, new in pairs:
        for name in changed_fields(old).keys() | changed_fields(new).keys():
            one, other = getattr(old, name), getattr(new, name)
            if name != "kind" and one != other:
                found[name] = difference(name, one, other)
    if "prompt" in found:
        # Another fact has another subject and answer.
        found = {name: words for name, words in found.items() if name not in ("subject", "answer", "answer_id")}
    order = [name for record in (TraceRequest, MapSpec, RunOptions) for name in record_fields(record)]
    return ", ".join([*parts, *(found[name] for name in sorted(found, key=order.index))])
