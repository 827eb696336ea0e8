"""Stored results, found by their request, for the history of runs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from causal_tracer.errors import SettingsError
from causal_tracer.request.records import StoredRequest
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.web.service.registry import ModelSlot
from causal_tracer.web.service.result_store import ResultKey, ResultStore, result_key
from causal_tracer.web.service.single_runs import SingleRuns

# Larger opened files are shown but not stored: a few of them would displace everybody's results.
_LARGEST_FILE_TEXT = 4 * 2**20


@dataclass(frozen=True)
class KeptResults:
    """The finished maps, opened files and patched runs that the app has stored.

    Attributes:
        store: Where they are stored.
        slot_of: Returns the model with a name; raises SettingsError if the app has no such model.
        single: Lenses and patched runs.
    """

    store: ResultStore
    slot_of: Callable[[str], ModelSlot]
    single: SingleRuns

    def flows(self, model: str, asked: Sequence[StoredRequest]) -> tuple[HiddenFlow, ...] | None:
        """Return the maps of a run, in the order of their requests; None if one of them is not stored."""
        found = [self.store.get(key) for key in self._keys(model, asked)]
        flows = tuple(flow for flow in found if flow is not None)
        return flows if flows and len(flows) == len(found) else None

    def has(self, model: str, asked: Sequence[StoredRequest]) -> bool | None:
        """Return whether the maps of a run are stored; None while that depends on a model that is not loaded."""
        try:
            slot = self.slot_of(model)
        except SettingsError:
            return False
        if not slot.identity.lasting and not slot.status.settled:
            return None
        return all(key in self.store for key in self._keys(model, asked))

    def has_patch(self, model: str, *asked: Any) -> bool:
        """Return whether a patched run is kept; further arguments as in `SingleRuns.keeps_patch`."""
        try:
            return self.single.keeps_patch(self.slot_of(model), *asked)
        except SettingsError:
            return False

    def keep_file(self, flow: HiddenFlow) -> str:
        """Store an opened file under a digest of its content, separate from computed results; return the digest."""
        text = json.dumps(flow.to_dict(), sort_keys=True)
        digest = hashlib.sha256(b"opened file\n" + text.encode()).hexdigest()
        if len(text) <= _LARGEST_FILE_TEXT:
            self.store.put(ResultKey(digest, lasting=True), flow)
        return digest

    def file(self, digest: str) -> HiddenFlow | None:
        """Return an opened file by its digest; None if it is not stored."""
        return self.store.get(ResultKey(digest, lasting=True))

    def has_file(self, digest: str) -> bool:
        """Return whether an opened file is stored."""
        return ResultKey(digest, lasting=True) in self.store

    def _keys(self, model: str, asked: Sequence[StoredRequest]) -> list[ResultKey]:
        try:
            identity = self.slot_of(model).identity
        except SettingsError:
            return []
        return [result_key(identity, each) for each in asked]
