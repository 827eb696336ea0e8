"""The web app's service, without Gradio: its models, and traces that yield partial maps as cells are computed.

    service = TraceService(ServiceSettings.from_environment())
    service.start_loading()
    for update in service.trace({"prompt": "The Space Needle is located in the city of"}):
        ...

Finished results are stored in a `ResultStore`; a stored result is returned at once, without the model. One trace runs
on a model at a time, the others wait in its queue. Closing the iteration early frees the model.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from causal_tracer.arguments import quoted
from causal_tracer.errors import BusyError, CausalTracerError, PromptError, SettingsError, SubjectError
from causal_tracer.request.records import StoredRequest, Text, TraceRequest
from causal_tracer.results.flow import HiddenFlow
from causal_tracer.results.lens import LogitLens
from causal_tracer.results.patched import PatchedRun
from causal_tracer.tracing.loop import MapsUpdate
from causal_tracer.web.service import links
from causal_tracer.web.service.app_fields import Fields
from causal_tracer.web.service.field_checks import CheckedFields, check_fields
from causal_tracer.web.service.inspection import Inspection, Problem, inspect_prompt, inspect_unloaded
from causal_tracer.web.service.kept import KeptResults
from causal_tracer.web.service.limits import ClientShares, check_request
from causal_tracer.web.service.links import ParsedLink
from causal_tracer.web.service.logs import logged, prompt_in
from causal_tracer.web.service.memory import memory_errors_as_busy, return_freed_memory
from causal_tracer.web.service.python_lines import python_lines
from causal_tracer.web.service.registry import Loader, ModelSlot, ModelStatus, load_tracer
from causal_tracer.web.service.result_store import ResultKey, ResultStore, result_key
from causal_tracer.web.service.settings import ServiceSettings, limit
from causal_tracer.web.service.single_runs import SingleRuns
from causal_tracer.web.service.updates import Cancelled, RunUpdate, queued_update, stored_update

_POLL_SECONDS = 0.25


class TraceService:
    """The models of the app and the traces on them; safe to share between threads.

    Args:
        settings: Models and limits.
        load: Loads a model; None takes `load_tracer`.

    Attributes:
        kept: The stored results, for the history of runs.
    """

    def __init__(self, settings: ServiceSettings | None = None, load: Loader | None = None) -> None:
        self.settings = settings or ServiceSettings()
        loader = load or partial(load_tracer, device_map=self.settings.device_map)
        slots = [ModelSlot(source, loader, self.settings.max_queue) for source in self.settings.models]
        self._slots = {slot.status.model: slot for slot in slots}
        self._shares = ClientShares(self.settings)
        self._single = SingleRuns(self.settings, self._shares)
        folder = self.settings.results_folder
        self._results = ResultStore(
            Path(folder).expanduser() if folder else None, self.settings.result_bytes, self.settings.result_disk_bytes
        )
        self.kept = KeptResults(self._results, self._slot, self._single)

    @property
    def models(self) -> tuple[str, ...]:
        """The names of the available models, the default first."""
        return tuple(self._slots)

    def start_loading(self, model: str = "") -> None:
        """Start loading a model in the background, unless loading has started already."""
        self._slot(model).start()

    def status(self, model: str = "") -> ModelStatus:
        """Return the status of a model."""
        return self._slot(model).status

    def statuses(self) -> tuple[ModelStatus, ...]:
        """Return the status of each model, the default first."""
        return tuple(slot.status for slot in self._slots.values())

    def ahead(self, model: str = "") -> int:
        """Return the number of requests that a new request on a model would wait for."""
        return len(self._slot(model).queue)

    def health(self) -> dict[str, Any]:
        """Return the app's state for monitoring: "ok", or "failed" if no model could be loaded; and counts."""
        models = {name: slot.status.state for name, slot in self._slots.items()}
        return {
            "status": "failed" if all(state == "failed" for state in models.values()) else "ok",
            "models": models,
            "waiting": sum(max(0, len(slot.queue) - 1) for slot in self._slots.values()),
            "running": sum(min(1, len(slot.queue)) for slot in self._slots.values()),
            "result_bytes": self._results.nbytes,
        }

    def trace(
        self,
        asked: Any,
        client: str = "",
        cancelled: Cancelled = lambda: False,
        *,
        check: Callable[[Any, ServiceSettings], CheckedFields] = check_fields,
    ) -> Generator[RunUpdate]:
        """Trace one prompt, after waiting for the model and for a turn on it if necessary.

        Args:
            asked: The request, as `check` takes it.
            client: The client (`limits.client_of`), for the limits of each client; the empty one has no limits.
            cancelled: Returning True stops the run between two blocks of the model. Closing the iteration stops it
                too, but only at the next update.
            check: Checks the request and makes records of it: `check_fields` takes the page's fields by the names of
                `APP_FIELDS`, `json_requests.check_trace` a JSON object.

        Yields:
            Updates that name what the run waits for, then partial maps as cells are computed; or the finished maps at
            once, if they are stored.

        Raises:
            SettingsError: A value is out of range, or over one of the app's limits.
            PromptError, SubjectError, TokenizerError: The prompt or its subject cannot be traced.
            ModelLoadError: The model could not be loaded.
            BusyError: The queue is full, the client's share is used up, or the run took too long or too much memory.
            NumericsError: A run gave NaN or infinite logits.
            TraceCancelled: `cancelled` returned True.
        """
        with logged("trace", prompt_in(asked), self.settings) as outcome:
            checked = check(asked, self.settings)
            outcome["kind"] = ", ".join(dict.fromkeys(spec.kind for spec in checked.specs.values()))
            slot = self._slot(checked.model)
            outcome["model"] = slot.status.model
            known = self._known(slot, checked)
            if len(known) < len(checked.specs):
                with self._shares.request(client):
                    yield from self._compute(slot, checked, client, outcome, cancelled)
                return
            outcome["outcome"] = "cached"
            yield stored_update(known)

    def lens(self, request: TraceRequest, model: str = "", client: str = "", **given: Any) -> LogitLens:
        """Compute the logit lens of a run; other arguments as in `SingleRuns.lens`."""
        with logged("lens", request.prompt, self.settings) as outcome:
            slot = self._slot(model)
            outcome["model"] = slot.status.model
            return self._single.lens(slot, request, client, **given)

    def patch(
        self, source: Text, base: Text, pairs: Any, model: str = "", client: str = "", **given: Any
    ) -> PatchedRun:
        """Run a prompt with activations of another patched in; other arguments as in `SingleRuns.patch`."""
        with logged("patch", base, self.settings) as outcome:
            slot = self._slot(model)
            outcome["model"] = slot.status.model
            return self._single.patch(slot, source, base, pairs, client=client, **given)

    def inspect(self, fields: Fields, client: str = "") -> Inspection:
        """Inspect a prompt before it is traced: tokens, subject, answers. Errors are reported in `problems`."""
        try:
            slot = self._slot(fields.get("model", ""))
            request = check_fields(fields, self.settings).request
            self._shares.charge(client, 1)
            slot.start()
            if not slot.wait(0):
                return inspect_unloaded(fields["prompt"], request.subject, slot.status.loading_words)
            context = slot.loaded().tracer.context
            return inspect_prompt(context, request, fields["prompt"], self.settings, slot.known_answers)
        except SubjectError as error:
            return Inspection(problems=(Problem("subject", str(error)),))
        except PromptError as error:
            return Inspection(problems=(Problem("prompt", str(error)),))
        except CausalTracerError as error:
            return Inspection(problems=(Problem("settings", str(error)),))

    def link(self, fields: Fields, page: str, *, revision: str | None = None) -> str:
        """Return the link that reproduces a request, with the model and its revision.

        Args:
            fields: The request's fields, valid.
            page: The page's address (`links.page_url`).
            revision: The revision that a result was made with; None takes that of the app's model.
        """
        model = self.status(fields.get("model", "")).model
        return links.share_link({**fields, "model": model}, page, revision=self.revision(model, revision))

    def revision(self, model: str, made_with: str | None = None) -> str | None:
        """Return the revision for a link: the one that a result was made with, or else that of the app's model."""
        return made_with or self.status(model).revision

    def revision_problem(self, model: str, revision: str) -> str:
        """Return the warning about a link whose revision differs from that of the app's model; else an empty text."""
        name = model or self.models[0]
        here = next((slot.status.revision for slot in self._slots.values() if name in slot.names), None)
        return links.revision_problem(revision, here)

    def open_link(self, query: Mapping[str, Any]) -> ParsedLink:
        """Return the content of a link; values that this app cannot take are reported and left out."""
        parsed = links.parse_link(query)
        problems = list(parsed.problems)
        model = parsed.fields.get("model", "")
        if model and not any(model in slot.names for slot in self._slots.values()):
            problems.append(f"model={quoted(model)} in the link is not available here: {self.models[0]} is used.")
            parsed = replace(parsed, fields={**parsed.fields, "model": ""})
        problems += filter(None, [self.revision_problem(model, parsed.revision)])
        return replace(parsed, problems=tuple(problems))

    def python_lines(self, fields: Fields) -> str:
        """Return the lines of Python that reproduce a run.

        Raises:
            SettingsError, PromptError: As in `trace`.
        """
        return python_lines(check_fields(fields, self.settings), *self.loading(fields.get("model", "")))

    def loading(self, model: str = "") -> tuple[str, str | None]:
        """Return the arguments that load a model in Python: its name, and its revision if it is from the hub."""
        slot = self._slot(model)
        return slot.status.model, slot.hub_revision

    def _slot(self, model: str) -> ModelSlot:
        name = (model or self.models[0]) if isinstance(model, str) else None
        # Results store an embedded model's full name, also if the request had the short one.
        slot = next((slot for slot in self._slots.values() if name is not None and name in slot.names), None)
        if slot is None:
            raise SettingsError(f"model={quoted(model)} is not available here. Available: {', '.join(self.models)}.")
        return slot

    def _keys(self, slot: ModelSlot, checked: CheckedFields) -> dict[str, ResultKey]:
        return {
            kind: result_key(slot.identity, StoredRequest(checked.request, spec, checked.options))
            for kind, spec in checked.specs.items()
        }

    def _known(self, slot: ModelSlot, checked: CheckedFields) -> dict[str, HiddenFlow]:
        found = {kind: self._results.get(key) for kind, key in self._keys(slot, checked).items()}
        return {kind: flow for kind, flow in found.items() if flow is not None}

    def _compute(
        self, slot: ModelSlot, checked: CheckedFields, client: str, outcome: dict[str, object], cancelled: Cancelled
    ) -> Generator[RunUpdate]:
        """Trace the maps that are not stored yet, after waiting for the model and for a turn on it."""
        slot.start()
        while not slot.wait(_POLL_SECONDS):
            yield RunUpdate(waiting=slot.status.loading_words)
        context = slot.loaded().tracer.context
        parameters = slot.status.parameters or 0
        work = check_request(context, checked.request, checked.specs, parameters, self.settings)
        self._shares.charge(client, work)
        ticket = slot.queue.join()
        try:
            while ahead := slot.queue.wait(ticket, _POLL_SECONDS):
                yield queued_update(ahead)
            # A request that ran before may have computed the same maps.
            known = self._known(slot, checked)
            missing = {kind: spec for kind, spec in checked.specs.items() if kind not in known}
            if not missing:
                outcome["outcome"] = "cached"
                yield stored_update(known)
                return
            run = partial(slot.loaded().run, context, checked.request, missing, checked.options, cancelled)
            yield from self._traced(slot, checked, run, known, outcome)
        finally:
            slot.queue.leave(ticket)
            return_freed_memory()

    def _traced(
        self,
        slot: ModelSlot,
        checked: CheckedFields,
        run: Callable[[], Iterator[MapsUpdate]],
        known: Mapping[str, HiddenFlow],
        outcome: dict[str, object],
    ) -> Generator[RunUpdate]:
        begun = time.monotonic()
        keys = self._keys(slot, checked)
        most = self.settings.max_seconds
        with memory_errors_as_busy(), closing(cast(Generator[MapsUpdate], run())) as updates:
            for update in updates:
                seconds = time.monotonic() - begun
                new = update.flows
                if update.done >= update.total:
                    for kind, flow in new.items():
                        self._results.put(keys[kind], flow)
                elif seconds > most:
                    raise BusyError(
                        f"The run was stopped after {limit('max_seconds', most)} seconds, with {update.done} of "
                        f"{update.total} restored runs done. Ask for fewer samples or layers, or a shorter prompt."
                    )
                flows = {kind: known[kind] if kind in known else new[kind] for kind in checked.specs}
                outcome |= {"runs": update.done, "seconds": round(seconds, 3)}
                yield RunUpdate(flows, update.done, update.total, seconds)
