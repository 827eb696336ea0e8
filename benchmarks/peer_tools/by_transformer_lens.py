"""Maps by TransformerLens 4: hooks of its bridge patch each batch row; only the last token's logits are computed."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from serving import Map, Rows, Task, load_model, load_tokenizer, map_in_rows, probabilities, serve
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

HOOKS = {"hidden": "blocks.{}.hook_resid_post", "mlp": "blocks.{}.hook_mlp_out", "attention": "blocks.{}.hook_attn_out"}


class Tracer:
    """A tracer of one model by TransformerLens."""

    def __init__(self, folder: str) -> None:
        parts: dict[str, Any] = {"hf_model": load_model(folder), "tokenizer": load_tokenizer(folder)}
        self._bridge: Any = TransformerBridge.boot_transformers(folder, device="cpu", **parts)

    def __call__(self, task: Task) -> Map:
        """Return one map."""
        bridge, ids, noise = self._bridge, torch.tensor([task.ids]), task.drawn()
        start, end = task.subject_range
        names = [HOOKS[task.site].format(layer) for layer in range(task.n_layers)]
        logits, clean = bridge.run_with_cache(ids, names_filter=names, logits_to_keep=1)
        high = float(probabilities(logits[:, -1], task.answer_id))

        def corrupted(embedded: Tensor, hook: Any, samples: Tensor) -> Tensor:
            embedded[:, start:end] += noise[samples]
            return embedded

        def patched(activation: Tensor, hook: Any, at: Tensor, tokens: Tensor) -> Tensor:
            activation[at, tokens] = clean[hook.name][0, tokens]
            return activation

        def forward(rows: Rows) -> Tensor:
            hooks: list[tuple[str, Any]] = [("hook_embed", partial(corrupted, samples=rows.samples))]
            for layer, name in enumerate(names):
                at, tokens = rows.at(layer)
                if len(at):
                    hooks.append((name, partial(patched, at=at, tokens=tokens)))
            found = bridge.run_with_hooks(ids.expand(len(rows), -1), fwd_hooks=hooks, logits_to_keep=1, use_cache=False)
            return probabilities(found[:, -1], task.answer_id)

        return map_in_rows(task, high, forward)


if __name__ == "__main__":
    serve(Tracer)
