"""Attention masks: finding the modules that take one, and blocking attention edges in it.

An attention edge leads from a query, the token that attends, to a key, the token attended to. A blocked edge has the
attention weight 0 in all heads. The softmax distributes its weight over the query's other keys.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracer.errors import SettingsError
from causal_tracer.model.hooks import MASK, MaskEdit, add_input_hook
from causal_tracer.model.probing import probe_ids, run_to_head


@dataclass(frozen=True, eq=False)
class BlockedEdges:
    """Attention edges blocked in a batch: in row `rows[i]`, position `queries[i]` does not attend to `keys[i]`.

    Attributes:
        rows: Row numbers [edges].
        queries: Positions in the prompt [edges].
        keys: Positions in the prompt [edges].
    """

    rows: Tensor
    queries: Tensor
    keys: Tensor


@dataclass(frozen=True)
class MaskedModule:
    """A module that takes an attention mask.

    Attributes:
        name: The module's full name.
        blocked_value: The value in a boolean mask that means "must not attend".
    """

    name: str
    blocked_value: bool = False


def blocking_edit(edges: BlockedEdges, tokens: range, module: MaskedModule) -> MaskEdit:
    """Return the edit of a module's attention mask that blocks edges in all heads.

    The last key of a mask is the last token; a sliding-window cache holds only the last keys. If the module is called
    without a mask, its attention is causal over all tokens, and the edit starts from a causal mask.

    Args:
        edges: The edges to block. Rows that are not in the module's batch yet are ignored.
        tokens: The positions that are run. Earlier positions are in a key/value cache.
        module: The module.
    """

    def block(mask: Tensor | None, stream: Tensor) -> Tensor:
        rows = len(stream) if stream.dim() > 2 else len(stream) // len(tokens)
        if mask is None:
            mask = _causal_mask(tokens, stream)
        first_key = tokens.stop - mask.shape[-1]
        here = (edges.rows < rows) & (edges.queries >= tokens.start) & (edges.keys >= first_key)
        row, query, key = edges.rows[here], edges.queries[here] - tokens.start, edges.keys[here] - first_key
        blocked = torch.zeros(rows, 1, len(tokens), mask.shape[-1], dtype=torch.bool, device=mask.device)
        blocked[row, 0, query, key] = True
        blocked_value = module.blocked_value if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        changed = mask.masked_fill(blocked, blocked_value)
        seen = changed != blocked_value if mask.dtype == torch.bool else changed > blocked_value / 2
        if bool((blocked.any(dim=-1) & ~seen.any(dim=-1)).any()):
            raise SettingsError(
                f"In {module.name!r} every token that a query may attend to would be blocked. Leave at least one key "
                "unblocked for each query: block fewer keys, or choose another query."
            )
        return changed

    return block


def _causal_mask(tokens: range, like: Tensor) -> Tensor:
    """Return an additive causal mask [1, 1, tokens, keys]: each token attends to itself and all earlier tokens."""
    keys = torch.arange(tokens.stop, device=like.device)
    later = keys > keys[tokens.start :, None]
    mask = torch.zeros(later.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill(later, torch.finfo(like.dtype).min)[None, None]


def masked_modules(model: nn.Module, blocks: Sequence[str]) -> dict[str, dict[int, list[MaskedModule]]]:
    """Return the modules in the blocks that take a mask [rows, heads, queries, keys] or None, by class and layer.

    If a module passes the mask to a module inside it, only the innermost is returned. A module that takes a mask may
    still ignore it.
    """
    inside = {
        name: layer for layer, block in enumerate(blocks) for name, _ in model.named_modules() if _within(name, block)
    }
    blocked_values: dict[str, bool] = {}

    def note(name: str) -> Callable[..., None]:
        def before(_module: nn.Module, _args: Any, kwargs: Any) -> None:
            mask = kwargs.get(MASK, False)
            if mask is None:
                blocked_values.setdefault(name, False)
            elif isinstance(mask, Tensor) and mask.dim() == 4:
                # The first token must not attend to the last one.
                blocked_values[name] = mask.dtype == torch.bool and bool(mask[0, 0, 0, -1])

        return before

    with ExitStack() as hooks:
        for name in inside:
            hooks.enter_context(add_input_hook(model.get_submodule(name), note(name)))
        run_to_head(model, probe_ids(model))
    found: dict[str, dict[int, list[MaskedModule]]] = defaultdict(lambda: defaultdict(list))
    for name, value in blocked_values.items():
        if not any(_within(other, name) and other != name for other in blocked_values):
            kind = type(model.get_submodule(name)).__qualname__
            found[kind][inside[name]].append(MaskedModule(name, value))
    return {kind: dict(layers) for kind, layers in found.items()}


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")
