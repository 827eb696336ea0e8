"""Results that the app has already, looked up by what was asked for, for a history of runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from causal_tracer.errors import SettingsError
from causal_tracer.request.records import StoredRequest
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.web.service.registry import ModelSlot
from causal_tracer.web.service.result_store import ResultKey, ResultStore, result_key

# Larger files are shown and not kept: few of them would push out what others computed.
_LARGEST_FILE_TEXT = 4 * 2**20


@dataclass(frozen=True)
class KeptResults:
    """Finished maps and opened files of the app.

    Attributes:
        store: Where they are.
        slot_of: Returns the model of a name; raises SettingsError where the app has none of it.
    """

    store: ResultStore
    slot_of: Callable[[str], ModelSlot]

    def flows(self, model: str, asked: Sequence[StoredRequest]) -> tuple[HiddenFlow, ...] | None:
        """Return the maps of a run, in the order of what was asked for; None where one of them is not kept."""
        found = [self.store.get(key) for key in self._keys(model, asked)]
        flows = tuple(flow for flow in found if flow is not None)
        return flows if flows and len(flows) == len(found) else None

    def has(self, model: str, asked: Sequence[StoredRequest]) -> bool | None:
        """Return whether the maps of a run are kept; None while that depends on a model that is not loaded."""
        try:
            slot = self.slot_of(model)
        except SettingsError:
            return False
        if not slot.identity.lasting and not slot.status.settled:
            return None
        return all(key in self.store for key in self._keys(model, asked))

    def keep_file(self, flow: HiddenFlow) -> str:
        """Keep an opened file under a digest of its content, apart from what was computed here; return the digest."""
        text = json.dumps(flow.to_dict(), sort_keys=True)
        digest = hashlib.sha256(b"opened file\n" + text.encode()).hexdigest()
        if len(text) <= _LARGEST_FILE_TEXT:
            self.store.put(ResultKey(digest, lasting=True), flow)
        return digest

    def file(self, digest: str) -> HiddenFlow | None:
        """Return an opened file by its digest; None where it is not kept."""
        return self.store.get(ResultKey(digest, lasting=True))

    def has_file(self, digest: str) -> bool:
        """Return whether an opened file is kept."""
        return ResultKey(digest, lasting=True) in self.store

    def _keys(self, model: str, asked: Sequence[StoredRequest]) -> list[ResultKey]:
        try:
            identity = self.slot_of(model).identity
        except SettingsError:
            return []
        return [result_key(identity, each) for each in asked]
