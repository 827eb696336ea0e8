"""Short runs of a model that look at its structure: what modules take and give, and what reaches what."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracer.model.engine_mode import engine_mode
from causal_tracer.model.hooks import add_input_hook, add_output_hook, editing_outputs, first_tensor, stream_argument


def probe_ids(model: nn.Module) -> Tensor:
    """A few different token ids [1, tokens] for short runs that look at structure, not at language."""
    config: Any = model.config
    vocab_size = int(config.get_text_config().vocab_size)
    # Spread over the vocabulary, away from its start, where special tokens usually are.
    return torch.tensor([[(vocab_size // 3 + 17 * i) % vocab_size for i in range(6)]])


def run_probe(model: nn.Module, ids: Tensor, **kwargs: Any) -> None:
    """One short forward pass for the hooks to look at."""
    with engine_mode(model):
        model(ids.to(device_of(model.get_input_embeddings())), use_cache=False, **kwargs)  # type: ignore[operator]


def device_of(embedding: nn.Module) -> torch.device:
    """Where an embedding takes token ids. Offloaded parameters are on `meta` between runs; accelerate moves inputs."""
    tensor = next(itertools.chain(embedding.parameters(), embedding.buffers()), None)
    return torch.device("cpu") if tensor is None or tensor.device.type == "meta" else tensor.device


@dataclass(frozen=True)
class Call:
    """What one module took and gave in the probe run.

    Attributes:
        name: The module's full name.
        source: The stream that it took [tokens, width], if it took one.
        output: What it gave [tokens, width].
    """

    name: str
    source: Tensor | None
    output: Tensor

    @property
    def depth(self) -> int:
        """How deep the module lies."""
        return self.name.count(".")


class _HeadReached(Exception):
    """Ends a probe where the model is about to compute logits, which may cost more than all before them."""


def _end(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
    raise _HeadReached


def record_calls(model: nn.Module, names: Sequence[str], ids: Tensor) -> list[Call]:
    """Run the probe and note what the named modules took and gave, in the order in which they finished.

    It ends at the model's head; what a head is made of is not asked for.
    """
    tokens = ids.shape[1]
    calls: list[Call] = []
    handles = []

    def snapshot(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if tensor.numel() % tokens:
            return tensor.clone()
        return (tensor.movedim(2, 0) if token_dim(tensor, tokens) == 2 else tensor).reshape(tokens, -1).clone()

    def record(name: str) -> Callable[..., None]:
        # The input is noted before the module runs: some modules write into it.
        sources: list[Tensor | None] = []

        def before(module: nn.Module, args: Any, kwargs: Any) -> None:
            stream = stream_argument(args, kwargs)
            sources.append(None if stream is None else snapshot(stream))

        def after(module: nn.Module, args: Any, output: Any) -> None:
            activation = first_tensor(output)
            source = sources.pop()
            if activation is not None and activation.is_floating_point():
                calls.append(Call(name, source, snapshot(activation)))

        module = model.get_submodule(name)
        handles.append(add_input_hook(module, before))
        return after

    try:
        for name in names:
            handles.append(add_output_hook(model.get_submodule(name), record(name)))
        head = getattr(model, "get_output_embeddings", lambda: None)()
        if isinstance(head, nn.Module):
            handles.append(add_input_hook(head, _end))
        with suppress(_HeadReached):
            run_probe(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def tokens_meet_again(model: nn.Module, block: str, inside: Sequence[str]) -> bool:
    """Whether what one of the modules inside a block gives at earlier tokens moves what the block gives at the last.

    It does where a block has two attentions or a convolution after its MLP. Each module is asked by itself.
    """
    ids = probe_ids(model)

    def perturb(activation: Tensor) -> Tensor:
        changed = activation.clone()
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(changed[:, :-1].shape, generator=generator, dtype=torch.float32).to(changed)
        changed[:, :-1] += noise * activation.std() * 2
        return changed

    clean = record_calls(model, [block], ids)[-1].output[-1].double()
    for name in inside:
        with editing_outputs({model.get_submodule(name): perturb}, ids.shape[1]):
            moved = record_calls(model, [block], ids)[-1].output[-1].double()
        if float((moved - clean).norm()) > 1e-6 * float(clean.norm()):
            return True
    return False


def logits_to_keep_trims(model: nn.Module, block: str) -> bool:
    """Whether a block has fewer tokens when logits are asked for after the last token only."""
    if not takes_argument(type(model).forward, "logits_to_keep"):
        return False
    ids = probe_ids(model)
    sizes = []
    for kept in (0, 1):
        noted: list[int] = []

        def note(_module: nn.Module, _args: Any, output: Any, noted: list[int] = noted) -> None:
            activation = first_tensor(output)
            noted.append(0 if activation is None else activation.numel())

        handle = add_output_hook(model.get_submodule(block), note)
        try:
            run_probe(model, ids, logits_to_keep=kept)
        finally:
            handle.remove()
        sizes.append(noted)
    return sizes[0] != sizes[1]


def takes_argument(forward: Callable[..., Any], name: str) -> bool:
    """Whether a model's forward has an argument of this name."""
    parameters: Mapping[str, inspect.Parameter] = inspect.signature(forward).parameters
    return name in parameters


def token_dim(stream: Tensor, n_tokens: int) -> int:
    """Which dimension of a residual stream with one row holds the tokens: 1, or 2 where several streams stand first."""
    stacked = stream.dim() == 4 and stream.shape[1] == 1 and stream.shape[2] == n_tokens
    return 2 if stacked else 1
