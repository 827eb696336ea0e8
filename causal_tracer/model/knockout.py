"""Attention knockout on a model: the modules whose attention can be blocked, and the check that blocking works.

The check measures which token's output of an attention module depends on which token's input: one token's input is
perturbed at a time, with all other inputs held. The table of dependences [queries, keys] must lose the blocked edges
and no others. This needs no knowledge of the model. It detects a mask that blocks nothing, has the wrong sign or
alignment, only weakens edges, or mixes up rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracer.errors import ModelStructureError, SettingsError
from causal_tracer.model.attention_masks import BlockedEdges, MaskedModule, blocking_edit, masked_modules
from causal_tracer.model.engine_mode import model_lock
from causal_tracer.model.hooks import Edit, editing_inputs, editing_masks, editing_outputs
from causal_tracer.model.layer_config import SiteNames
from causal_tracer.model.probing import perturbed, probe_ids, run_to_head
from causal_tracer.model.quantization import quantizes_activations

_TOKENS = 8
_EXACT = (torch.float32, torch.float64)
_FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError, SettingsError)


def find_knockout_sites(model: nn.Module, site_names: SiteNames) -> dict[int, tuple[MaskedModule, ...]]:
    """Return, for each layer whose attention can be blocked, the modules that take the attention mask.

    A class of modules is left out if its mask does not block attention: linear attention and state spaces take a
    padding mask.

    Raises:
        ModelStructureError: No layer's attention can be blocked.
    """
    with model_lock(model):
        classes = masked_modules(model, [names[0] for names in site_names["hidden"]])
        reasons = {
            kind: why_not_blocked(model, [module for modules in layers.values() for module in modules])
            for kind, layers in classes.items()
        }
    found: dict[int, tuple[MaskedModule, ...]] = {}
    for kind, layers in classes.items():
        if reasons[kind] is None:
            found |= {layer: (*found.get(layer, ()), *modules) for layer, modules in layers.items()}
    if not found:
        tried = " ".join(f"{kind}: {reason}." for kind, reason in reasons.items())
        raise ModelStructureError(
            f"Attention of {type(model).__name__} cannot be blocked. "
            + (tried or "No module in its blocks takes the argument attention_mask [rows, heads, queries, keys].")
            + " If the model was loaded with another attn_implementation, load it with 'sdpa' or 'eager'."
        )
    return dict(sorted(found.items()))


def why_not_blocked(model: nn.Module, modules: Sequence[MaskedModule], n_tokens: int = _TOKENS) -> str | None:
    """Block a few attention edges and return why blocking does not work in these modules, or None if it works.

    Args:
        model: The model. The caller must hold its lock.
        modules: Modules that take masks.
        n_tokens: Length of the probe's prompt.
    """
    try:
        return _fault(model, modules, n_tokens)
    except torch.OutOfMemoryError:
        raise  # a subclass of RuntimeError, but not caused by the mask
    except _FAILURES as error:
        first = str(error).splitlines()[0][:200] if str(error) else ""
        return f"a forward pass with a changed mask failed ({type(error).__name__}: {first})"


def _fault(model: nn.Module, modules: Sequence[MaskedModule], n_tokens: int) -> str | None:
    last = n_tokens - 1
    # No edge from a token to itself: a token's output depends on its own input as a query too.
    edges = ((last, last - 1), (last, last - 3), (last - 1, last - 3), (last - 2, last - 5))
    moved = range(n_tokens) if n_tokens == _TOKENS else sorted({0, *(key for _, key in edges)})
    ids = probe_ids(model, n_tokens)
    rows = len(moved) + 1
    clean, inputs = _outputs(model, modules, ids)
    # The second half of the rows has the edges blocked. The first row of each half has no input perturbed.
    held = {
        name: torch.cat([stream, *(perturbed(stream, range(at, at + 1)) for at in moved)]).repeat(2, 1, 1)
        for name, stream in inputs.items()
    }
    blocked = torch.tensor([(row, query, key) for row in range(rows, 2 * rows) for query, key in edges])
    found, _ = _outputs(model, modules, ids.expand(2 * rows, -1), held, BlockedEdges(*blocked.unbind(dim=1)))
    is_blocked = torch.tensor([[(query, key) in edges for key in moved] for query in range(n_tokens)])
    rounding, limit = _limits(model)
    shown = False
    for module in modules:
        output, expected = found[module.name], clean[module.name]
        if float((output[:1] - expected).norm()) > rounding * float(expected.norm()):
            return "a mask that blocks nothing changes its output"
        free, without = (_changes(output[part]) for part in (slice(rows), slice(rows, None)))
        scale = limit * float(free.max())
        if bool((without[is_blocked] > scale).any()):
            return "blocked tokens still reach its output"
        if bool((without[(free > 100 * scale) & ~is_blocked] < scale).any()):
            return "tokens that are not blocked do not reach its output"
        if bool((without[free < scale] > 10 * scale).any()):
            return "with blocked edges, tokens reach its output that did not reach it before"
        shown = shown or bool((free[is_blocked] > 3 * scale).any())
    return None if shown else "its output does not depend on the keys to block, even without blocking"


def _changes(outputs: Tensor) -> Tensor:
    """Return the distance of each token's output from row 0's, for each other row [tokens, rows - 1]."""
    moves: Tensor = (outputs[1:] - outputs[:1]).norm(dim=-1)
    return moves.T


def _limits(model: nn.Module) -> tuple[float, float]:
    """Return how much rounding may change an output, relative to the output and to the largest change in a batch."""
    dtype = next(parameter.dtype for parameter in model.parameters() if parameter.is_floating_point())
    return (1e-4, 1e-4) if dtype in _EXACT and not quantizes_activations(model) else (2e-2, 5e-3)


def _outputs(
    model: nn.Module,
    modules: Sequence[MaskedModule],
    ids: Tensor,
    held: dict[str, Tensor] | None = None,
    edges: BlockedEdges | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Run the model, with the modules' inputs replaced by `held` and with `edges` blocked, if they are given.

    Returns:
        The modules' outputs, and their inputs if these are not held: [rows, tokens, d_model], by name.
    """
    n_tokens = ids.shape[1]
    outputs: dict[str, Tensor] = {}
    inputs: dict[str, Tensor] = {}

    def keep(name: str, into: dict[str, Tensor]) -> Edit:
        return lambda activation: into.__setitem__(name, activation.detach().clone())

    def hold(streams: Tensor) -> Edit:
        return lambda stream: streams.to(stream)

    at: dict[str, Any] = {module.name: model.get_submodule(module.name) for module in modules}
    with ExitStack() as hooks:
        if held is None:
            hooks.enter_context(editing_inputs({at[name]: keep(name, inputs) for name in at}, n_tokens))
        else:
            hooks.enter_context(editing_inputs({at[name]: hold(held[name]) for name in at}, n_tokens))
        if edges is not None:
            masks = {at[module.name]: blocking_edit(edges, range(n_tokens), module) for module in modules}
            hooks.enter_context(editing_masks(masks))
        hooks.enter_context(editing_outputs({at[name]: keep(name, outputs) for name in at}, n_tokens))
        run_to_head(model, ids)
    return {name: outputs[name].cpu().double() for name in at}, inputs
