"""Finding a model's blocks, attention and MLP by what they compute, not by their names.

1. The embedding is the module that `get_input_embeddings` returns.
2. The blocks are the ModuleList with the most parameters whose members are called in order, each taking the output of
   the one before.
3. A block adds to the residual stream. Its contributions are the fewest, shallowest modules inside it whose outputs,
   times positive factors, sum to (block output - block input).
4. Some contributions only normalise the output of another module (as in Gemma). That other module is used instead.
5. Attention mixes tokens and an MLP does not. So the block's input at earlier tokens is perturbed, with all other
   outputs held at their clean values: attention's output at the last token changes, the MLP's does not.

Module names decide only where the sum is not exact: in blocks that normalise after adding, or that mix several streams.
Modules chosen by name must still behave like attention and MLP. `model/contributions.py` holds steps 3 to 5.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracer.errors import ModelStructureError
from causal_tracer.model.contributions import find_contributions
from causal_tracer.model.hooks import add_output_hook, all_tensors
from causal_tracer.model.layer_config import SiteNames
from causal_tracer.model.probing import Call, probe_ids, record_calls, run_probe
from causal_tracer.request.sites import LayerKind


def discover_sites(model: Any) -> tuple[str, SiteNames]:
    """Return the embedding's name and, for each kind and layer, the names of the modules whose outputs are traced.

    Raises:
        ModelStructureError: No chain of blocks was found, or no attention or MLP in them.
    """
    names = {module: name for name, module in model.named_modules()}
    embedding = model.get_input_embeddings()
    if embedding not in names:
        raise ModelStructureError(
            f"{type(model).__name__} has no input embedding: get_input_embeddings() does not return one of its "
            "modules. Give a LayerConfig with embedding_layer."
        )
    ids = probe_ids(model)
    blocks = _find_blocks(model, ids)
    width = int(record_calls(model, [names[embedding]], ids)[0].output.shape[-1])
    by_structure: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for block_name in blocks:
        inside = model.get_submodule(block_name).named_modules()
        by_structure[tuple(f"{name}:{type(module).__name__}" for name, module in inside)].append(block_name)
    found: dict[str, tuple[tuple[str, ...], ...]] = {}
    for group in by_structure.values():
        found |= dict.fromkeys(group, _contributions_of_group(model, group, ids, width))
    sites: dict[LayerKind, list[tuple[str, ...]]] = {"hidden": [], "mlp": [], "attention": []}
    for block_name in blocks:
        attention, mlp = found[block_name]
        sites["hidden"].append((block_name,))
        sites["attention"].append(tuple(f"{block_name}.{name}" for name in attention))
        sites["mlp"].append(tuple(f"{block_name}.{name}" for name in mlp))
    return names[embedding], {kind: tuple(layers) for kind, layers in sites.items()}


def _contributions_of_group(model: nn.Module, group: list[str], ids: Tensor, width: int) -> tuple[tuple[str, ...], ...]:
    """Return the names of attention and MLP, relative to the block, for a group of blocks with the same structure.

    The first block is examined. If only one of the two is found there, the other's output may be too small to detect,
    so the middle and the last block are examined too.
    """
    best = find_contributions(model, group[0], ids, width)
    if len(best[0]) + len(best[1]) == 1:
        for block_name in dict.fromkeys((group[len(group) // 2], group[-1])):
            other = find_contributions(model, block_name, ids, width)
            best = max(best, other, key=lambda found: len(found[0]) + len(found[1]))
    return best


def _find_blocks(model: nn.Module, ids: Tensor) -> list[str]:
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    lists.sort(key=lambda item: -sum(parameter.numel() for parameter in item[1].parameters()))
    members = [f"{name}.{i}" for name, module in lists for i in range(len(module))]
    calls = record_calls(model, members, ids)
    order = {call.name: position for position, call in enumerate(calls)}
    by_name = {call.name: call for call in calls}
    times = Counter(call.name for call in calls)
    inside: list[str] = []
    for name, module in lists:
        chain = [by_name.get(f"{name}.{i}") for i in range(len(module))]
        called = [call for call in chain if call is not None]
        if any(name.startswith(f"{outer}.") for outer in inside):
            continue
        if called:
            inside.append(name)
        looped = [call.name for call in called if times[call.name] > 1]
        if looped and all(call.output.shape[0] == ids.shape[1] for call in called):
            raise ModelStructureError(
                f"{type(model).__name__} runs block {looped[0]!r} {times[looped[0]]} times in one forward pass. The "
                "block has no single output to restore, so this model cannot be traced."
            )
        if len(called) == len(chain) and _is_chain(called, order):
            _require_one_stream(model, called, ids)
            return [call.name for call in called]
    raise ModelStructureError(
        f"No chain of blocks was found in {type(model).__name__}: a ModuleList whose modules are called in order, each "
        f"with the output of the one before. Its ModuleLists: {', '.join(name for name, _ in lists) or 'none'}. If the "
        "model has blocks, name them with a LayerConfig."
    )


def _is_chain(chain: list[Call], order: dict[str, int]) -> bool:
    positions = [order[call.name] for call in chain]
    return positions == sorted(positions) and all(
        later.input is not None and torch.equal(earlier.output, later.input)
        for earlier, later in itertools.pairwise(chain)
    )


def _require_one_stream(model: nn.Module, chain: list[Call], ids: Tensor) -> None:
    """Check that blocks return one residual stream. Reversible blocks return two, each with half of the state."""
    streams: list[int] = []

    def count(_module: nn.Module, _args: Any, output: Any) -> None:
        tensors = [tensor for tensor in all_tensors(output) if tensor.is_floating_point()]
        streams.append(sum(tensor.shape == tensors[0].shape and tensor.dim() >= 3 for tensor in tensors))

    with add_output_hook(model.get_submodule(chain[0].name), count):
        run_probe(model, ids)
    if streams and streams[-1] > 1:
        raise ModelStructureError(
            f"Block {chain[0].name!r} of {type(model).__name__} returns {streams[-1]} residual streams. Restoring one "
            "of them would restore only part of the state, so this model cannot be traced."
        )
