"""Short probe runs that examine a model's structure: the modules' inputs and outputs, and which depends on which."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracer.model.engine_mode import engine_mode
from causal_tracer.model.hooks import add_input_hook, add_output_hook, editing_outputs, first_tensor, stream_argument


def probe_ids(model: nn.Module, n_tokens: int = 6) -> Tensor:
    """Return distinct token ids [1, tokens] for a probe run. The tokens have no meaning together."""
    config: Any = model.config
    vocab_size = int(config.get_text_config().vocab_size)
    # Spread over the vocabulary, away from its start, where special tokens usually are.
    return torch.tensor([[(vocab_size // 3 + 17 * i) % vocab_size for i in range(n_tokens)]])


def run_probe(model: nn.Module, ids: Tensor, **kwargs: Any) -> None:
    """Run one short forward pass, so that the hooks of the caller are called."""
    with engine_mode(model):
        model(ids.to(device_of(model.get_input_embeddings())), use_cache=False, **kwargs)  # type: ignore[operator]


def device_of(embedding: nn.Module) -> torch.device:
    """Return the device of an embedding's token ids: the CPU for an offloaded one, whose inputs accelerate moves."""
    tensor = next(itertools.chain(embedding.parameters(), embedding.buffers()), None)
    return torch.device("cpu") if tensor is None or tensor.device.type == "meta" else tensor.device


@dataclass(frozen=True)
class Call:
    """One call of a module in a probe run.

    Attributes:
        name: The module's full name.
        input: The module's input stream [tokens, width]; None if it took no floating-point tensor.
        output: The module's output [tokens, width].
    """

    name: str
    input: Tensor | None
    output: Tensor


class _HeadReached(Exception):
    """Ends a probe run before the model computes logits, which may cost more than all blocks."""


def _end(_module: nn.Module, _args: Any, _kwargs: Any) -> None:
    raise _HeadReached


def record_calls(model: nn.Module, names: Sequence[str], ids: Tensor) -> list[Call]:
    """Run the probe and return the calls of the named modules, in the order in which the calls ended.

    The run ends at the model's head, so modules inside the head are not recorded.
    """
    tokens = ids.shape[1]
    calls: list[Call] = []

    def snapshot(tensor: Tensor) -> Tensor:
        tensor = tensor.detach()
        if tensor.numel() % tokens:
            return tensor.clone()
        return (tensor.movedim(2, 0) if token_dim(tensor, tokens) == 2 else tensor).reshape(tokens, -1).clone()

    def hooks_of(name: str) -> tuple[Callable[..., None], Callable[..., None]]:
        # The input is recorded before the module runs, because some modules write into it.
        inputs: list[Tensor | None] = []

        def before(_module: nn.Module, args: Any, kwargs: Any) -> None:
            stream = stream_argument(args, kwargs)
            inputs.append(None if stream is None else snapshot(stream))

        def after(_module: nn.Module, _args: Any, output: Any) -> None:
            activation = first_tensor(output)
            stream = inputs.pop()
            if activation is not None and activation.is_floating_point():
                calls.append(Call(name, stream, snapshot(activation)))

        return before, after

    with ExitStack() as hooks:
        for name in names:
            before, after = hooks_of(name)
            hooks.enter_context(add_input_hook(model.get_submodule(name), before))
            hooks.enter_context(add_output_hook(model.get_submodule(name), after))
        run_to_head(model, ids)
    return calls


def run_to_head(model: nn.Module, ids: Tensor) -> None:
    """Run a forward pass up to the model's head, so that the hooks of the caller are called."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    with ExitStack() as hooks:
        if isinstance(head, nn.Module):
            hooks.enter_context(add_input_hook(head, _end))
        with suppress(_HeadReached):
            run_probe(model, ids)


def outputs_reach_later_tokens(model: nn.Module, block: str, inside: Sequence[str]) -> bool:
    """Check whether outputs of modules at earlier tokens affect their block's output at the last token.

    They do in a block with two attentions, or with a convolution after its MLP.

    Args:
        model: The model.
        block: The block's name.
        inside: The names of modules inside the block. Each is checked separately.
    """
    ids = probe_ids(model)
    earlier = range(ids.shape[1] - 1)
    clean = record_calls(model, [block], ids)[-1].output[-1].double()
    for name in inside:
        with editing_outputs(
            {model.get_submodule(name): lambda activation: perturbed(activation, earlier)}, ids.shape[1]
        ):
            moved = record_calls(model, [block], ids)[-1].output[-1].double()
        if float((moved - clean).norm()) > 1e-6 * float(clean.norm()):
            return True
    return False


def perturbed(stream: Tensor, tokens: range, dim: int = 1) -> Tensor:
    """Return a stream of one row with noise of two standard deviations added at some tokens.

    The noise is the same in every call. `dim` is the dimension that holds the tokens.
    """
    changed = stream.clone()
    at_tokens = changed.movedim(dim, 0)[tokens.start : tokens.stop]
    noise = torch.randn(at_tokens.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    at_tokens += noise.to(stream) * stream.std() * 2
    return changed


def logits_to_keep_drops_tokens(model: nn.Module, block: str) -> bool:
    """Check whether a block processes fewer tokens when the model is called with `logits_to_keep=1`."""
    if not takes_argument(type(model).forward, "logits_to_keep"):
        return False
    sizes: dict[int, list[int]] = {0: [], 1: []}
    for kept, noted in sizes.items():

        def note(_module: nn.Module, _args: Any, output: Any, noted: list[int] = noted) -> None:
            activation = first_tensor(output)
            noted.append(0 if activation is None else activation.numel())

        with add_output_hook(model.get_submodule(block), note):
            run_probe(model, probe_ids(model), logits_to_keep=kept)
    return sizes[0] != sizes[1]


@cache
def takes_argument(forward: Callable[..., Any], name: str) -> bool:
    """Check whether a model's forward has an argument of this name."""
    return name in inspect.signature(forward).parameters


def token_dim(stream: Tensor, n_tokens: int) -> int:
    """Return the dimension that holds the tokens in a one-row stream: 1, or 2 for stacked streams."""
    stacked = stream.dim() == 4 and stream.shape[1] == 1 and stream.shape[2] == n_tokens
    return 2 if stacked else 1
