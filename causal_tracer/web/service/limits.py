"""The app's limits: length of texts, work of a request, the queue of a model, and each client's share."""

from __future__ import annotations

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from causal_tracer.corruption import CORRUPTIONS, CounterfactualSubjects
from causal_tracer.errors import BusyError, PromptError, SettingsError
from causal_tracer.experiment.set_up import TracingContext, prompt_for
from causal_tracer.prompts.prompt import Prompt
from causal_tracer.request.records import MapSpec, SamplesUntil, Text, TraceRequest
from causal_tracer.request.sites import SITES, SPANS
from causal_tracer.tracing.lens import whole_prompt
from causal_tracer.web.service.settings import REFERENCE_PARAMETERS, ServiceSettings, limit

_SHARE_SECONDS = 600.0
# Above this number, the clients seen longest ago are dropped.
_MOST_CLIENTS = 10_000


def request_size(context: TracingContext, request: TraceRequest, specs: Mapping[str, MapSpec]) -> tuple[int, int, int]:
    """Return the tokens of a request's prompt, the cells of its maps, and the samples of each cell.

    Raises:
        SettingsError: A map's layers are out of the model's range.
        PromptError, SubjectError, TokenizerError: The prompt cannot be traced.
        ModelStructureError: A map is of heads, and the model's heads cannot be told apart.
    """
    prompt = prompt_for(context, request.prompt, request.subject, request.occurrence)
    return len(prompt), sum(_cells(context, prompt, spec) for spec in specs.values()), _samples(request)


def _cells(context: TracingContext, prompt: Prompt, spec: MapSpec) -> int:
    layers, rows = spec.layer_range(context.traced.n_layers), SITES[spec.kind].rows
    if rows == "heads":
        sites = context.traced.head_sites
        return sum(sites[layer][1] for layer in layers if layer in sites)
    if rows == "spans":
        return len(SPANS) * len(layers)
    tokens = set(range(len(prompt)) if spec.positions is None else spec.positions)
    return len(tokens & set(range(*prompt.subject_range)) if spec.subject_tokens_only else tokens) * len(layers)


def _samples(request: TraceRequest) -> int:
    """Return the number of samples of a request, which a deterministic corruption fixes."""
    corruption = request.corruption
    if isinstance(corruption, CounterfactualSubjects):
        return len(corruption.subjects)
    if request.second is not None or (isinstance(corruption, str) and not CORRUPTIONS[corruption].is_random):
        return 1
    return most_samples(request)


def most_samples(request: TraceRequest) -> int:
    """Return the largest number of samples that a random corruption may draw."""
    return request.samples.most if isinstance(request.samples, SamplesUntil) else request.samples


def other_texts(request: TraceRequest) -> Mapping[str, tuple[Text, ...]]:
    """Return the texts that are run beside a request's prompt, by their names in messages."""
    others = {"second prompt": request.second, "placebo": request.placebo}
    found: dict[str, tuple[Text, ...]] = {name: (other.text,) for name, other in others.items() if other is not None}
    return {**found, "text of mean_over": request.mean_over}


def check_other_texts(context: TracingContext, request: TraceRequest, settings: ServiceSettings) -> None:
    """Check that no text that is run beside a request's prompt has too many tokens.

    Raises:
        PromptError: A text has too many tokens, or is not valid.
        TokenizerError: The tokens of a text cannot be aligned with it.
    """
    for name, texts in other_texts(request).items():
        for text in texts:
            if words := too_long(len(whole_prompt(context, text)), settings, name):
                raise PromptError(words)


def too_long(tokens: int, settings: ServiceSettings, name: str = "prompt") -> str:
    """Return the message about a prompt with too many tokens; empty if it is short enough."""
    most = settings.max_prompt_tokens
    words = (
        f"The {name} has {tokens} tokens, and this app takes at most {limit('max_prompt_tokens', most)}. Shorten it."
    )
    return words if tokens > most else ""


def check_request(
    context: TracingContext,
    request: TraceRequest,
    specs: Mapping[str, MapSpec],
    parameters: int,
    settings: ServiceSettings,
) -> int:
    """Check a request against the limits that depend on the model: tokens of all its texts, and work.

    Returns:
        The work, as `check_work` gives it.

    Raises:
        PromptError, SubjectError, TokenizerError: A text is too long, or cannot be traced.
        SettingsError: A map's layers are out of the model's range, or there is too much work.
        ModelStructureError: As in `request_size`.
    """
    tokens, cells, samples = request_size(context, request, specs)
    if words := too_long(tokens, settings):
        raise PromptError(words)
    check_other_texts(context, request, settings)
    return check_work(cells, samples, parameters, settings)


def check_work(cells: int, samples: int, parameters: int, settings: ServiceSettings) -> int:
    """Check the work of a request against the limit for a model of this size.

    Returns:
        The work, in restored runs of a model of 0.3 billion parameters.

    Raises:
        SettingsError: The work is above the limit, which the message names.
    """
    runs = cells * samples
    weight = max(1.0, parameters / REFERENCE_PARAMETERS)
    allowed = int(settings.max_cell_samples / weight)
    if runs > allowed:
        scaled = "" if weight == 1 else f" for a model of {parameters / 1e9:.2g} billion parameters: {allowed}"
        raise SettingsError(
            f"This asks for {runs} restored runs ({cells} cells, {samples} samples), and this app takes at most "
            f"{limit('max_cell_samples', settings.max_cell_samples)}{scaled}. Ask for fewer samples, a shorter prompt, "
            "fewer layers, or the subject's tokens only."
        )
    return int(runs * weight)


class RunQueue:
    """The queue of a model: one run at a time, in order of arrival. Any thread may join and leave it."""

    def __init__(self, most_waiting: int) -> None:
        self._most = most_waiting
        self._tickets: deque[object] = deque()
        self._changed = threading.Condition()

    def __len__(self) -> int:
        """Return the number of runs in the queue, including the current one."""
        with self._changed:
            return len(self._tickets)

    def join(self) -> object:
        """Join the end of the queue and return a ticket; `leave` must be called with the ticket in any case.

        Raises:
            BusyError: The queue is full.
        """
        ticket = object()
        with self._changed:
            if len(self._tickets) > self._most:
                count = "1 request is" if self._most == 1 else f"{self._most} requests are"
                raise BusyError(
                    f"{count} waiting already, the most that this app takes "
                    f"({limit('max_queue', self._most)}). Try again in a minute."
                )
            self._tickets.append(ticket)
        return ticket

    def wait(self, ticket: object, seconds: float) -> int:
        """Wait up to this time for the ticket's turn; return the number of runs before it, 0 if it is its turn."""
        with self._changed:
            self._changed.wait_for(lambda: self._tickets[0] is ticket, seconds)
            return self._tickets.index(ticket)

    def leave(self, ticket: object) -> None:
        """Give up the ticket's turn or place."""
        with self._changed:
            if ticket in self._tickets:
                self._tickets.remove(ticket)
            self._changed.notify_all()


class ClientShares:
    """The running requests of each client, and its work in the last ten minutes. The client "" has no limits."""

    def __init__(self, settings: ServiceSettings, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._clock = clock
        self._running: Counter[str] = Counter()
        self._work: dict[str, deque[tuple[float, int]]] = {}
        self._guard = threading.Lock()

    @contextmanager
    def request(self, client: str) -> Iterator[None]:
        """Count one request of a client while it runs or waits.

        Raises:
            BusyError: The client has its largest number of requests running or waiting.
        """
        most = self._settings.max_client_runs
        with self._guard:
            if client and most and self._running[client] >= most:
                count = "1 request" if most == 1 else f"{most} requests"
                raise BusyError(
                    f"You have {count} running or waiting, the most for one client "
                    f"({limit('max_client_runs', most)}). Wait until one is done, or stop one."
                )
            self._running[client] += 1
        try:
            yield
        finally:
            with self._guard:
                self._running -= Counter([client])

    def charge(self, client: str, work: int) -> None:
        """Count work against a client's share.

        Raises:
            BusyError: The work is more than is left of the client's share.
        """
        most = self._settings.max_client_cell_samples
        if not client or not most:
            return
        now = self._clock()
        with self._guard:
            self._forget(now)
            done = self._work.setdefault(client, deque())
            used = sum(part for _, part in done)
            if used + work > most:
                freed_in = _SHARE_SECONDS - (now - done[0][0]) if done else _SHARE_SECONDS
                raise BusyError(
                    f"This asks for {work} restored runs, and you have used {used} in the last ten minutes; one client "
                    f"has {limit('max_client_cell_samples', most)}. Ask for less, or again in "
                    f"{max(1, round(freed_in / 60))} min."
                )
            done.append((now, work))

    def _forget(self, now: float) -> None:
        for client in list(self._work):
            done = self._work[client]
            while done and now - done[0][0] > _SHARE_SECONDS:
                done.popleft()
            if not done:
                del self._work[client]
        while len(self._work) > _MOST_CLIENTS:
            del self._work[next(iter(self._work))]


def client_of(request: Any, settings: ServiceSettings) -> str:
    """Return the client of a request (a `gr.Request`): the address that the trusted proxies saw, or the connection's.

    Of X-Forwarded-For, only the last entries count, one for each trusted proxy: the client may have written the others
    itself.
    """
    if settings.trusted_proxies:
        forwarded = str((getattr(request, "headers", None) or {}).get("x-forwarded-for", ""))
        hops = [hop.strip() for hop in forwarded.split(",") if hop.strip()]
        if len(hops) >= settings.trusted_proxies:
            return hops[-settings.trusted_proxies][:64]
    peer = getattr(request, "client", None)
    return str(getattr(peer, "host", "") or "unknown")
