"""Logit lenses and patched runs for the app: one run of a model each, within the app's limits. The last are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from causal_tracer.errors import PromptError, SettingsError, TraceCancelled
from causal_tracer.request.records import MapSpec, RunOptions, Text, TraceRequest
from causal_tracer.request.sites import SiteName
from causal_tracer.results.lens import LogitLens
from causal_tracer.results.patched import PatchedRun, Place
from causal_tracer.tracer import CausalTracer
from causal_tracer.tracing.lens import whole_prompt
from causal_tracer.web.service.limits import ClientShares, check_other_texts, most_samples, too_long
from causal_tracer.web.service.memory import memory_errors_as_busy, return_freed_memory
from causal_tracer.web.service.recent import Recent
from causal_tracer.web.service.registry import ModelSlot
from causal_tracer.web.service.settings import ServiceSettings
from causal_tracer.web.service.updates import Cancelled

Result = TypeVar("Result", LogitLens, PatchedRun)

MOST_TOP_TOKENS = 50
USUAL_TOP_TOKENS = 5
MOST_PAIRS = 1000
LENS_WORK = 20
"""The work of a run with the LM head at each layer, in restored runs, for the client's share."""

_POLL_SECONDS = 0.25
# A lens of the longest prompt with the most top tokens takes some megabytes.
_MOST_KEPT = 32


@dataclass(frozen=True)
class SingleRuns:
    """Lenses and patched runs of the app's models.

    Attributes:
        settings: The app's limits.
        shares: The limits of each client.
        kept: The last results, by everything that determines them; they cost no run and no share.
    """

    settings: ServiceSettings
    shares: ClientShares
    kept: Recent[Any] = field(default_factory=lambda: Recent(_MOST_KEPT))

    def lens(
        self,
        slot: ModelSlot,
        request: TraceRequest,
        client: str = "",
        *,
        top: int = USUAL_TOP_TOKENS,
        corrupted: bool = False,
        restored: tuple[int, int] | None = None,
        spec: MapSpec | None = None,
        options: RunOptions | None = None,
        cancelled: Cancelled = lambda: False,
    ) -> LogitLens:
        """Compute the logit lens of a run; other arguments as in `CausalTracer.lens`.

        Args:
            slot: The model.
            client: The client whose limits apply.
            cancelled: Called while the run waits for its turn and while its cells are read; True ends it.

        Raises:
            SettingsError, PromptError: As in `CausalTracer.lens`, or the request is over one of the app's limits.
            ModelLoadError: The model could not be loaded.
            BusyError: The queue is full, or the client's share is used up.
            TraceCancelled: `cancelled` returned True.
        """
        _check_top(top)
        runs = 1 if not corrupted and restored is None else most_samples(request)
        asked: dict[str, Any] = {
            "top": top,
            "corrupted": corrupted,
            "restored": restored,
            "spec": spec,
            "options": options,
        }

        def read() -> LogitLens:
            with self._turn(slot, client, runs, cancelled) as tracer:
                self._check_length(tracer, request.prompt)
                check_other_texts(tracer.context, request, self.settings)
                return tracer.lens(request, cancelled=cancelled, **asked)

        return self._kept(slot, client, cancelled, (request, asked), read)

    def patch(
        self,
        slot: ModelSlot,
        source: Text,
        base: Text,
        pairs: Sequence[tuple[Place, Place]],
        site: SiteName = "hidden",
        client: str = "",
        *,
        answers: Sequence[str | int] | None = None,
        top: int = USUAL_TOP_TOKENS,
        cancelled: Cancelled = lambda: False,
    ) -> PatchedRun:
        """Run a prompt with activations of another patched in, as `CausalTracer.patch` does; errors as in `lens`."""
        _check_top(top)
        if len(pairs) > MOST_PAIRS:
            raise SettingsError(f"{len(pairs)} pairs were given, and this app takes at most {MOST_PAIRS}. Give fewer.")

        def run() -> PatchedRun:
            with self._turn(slot, client, 1, cancelled) as tracer:
                for text in (source, base):
                    self._check_length(tracer, text)
                return tracer.patch(source, base, pairs, site, answers=answers, top=top)

        return self._kept(slot, client, cancelled, (source, base, pairs, site, answers, top), run)

    def keeps_patch(
        self,
        slot: ModelSlot,
        source: Text,
        base: Text,
        pairs: Sequence[tuple[Place, Place]],
        site: SiteName,
        answers: Sequence[str | int],
    ) -> bool:
        """Return whether a patched run with the usual number of top tokens is kept."""
        return _key(slot, (source, base, pairs, site, answers, USUAL_TOP_TOKENS)) in self.kept

    def _kept(
        self, slot: ModelSlot, client: str, cancelled: Cancelled, asked: tuple[Any, ...], compute: Callable[[], Result]
    ) -> Result:
        """Return a kept result, or else a computed one, once the model is loaded."""
        with self.shares.request(client):
            slot.start()
            while not slot.wait(_POLL_SECONDS):
                _require_wanted(cancelled)
            slot.loaded()
            found: Result = self.kept.get(_key(slot, asked), compute)
            return found

    @contextmanager
    def _turn(self, slot: ModelSlot, client: str, runs: int, cancelled: Cancelled) -> Iterator[CausalTracer]:
        """Wait for a turn on a loaded model; `runs` is the number of runs to charge the client for."""
        self.shares.charge(client, LENS_WORK * runs)
        ticket = slot.queue.join()
        try:
            while slot.queue.wait(ticket, _POLL_SECONDS):
                _require_wanted(cancelled)
            with memory_errors_as_busy():
                yield slot.loaded().tracer
        finally:
            slot.queue.leave(ticket)
            return_freed_memory()

    def _check_length(self, tracer: CausalTracer, text: Text) -> None:
        tokens = len(whole_prompt(tracer.context, text))
        if words := too_long(tokens, self.settings):
            raise PromptError(words)


def _key(slot: ModelSlot, asked: tuple[Any, ...]) -> tuple[str, str]:
    # The repr of requests and texts names all that determines the result.
    return slot.identity.text, repr(asked)


def _require_wanted(cancelled: Cancelled) -> None:
    if cancelled():
        raise TraceCancelled("The run was cancelled while it waited for its turn.")


def _check_top(top: int) -> None:
    if isinstance(top, int) and top > MOST_TOP_TOKENS:
        raise SettingsError(f"top={top} is over this app's limit of {MOST_TOP_TOKENS}. Give less.")
