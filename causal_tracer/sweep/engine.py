"""Which sweep computes a map: the fastest one that has been shown to be right on this very model.

At first use of a model a short check runs a few cells of every kind, on a few tokens, in the full sweep and in the
resumed one. The first way of resuming that agrees is used from then on; where none does, the full sweep is, and the
result says so. Prompts longer than a model's sliding window are checked at such a length when one first comes.
"""

from __future__ import annotations

import gc
import hashlib
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import psutil
import torch
import transformers
from torch import Tensor

from causal_tracer.base_run import BaseRun, Watch, Watched, corrupted_run
from causal_tracer.corruption import NOISE_MULTIPLIER, GaussianNoise
from causal_tracer.forking import usable_in_forks
from causal_tracer.layers import KINDS, TracedModel
from causal_tracer.metrics import LogProbability, Metric
from causal_tracer.prompts import Prompt
from causal_tracer.runs import CleanRun, clean_run
from causal_tracer.sweep.base_state import takes_positions
from causal_tracer.sweep.caches import CannotResume
from causal_tracer.sweep.full import full_sweep
from causal_tracer.sweep.plan import Cell, Intervention, SweepChunk, SweepPlan
from causal_tracer.sweep.read_out import MOST_LOGITS
from causal_tracer.sweep.resumed import WAYS, Way, resumed_sweep
from causal_tracer.version import __version__
from causal_tracer.wrappers import weight_bits

logger = logging.getLogger(__name__)

EngineChoice = Literal["auto", "full"]
"""The fastest sweep shown to be right on the model, or the full one in any case."""

_CHECK_TOKENS = 8
_CHECK_SUBJECT = (2, 4)
_CHECK_SAMPLES = 2
_MOST_ROWS = 1024
_ROWS_MEMORY = 384 * 2**20


@dataclass(frozen=True)
class Verdict:
    """How a model is swept.

    Attributes:
        way: How it is resumed; None means the full sweep.
        tried: For each way that was not chosen, why.
    """

    way: Way | None
    tried: tuple[str, ...]

    @property
    def name(self) -> str:
        """What results call it."""
        return "full" if self.way is None else self.way.name


_verdicts: dict[str, Verdict] = {}
_verdicts_guard = usable_in_forks(threading.Lock())


def choose_engine(traced: TracedModel, choice: EngineChoice, n_tokens: int) -> Verdict:
    """The sweep for a prompt of this length; the model is checked if it has not been yet."""
    if choice == "full":
        return Verdict(None, ("the full sweep was asked for",))
    window = _shortest_window(traced)
    beyond = window is not None and n_tokens >= window
    key = hashlib.sha256(repr((*_identity(traced), beyond)).encode()).hexdigest()
    with _verdicts_guard:
        known = _verdicts.get(key)
    if known is None:
        length = window + _CHECK_TOKENS if window is not None and beyond else _CHECK_TOKENS
        known = check_ways(traced, length)
        with _verdicts_guard:
            _verdicts[key] = known
        if known.way != WAYS[0]:
            logger.warning("%s is swept slower (%s): %s", type(traced.model).__name__, known.name, known.tried)
    return known


def known_verdicts() -> dict[str, Any]:
    """What checks have found so far, as JSON types: for another process, which then need not check again."""
    with _verdicts_guard:
        return {key: asdict(verdict) for key, verdict in _verdicts.items()}


def adopt_verdicts(known: Mapping[str, Any]) -> None:
    """Take over what `known_verdicts` gave in another process.

    A verdict is used only for the model, dtype, kind of device and versions that it was found with.

    Raises:
        KeyError, TypeError, ValueError: The data is not what `known_verdicts` gives.
    """
    taken = {}
    for key, data in known.items():
        way = data["way"]
        taken[key] = Verdict(None if way is None else Way(**way), tuple(str(reason) for reason in data["tried"]))
    with _verdicts_guard:
        _verdicts.update(taken)


def sweep(
    verdict: Verdict,
    traced: TracedModel,
    clean: CleanRun,
    base: BaseRun,
    plan: SweepPlan,
    metric: Metric,
    batch_size: int,
    cancelled: Callable[[], bool],
    watch: Watch | None = None,
    halved: Callable[[int], None] = lambda _size: None,
) -> Iterator[SweepChunk]:
    """Compute the plan's cells in the chosen way; see `full_sweep` and `resumed_sweep`.

    Where a device's memory does not hold the batch, the sweep goes on with half as many rows, and `halved` is told how
    many. Scores that were handed on are not handed on again; `watch` sees all samples of an unfinished cell anew.

    Raises:
        OutOfMemoryError: torch's: the memory does not hold a single row.
    """
    known = torch.zeros(len(plan.cells), base.samples, dtype=torch.bool)
    while True:
        rest = (~known.all(dim=1)).nonzero()[:, 0]
        left = replace(plan, cells=tuple(plan.cells[number] for number in rest.tolist()))
        run = (traced, clean, base, left, metric, batch_size, cancelled, _renumbering(watch, rest))
        try:
            for chunk in full_sweep(*run) if verdict.way is None else resumed_sweep(*run, verdict.way):
                cells = rest[chunk.cells]
                new = ~known[cells, chunk.samples]
                known[cells, chunk.samples] = True
                yield SweepChunk(cells[new], chunk.samples[new], chunk.scores[new])
            return
        except torch.OutOfMemoryError:
            if batch_size == 1:
                raise
        # Not before the exception is gone: it holds on to the tensors of the pass that failed.
        gc.collect()
        torch.cuda.empty_cache()
        batch_size //= 2
        halved(batch_size)


def _renumbering(watch: Watch | None, numbers: Tensor) -> Watch | None:
    """Tell `watch` the cells' numbers in the whole plan; `numbers` holds them for a part of it."""
    if watch is None:
        return None

    def renumbered(seen: Watched) -> None:
        cells = torch.where(seen.cells < 0, seen.cells, numbers[seen.cells])
        watch(replace(seen, cells=cells))

    return renumbered


def halving_note(sizes: Sequence[int]) -> str:
    """What a result says of batches that did not fit in the device's memory."""
    return f"Out of memory with {sizes[0]} rows together; computed with {sizes[-1]}."


def default_batch_size(traced: TracedModel, n_tokens: int) -> int:
    """Rows in flight: what fits in 384 MiB of activations, or in 1/32 of a smaller machine's memory.

    It follows from the model, the prompt's length and the machine's total memory, so it is the same every time.
    """
    config: Any = traced.model.config
    text = config.get_text_config()
    names = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
    widths = [width for name in names if isinstance(width := getattr(text, name, None), int)]
    width = widths[0] if widths else 4 * traced.d_model
    row = (4 * width + 10 * traced.d_model) * traced.dtype.itemsize * n_tokens
    device = traced.input_device
    if device.type == "cuda":
        # A GPU's memory is there to be used, and its rate grows with the batch.
        memory = torch.cuda.get_device_properties(device).total_memory // 16
    else:
        memory = min(_ROWS_MEMORY, psutil.virtual_memory().total // 32)
    return max(1, min(_MOST_ROWS, memory // row))


def check_ways(traced: TracedModel, n_tokens: int) -> Verdict:
    """Compare each way of resuming with the full sweep on a short made-up prompt of this model."""
    ids = tuple((traced.vocab_size // 3 + 17 * i) % traced.vocab_size for i in range(n_tokens))
    prompt = Prompt("", ids, ("",) * n_tokens, "", _CHECK_SUBJECT, True, 1)
    clean = clean_run(traced, ids)
    metric = LogProbability((clean.top_id,))
    with traced.lock, torch.no_grad():
        scale = float(traced.embedding(torch.tensor([ids], device=traced.input_device)).float().std())
    noise = GaussianNoise(NOISE_MULTIPLIER * scale, seed=0)
    batch_size = max(1, min(64, MOST_LOGITS // traced.vocab_size, default_batch_size(traced, n_tokens)))
    corrupted = corrupted_run(traced, prompt, noise, _CHECK_SAMPLES, metric, batch_size)
    plan = _check_plan(traced, n_tokens)
    expected = _scores(full_sweep(traced, clean, corrupted, plan, metric, batch_size), plan)
    limits = _allowed(traced, plan, (expected - corrupted.scores).abs().amax(dim=1))
    tried = []
    for way in _ways(traced):
        try:
            found = _scores(resumed_sweep(traced, clean, corrupted, plan, metric, min(7, batch_size), way=way), plan)
        except torch.OutOfMemoryError:
            raise  # a RuntimeError too, but it says nothing of the way
        except (CannotResume, RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError) as error:
            said = str(error).splitlines()[0][:200] if str(error) else ""
            tried.append(f"{way.name}: {type(error).__name__}: {said}")
            continue
        errors = (found - expected).abs().amax(dim=1)
        if bool((errors <= limits).all()):  # false for NaN as well
            return Verdict(way, tuple(dict.fromkeys(tried)))
        tried.append(f"{way.name}: differs from the full sweep by {float(errors.max()):.2g} in log-probability")
    return Verdict(None, tuple(dict.fromkeys(tried)))


def _ways(traced: TracedModel) -> Iterator[Way]:
    """The ways to try, the fastest first; those with a cache also with positions where the model can be told them."""
    for way in WAYS:
        yield way
        if way.use_cache and takes_positions(traced):
            # Only then: a few models count positions from their padding token on, and take other ones.
            yield replace(way, positions=True)


def _allowed(traced: TracedModel, plan: SweepPlan, effects: torch.Tensor) -> torch.Tensor:
    """How far each cell may be off: a small share of the largest effect of its kind, and rounding.

    Rounding differs with the batch; in half precisions also between cached and uncached runs. Products of 8-bit
    weights look for large columns in the whole batch.
    """
    exact = traced.dtype in (torch.float32, torch.float64) and weight_bits(traced.model) != 8
    rounding, share = (1e-5, 1e-3) if exact else (0.05, 0.1)
    kinds = [cell.interventions[0].site for cell in plan.cells]
    largest = {kind: max(float(e) for e, k in zip(effects, kinds, strict=True) if k == kind) for kind in set(kinds)}
    return torch.tensor([rounding + share * largest[kind] for kind in kinds])


def _check_plan(traced: TracedModel, n_tokens: int) -> SweepPlan:
    """Cells that show whether resuming is right: several layers and tokens of each kind.

    One token is before the subject, where nothing may change: in a model that looks ahead, it does.
    """
    first, middle, last = (0,), (traced.n_layers // 2,), (traced.n_layers - 1,)
    everywhere = tuple(dict.fromkeys((first, middle, last, (*range(middle[0] - 1, middle[0] + 1),))))
    start, end = _CHECK_SUBJECT
    asked = {start - 1: (first,), start: (middle,), **dict.fromkeys((end - 1, n_tokens - 2, n_tokens - 1), everywhere)}
    cells = []
    for kind in KINDS:
        present = {layer for layer in range(traced.n_layers) if traced.site_names[kind][layer]}
        for position, layer_sets in asked.items():
            for layers in layer_sets:
                restored = tuple(layer for layer in layers if layer in present)
                cells.append(Cell(position, middle[0], (Intervention(restored, kind, (position,)),)))
    return SweepPlan(tuple(cell for cell in cells if cell.interventions[0].layers))


def _scores(chunks: Iterator[SweepChunk], plan: SweepPlan) -> torch.Tensor:
    scores = torch.full((len(plan.cells), _CHECK_SAMPLES), math.nan)
    for chunk in chunks:
        scores[chunk.cells, chunk.samples] = chunk.scores
    return scores


def _shortest_window(traced: TracedModel) -> int | None:
    config: Any = traced.model.config
    text = config.get_text_config()
    windows = [getattr(text, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")]
    return min((window for window in windows if isinstance(window, int) and window > 0), default=None)


def _identity(traced: TracedModel) -> tuple[Any, ...]:
    """What a verdict holds for: class, config, modules, dtype, device, and the versions of what runs it."""
    config: Any = traced.model.config
    sites = tuple((kind, traced.site_names[kind]) for kind in KINDS)
    versions = (__version__, torch.__version__, transformers.__version__)
    placed = str(getattr(traced.model, "hf_device_map", None))
    return (
        f"{type(traced.model).__module__}.{type(traced.model).__qualname__}",
        config.to_json_string(),
        sites,
        traced.dtype,
        traced.input_device.type,
        placed,
        versions,
    )
