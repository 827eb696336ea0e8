"""Attention masks: which modules take one, and the edges that are blocked in it.

An attention edge leads from a query, the token that attends, to a key, the token that it attends to. Blocking it gives
it no weight in any head; the softmax shares the weight out to the query's other keys.
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
        name: Its name.
        hidden: The value of a boolean mask where a query must not attend.
    """

    name: str
    hidden: bool = False


def blocking(edges: BlockedEdges, tokens: range, module: MaskedModule) -> MaskEdit:
    """Return the edit of a module's mask that takes edges out of it, in all heads.

    The keys of a mask end with the last token; a cache of a sliding window holds the last ones only. A module that is
    given no mask is causal over all tokens, and the edit returns such a mask.

    Args:
        edges: What is blocked. Rows that are not in the module's batch yet are left out.
        tokens: The positions that are run; those before them are in a cache.
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
        hidden = module.hidden if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        changed = mask.masked_fill(blocked, hidden)
        seen = changed != hidden if mask.dtype == torch.bool else changed > hidden / 2
        if bool((blocked.any(dim=-1) & ~seen.any(dim=-1)).any()):
            raise SettingsError(
                f"In {module.name!r} a token attends to no token but those that are to be blocked. Block fewer tokens, "
                "or choose another token that may not attend."
            )
        return changed

    return block


def _causal_mask(tokens: range, like: Tensor) -> Tensor:
    """Return an additive mask [1, 1, tokens, keys] by which each token attends to itself and all before it."""
    keys = torch.arange(tokens.stop, device=like.device)
    later = keys > keys[tokens.start :, None]
    mask = torch.zeros(later.shape, dtype=like.dtype, device=like.device)
    return mask.masked_fill(later, torch.finfo(like.dtype).min)[None, None]


def masked_modules(model: nn.Module, blocks: Sequence[str]) -> dict[str, dict[int, list[MaskedModule]]]:
    """Return the modules in the blocks that take a mask [rows, heads, queries, keys] or none, by class and block.

    Of modules inside each other, which hand the mask on, it is the innermost. Not all of them need use their mask.
    """
    inside = {
        name: layer for layer, block in enumerate(blocks) for name, _ in model.named_modules() if _within(name, block)
    }
    hidden: dict[str, bool] = {}

    def note(name: str) -> Callable[..., None]:
        def before(_module: nn.Module, _args: Any, kwargs: Any) -> None:
            mask = kwargs.get(MASK, False)
            if mask is None:
                hidden.setdefault(name, False)
            elif isinstance(mask, Tensor) and mask.dim() == 4:
                # The first token must not attend to the last one.
                hidden[name] = mask.dtype == torch.bool and bool(mask[0, 0, 0, -1])

        return before

    with ExitStack() as hooks:
        for name in inside:
            hooks.enter_context(add_input_hook(model.get_submodule(name), note(name)))
        run_to_head(model, probe_ids(model))
    found: dict[str, dict[int, list[MaskedModule]]] = defaultdict(lambda: defaultdict(list))
    for name, value in hidden.items():
        if not any(_within(other, name) and other != name for other in hidden):
            kind = type(model.get_submodule(name)).__qualname__
            found[kind][inside[name]].append(MaskedModule(name, value))
    return {kind: dict(layers) for kind, layers in found.items()}


def _within(name: str, outer: str) -> bool:
    return name == outer or name.startswith(f"{outer}.")
