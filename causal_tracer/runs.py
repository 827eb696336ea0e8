"""Running the model: the clean run, the corrupted run, and the cache of clean runs."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracer.corruption import GaussianNoise
from causal_tracer.errors import NumericsError
from causal_tracer.hooks import Edit, editing_outputs, evaluation_mode, replace_stream_argument, stream_argument
from causal_tracer.layers import KINDS, TracedModel
from causal_tracer.metrics import Metric
from causal_tracer.probing import takes_argument
from causal_tracer.prompts import Prompt


@dataclass(frozen=True, eq=False)
class CleanRun:
    """The model on the prompt as it is; what restoring puts back.

    Attributes:
        input_ids: The prompt's token ids [tokens], on the CPU.
        probabilities: Of the next token after the prompt [vocabulary], float32 on the CPU.
        activations: The output of every site module, by module name: [tokens, d_model], where the module left it.
    """

    input_ids: Tensor
    probabilities: Tensor
    activations: Mapping[str, Tensor]

    @property
    def top_id(self) -> int:
        """The most probable next token."""
        return int(self.probabilities.argmax())

    @property
    def nbytes(self) -> int:
        """Memory held, in bytes."""
        tensors = [self.probabilities, *self.activations.values()]
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def run_model(
    traced: TracedModel, input_ids: Tensor, edits: Mapping[nn.Module, Edit], *, use_cache: bool = False, **kwargs: Any
) -> Any:
    """Run the model with `edits` in place, alone on its model, and hand back what it returns.

    Args:
        traced: The model.
        input_ids: Token ids [rows, tokens], of equal length: nothing is padded.
        edits: What to do with the outputs of modules.
        use_cache: Whether the model keeps keys, values and states.
        kwargs: More arguments for the model. Logits are asked for after the last token only, where it can do that.
    """
    last_only: AbstractContextManager[None] = nullcontext()
    if traced.logits_to_keep_trims:
        last_only = _reading_last_token(traced.head)
    elif _takes_argument(type(traced.model).forward, "logits_to_keep"):
        kwargs["logits_to_keep"] = 1
    editing = editing_outputs(edits, input_ids.shape[1], traced.stacked_streams)
    with traced.lock, evaluation_mode(traced.model), editing, last_only:
        return traced.model(input_ids.to(traced.input_device), use_cache=use_cache, **kwargs)


_takes_argument = cache(takes_argument)


@contextmanager
def _reading_last_token(head: nn.Module) -> Iterator[None]:
    """Let the head see the last token only."""

    def narrow(_module: nn.Module, args: Any, kwargs: Any) -> Any:
        hidden = stream_argument(args, kwargs)
        return None if hidden is None else replace_stream_argument(args, kwargs, hidden[:, -1:])

    handle = head.register_forward_pre_hook(narrow, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def last_logits(traced: TracedModel, output: Any, what: str) -> Tensor:
    """The logits after the last token [rows, vocabulary], float32, on the model's output device.

    Raises:
        NumericsError: A logit of the run called `what` is NaN or infinite.
    """
    logits: Tensor = output.logits[:, -1].float()
    # A sum is finite only if all are, and needs no mask or copy as large as the logits.
    if not bool(logits.sum(dim=-1).isfinite().all()):
        raise NumericsError(
            f"The {what} run gave logits that are NaN or infinite ({traced.dtype}). Load the model in float32 or "
            "bfloat16, or check its weights."
        )
    return logits


def read_logits(traced: TracedModel, input_ids: Tensor, edits: Mapping[nn.Module, Edit], what: str) -> Tensor:
    """Run the model and read the logits after the last token: `run_model`, then `last_logits`."""
    return last_logits(traced, run_model(traced, input_ids, edits), what)


def clean_run(traced: TracedModel, input_ids: tuple[int, ...]) -> CleanRun:
    """Run the model on a prompt and keep what every site module gave."""
    activations: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[[Tensor], None]:
        # A copy, since some models add the residual into a module's output in place.
        return lambda activation: activations.__setitem__(name, activation[0].detach().clone())

    names = {name for kind in KINDS for layer in traced.site_names[kind] for name in layer}
    edits: dict[nn.Module, Edit] = {traced.modules[name]: keep(name) for name in names}
    ids = torch.tensor(input_ids)
    logits = read_logits(traced, ids[None], edits, "clean")
    return CleanRun(input_ids=ids, probabilities=logits[0].softmax(dim=-1).cpu(), activations=activations)


def corrupting(noise: Tensor, prompt: Prompt, samples: Tensor, tokens: range | None = None) -> Edit:
    """The edit of the embedding that adds noise [samples, subject tokens, width] to the subject's tokens.

    Row r of the batch takes draw `samples[r]`. The sum is rounded once, to the embedding's dtype. `tokens` are the
    prompt's tokens that the run has; None means all.
    """
    start, end = prompt.subject_range
    tokens = range(len(prompt)) if tokens is None else tokens
    first, last = max(start, tokens.start), min(end, tokens.stop)

    def corrupt(embedded: Tensor) -> Tensor | None:
        if first >= last:
            return None
        corrupted = embedded.clone()
        here = slice(first - tokens.start, last - tokens.start)
        added = embedded[:, here].float() + noise[samples, first - start : last - start].to(embedded.device)
        corrupted[:, here] = added.to(embedded.dtype)
        return corrupted

    return corrupt


@dataclass(frozen=True, eq=False)
class CorruptedRun:
    """The model on the corrupted prompt, once per noise sample.

    Attributes:
        prompt: The prompt.
        noise: What was added to the subject's embeddings [samples, subject tokens, width], float32 on the CPU.
        scores: The metric in each sample [samples], float32 on the CPU.
    """

    prompt: Prompt
    noise: Tensor
    scores: Tensor

    @property
    def samples(self) -> int:
        """Number of noise samples."""
        return int(self.noise.shape[0])


def corrupted_run(
    traced: TracedModel, prompt: Prompt, corruption: GaussianNoise, samples: int, metric: Metric, batch_size: int
) -> CorruptedRun:
    """Run the corrupted prompt once for each noise sample, at most `batch_size` rows at a time."""
    start, end = prompt.subject_range
    noise = corruption.draw(samples, end - start, traced.embedding_width)
    ids = torch.tensor(prompt.input_ids)
    scores = []
    for batch in torch.split(torch.arange(samples), batch_size):
        edits = {traced.embedding: corrupting(noise, prompt, batch)}
        scores.append(metric(read_logits(traced, ids.expand(len(batch), -1), edits, "corrupted")).cpu())
    return CorruptedRun(prompt=prompt, noise=noise, scores=torch.cat(scores))


class CleanRunCache:
    """The latest clean runs of one model, within a bound on memory; safe to share between threads.

    Runs made before the model's weights changed are not handed out: torch counts the in-place changes of each tensor.
    (Changes through `.data` are not counted; make a new tracer after those.)
    """

    def __init__(self, traced: TracedModel, max_bytes: int = 256 * 2**20):
        self._traced = traced
        self._max_bytes = max_bytes
        self._runs: OrderedDict[tuple[Any, ...], CleanRun] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Memory held by the cached runs, in bytes."""
        with self._lock:
            return sum(run.nbytes for run in self._runs.values())

    def get(self, prompt: Prompt) -> CleanRun:
        """The prompt's clean run, from the cache or made now."""
        key = (prompt.input_ids, self._weights())
        with self._lock:
            if key in self._runs:
                self._runs.move_to_end(key)
                return self._runs[key]
        run = clean_run(self._traced, prompt.input_ids)
        with self._lock:
            self._runs[key] = run
            held = sum(kept.nbytes for kept in self._runs.values())
            while held > self._max_bytes and self._runs:
                held -= self._runs.popitem(last=False)[1].nbytes
        return run

    def _weights(self) -> tuple[int, int]:
        """Changes when a weight is changed in place or replaced; accelerate's placeholders on `meta` do not count."""
        tensors = [tensor for tensor in self._traced.model.parameters() if tensor.device.type != "meta"]
        # Tensors made in inference mode count no changes.
        counted = [tensor for tensor in tensors if not tensor.is_inference()]
        return sum(tensor._version for tensor in counted), hash(tuple(map(id, tensors)))
