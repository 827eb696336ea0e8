"""Finding a model's blocks, attention and MLP by what they do, not by what they are called.

1. The embedding is what the model itself names as its input embedding.
2. The blocks are the ModuleList with the most parameters whose members are called in order, each fed by the last.
3. A block adds to the residual stream. Its contributions are the few modules inside it whose outputs, times positive
   factors, sum to (block output - block input): the smallest such set, the shallowest modules first.
4. A contribution that only normalises the output of another module (as in Gemma) stands for that module.
5. Attention mixes tokens and an MLP does not: with everything else held at its clean value, attention's output at the
   last token moves when the block's input at earlier tokens is perturbed.

Names decide only where the sum is not exact, as in blocks that normalise after adding.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracer.errors import ModelStructureError
from causal_tracer.hooks import editing_outputs, first_tensor, replace_stream_argument, stream_argument
from causal_tracer.layers import LayerKind, SiteNames, probe_ids, run_probe

_MOST_CONTRIBUTIONS = 4
_ATTENTION_NAMES = re.compile(r"attn|attention|mixer|mamba|ssm|recurrent", re.IGNORECASE)
_MLP_NAMES = re.compile(r"mlp|ffn|ff$|feed_?forward|fc2|moe|dense_4h_to_h|channel", re.IGNORECASE)


@dataclass(frozen=True)
class _Call:
    """What one module took and gave in the probe run: [tokens, d_model] each."""

    name: str
    source: Tensor | None
    output: Tensor

    @property
    def depth(self) -> int:
        return self.name.count(".")


def discover_sites(model: Any) -> tuple[str, SiteNames]:
    """The embedding's name and, for each kind and layer, the modules whose outputs are its activations.

    Raises:
        ModelStructureError: No chain of blocks was found, or no attention or MLP in them.
    """
    names = {module: name for name, module in model.named_modules()}
    embedding = model.get_input_embeddings()
    if embedding not in names:
        raise ModelStructureError(
            f"{type(model).__name__} does not name its input embedding. Give a LayerConfig with embedding_layer."
        )
    ids = probe_ids(model)
    blocks = _find_blocks(model, ids)
    by_signature: dict[tuple[str, ...], tuple[tuple[str, ...], tuple[str, ...]]] = {}
    sites: dict[LayerKind, list[tuple[str, ...]]] = {"hidden": [], "mlp": [], "attention": []}
    for block_name in blocks:
        block = model.get_submodule(block_name)
        signature = tuple(f"{name}:{type(module).__name__}" for name, module in block.named_modules())
        if signature not in by_signature:
            by_signature[signature] = _find_sites(model, block_name, ids)
        attention, mlp = by_signature[signature]
        sites["hidden"].append((block_name,))
        sites["attention"].append(tuple(f"{block_name}.{name}" for name in attention))
        sites["mlp"].append(tuple(f"{block_name}.{name}" for name in mlp))
    return names[embedding], {kind: tuple(layers) for kind, layers in sites.items()}


def _find_blocks(model: nn.Module, ids: Tensor) -> list[str]:
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    lists.sort(key=lambda item: -sum(parameter.numel() for parameter in item[1].parameters()))
    members = [f"{name}.{i}" for name, module in lists for i in range(len(module))]
    calls = _record_calls(model, members, ids)
    order = {call.name: position for position, call in enumerate(calls)}
    by_name = {call.name: call for call in calls}
    for name, module in lists:
        chain = [by_name.get(f"{name}.{i}") for i in range(len(module))]
        if all(call is not None for call in chain) and _is_chain([c for c in chain if c is not None], order):
            return [f"{name}.{i}" for i in range(len(module))]
    raise ModelStructureError(
        f"No chain of blocks was found in {type(model).__name__}: a list of modules called in order, each fed by the "
        f"one before. Its module lists are {', '.join(name for name, _ in lists) or 'none'}. Name the blocks with a "
        "LayerConfig, if the model has any."
    )


def _is_chain(chain: list[_Call], order: dict[str, int]) -> bool:
    positions = [order[call.name] for call in chain]
    return positions == sorted(positions) and all(
        later.source is not None and torch.equal(earlier.output, later.source)
        for earlier, later in itertools.pairwise(chain)
    )


def _find_sites(model: nn.Module, block_name: str, ids: Tensor) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Names of attention and MLP relative to the block."""
    block = model.get_submodule(block_name)
    inside = [f"{block_name}.{name}" for name, _ in block.named_modules() if name]
    *calls, whole = _record_calls(model, [*inside, block_name], ids)
    if whole.source is None:
        raise ModelStructureError(f"Block {block_name!r} of {type(model).__name__} was not given the residual stream.")
    candidates = _distinct([call for call in calls if call.output.shape == whole.output.shape], whole)
    contributions = _additive_contributions(candidates, whole) or _named_contributions(candidates, block_name)
    names = [_behind_norm(model, call, candidates).name for call in contributions]
    mixes = {name: _mixes_tokens(model, block_name, name, names, ids) for name in names}
    attention = [name for name in names if mixes[name]]
    mlp = [name for name in names if not mixes[name]]
    if not names:
        children = ", ".join(name for name, _ in block.named_children())
        raise ModelStructureError(
            f"In block {block_name!r} of {type(model).__name__} no modules were found whose outputs sum to what the "
            f"block adds. It holds {children}. Name attention and MLP with a LayerConfig."
        )
    cut = len(block_name) + 1
    return tuple(name[cut:] for name in attention), tuple(name[cut:] for name in mlp)


def _distinct(calls: list[_Call], whole: _Call) -> list[_Call]:
    """Shallow modules first; of those with equal outputs only the first, and none that hands on the residual."""
    kept: list[_Call] = []
    for call in sorted(calls, key=lambda call: call.depth):
        same_as_kept = any(torch.equal(call.output, other.output) for other in kept)
        is_residual = torch.equal(call.output, whole.output) or torch.equal(call.output, whole.source)  # type: ignore[arg-type]
        if not same_as_kept and not is_residual:
            kept.append(call)
    return kept


def _additive_contributions(candidates: list[_Call], whole: _Call) -> list[_Call]:
    """The smallest, shallowest set of outputs that sums to what the block adds; empty if there is none."""
    if whole.source is None or not candidates:
        return []
    update = (whole.output.double() - whole.source.double()).flatten()
    size = float(update.norm())
    rounding = 8 * torch.finfo(whole.output.dtype).eps * float(whole.output.double().norm()) / max(size, 1e-30)
    tolerance = max(1e-4, rounding)
    columns = torch.stack([call.output.double().flatten() for call in candidates], dim=1)
    gram, moments = columns.T @ columns, columns.T @ update
    for count in range(1, min(_MOST_CONTRIBUTIONS, len(candidates)) + 1):
        fits = []
        for chosen in itertools.combinations(range(len(candidates)), count):
            index = list(chosen)
            factors = torch.linalg.lstsq(gram[index][:, index], moments[index, None]).solution[:, 0]
            error = float((columns[:, index] @ factors - update).norm()) / max(size, 1e-30)
            if error <= tolerance and bool((factors > 1e-3).all()):
                fits.append((sum(candidates[i].depth for i in index), error, index))
        if fits:
            return [candidates[i] for i in min(fits)[2]]
    return []


def _named_contributions(candidates: list[_Call], block_name: str) -> list[_Call]:
    cut = len(block_name) + 1
    chosen = []
    for pattern in (_ATTENTION_NAMES, _MLP_NAMES):
        named = [call for call in candidates if pattern.search(call.name[cut:].split(".")[0])]
        chosen += named[:1]
    return chosen


def _behind_norm(model: nn.Module, call: _Call, candidates: list[_Call]) -> _Call:
    """The module whose output a contribution only normalises, or the contribution itself."""
    module = model.get_submodule(call.name)
    only_normalises = all(parameter.dim() <= 1 for parameter in module.parameters())
    if not only_normalises or call.source is None:
        return call
    fed_by = [other for other in candidates if other is not call and torch.equal(other.output, call.source)]
    return _behind_norm(model, fed_by[0], candidates) if fed_by else call


def _mixes_tokens(model: nn.Module, block_name: str, name: str, contributions: list[str], ids: Tensor) -> bool:
    """Whether the module's output at the last token depends on the block's input at earlier tokens."""
    clean = {call.name: call.output for call in _record_calls(model, contributions, ids)}

    def hold(other: str) -> Callable[[Tensor], Tensor]:
        return lambda activation: clean[other].to(activation).expand_as(activation)

    held = {model.get_submodule(other): hold(other) for other in contributions if other != name}
    with editing_outputs(held, ids.shape[1]), _perturbed_input(model.get_submodule(block_name)):
        moved = _record_calls(model, [name], ids)[0].output
    last, before = moved[-1].double(), clean[name][-1].double()
    return float((last - before).norm()) > 1e-3 * float(before.norm())


@contextmanager
def _perturbed_input(block: nn.Module) -> Iterator[None]:
    """Shift the residual stream that a block takes, at every token but the last."""

    def perturb(module: nn.Module, args: Any, kwargs: Any) -> Any:
        stream = stream_argument(args, kwargs)
        if stream is None:
            return None
        shifted = stream.clone()
        generator = torch.Generator().manual_seed(0)
        noise = torch.randn(stream[:, :-1].shape, generator=generator).to(stream)
        shifted[:, :-1] += noise * stream.std() * 2
        return replace_stream_argument(args, kwargs, shifted)

    handle = block.register_forward_pre_hook(perturb, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _record_calls(model: nn.Module, names: list[str], ids: Tensor) -> list[_Call]:
    """Run the probe and note what the named modules took and gave, in the order in which they finished."""
    tokens = ids.shape[1]
    calls: list[_Call] = []
    handles = []

    def snapshot(tensor: Tensor) -> Tensor:
        return tensor.detach().reshape(tokens, -1).clone() if tensor.numel() % tokens == 0 else tensor.detach().clone()

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
                calls.append(_Call(name, source, snapshot(activation)))

        module = model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
        return after

    try:
        for name in names:
            handles.append(model.get_submodule(name).register_forward_hook(record(name)))
        run_probe(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    return calls
