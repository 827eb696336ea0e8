"""Causal tracing with plain hooks, one cell and one noise sample at a time, without code of the package."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class HandTracer:
    """A tracer of one model by plain hooks.

    Attributes:
        model: The causal LM.
        embedding: The name of the token embedding.
        token_dims: The dimension of a module's output that has the tokens, by module name; 1 for other modules.
    """

    model: Any
    embedding: str
    token_dims: Mapping[str, int]

    def clean(self, ids: Sequence[int], names: Sequence[str]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the next token's probabilities, and the outputs of the named modules, tokens first."""
        kept: dict[str, Tensor] = {}

        def keep(name: str) -> Callable[[Tensor], None]:
            def note(activation: Tensor) -> None:
                kept[name] = self._tokens_first(name, activation, len(ids)).detach().clone()

            return note

        return self._run(ids, {name: keep(name) for name in names}), kept

    def cell(
        self,
        ids: Sequence[int],
        start: int,
        noise: Tensor,
        restore: Mapping[str, Sequence[int]],
        clean: Mapping[str, Tensor],
    ) -> Tensor:
        """Return the next token's probabilities in a restored run.

        Args:
            ids: The prompt's token ids.
            start: The first token with noise.
            noise: The noise [tokens, d_model].
            restore: The tokens to restore, by module name.
            clean: The clean outputs, as `clean` returns them.
        """

        def corrupt(embedded: Tensor) -> Tensor:
            changed = embedded.clone()
            changed[0, start : start + len(noise)] += noise
            return changed

        def put_back(name: str) -> Callable[[Tensor], Tensor]:
            def change(activation: Tensor) -> Tensor:
                changed = activation.clone()
                rows = self._tokens_first(name, changed, len(ids))
                for token in restore[name]:
                    rows[token] = clean[name][token]
                return changed

            return change

        return self._run(ids, {self.embedding: corrupt, **{name: put_back(name) for name in restore}})

    def _tokens_first(self, name: str, activation: Tensor, tokens: int) -> Tensor:
        flat = activation.dim() == 2
        return activation.view(tokens, -1) if flat else activation.movedim(self.token_dims.get(name, 1), 0)

    @torch.no_grad()
    def _run(self, ids: Sequence[int], hooks: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Tensor:
        with _hooked(self.model, hooks):
            logits: Tensor = self.model(torch.tensor([list(ids)]), use_cache=False).logits
        return torch.softmax(logits[0, -1].float(), dim=-1)


@contextmanager
def _hooked(model: Any, hooks: Mapping[str, Callable[[Tensor], Tensor | None]]) -> Iterator[None]:
    handles = []
    for name, change in hooks.items():

        def hook(_module: Any, _inputs: Any, output: Any, change: Callable[[Tensor], Tensor | None] = change) -> Any:
            if isinstance(output, Tensor):
                return change(output)
            first = next(i for i, item in enumerate(output) if isinstance(item, Tensor))
            changed = change(output[first])
            return None if changed is None else type(output)([*output[:first], changed, *output[first + 1 :]])

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
