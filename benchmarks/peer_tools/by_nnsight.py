"""Maps by nnsight: many runs as batch rows of one trace, and only the logits of the last token.

`by_nnsight_skipping.py` also skips the blocks below the first restored one, whose outputs equal the corrupted run's.
"""

from __future__ import annotations

from typing import Any

import torch
from nnsight import NNsight
from serving import Map, Rows, Task, load_model, map_in_rows, probabilities, serve
from torch import Tensor

OUTPUTS = {"hidden": lambda block: block, "mlp": lambda block: block.mlp, "attention": lambda block: block.self_attn}


class Tracer:
    """A tracer of one model by nnsight.

    Args:
        folder: The folder of the model.
        skips: Whether to skip blocks whose outputs equal the corrupted run's.
    """

    def __init__(self, folder: str, *, skips: bool = False) -> None:
        self._model: Any = NNsight(load_model(folder))
        self._skips = skips

    def __call__(self, task: Task) -> Map:
        """Return one map."""
        model, ids, noise = self._model, torch.tensor([task.ids]), task.drawn()
        start, end = task.subject_range
        blocks = list(model.model.layers)
        modules = [OUTPUTS[task.site](block) for block in blocks]
        corrupted: list[Tensor] = []
        if self._skips:
            with model.trace(input_ids=ids.expand(task.samples, -1), logits_to_keep=1, use_cache=False):
                model.model.embed_tokens.output[:, start:end] += noise
                for block in blocks:
                    corrupted.append(block.output.clone().save())
        clean: list[Tensor] = []
        with model.trace(input_ids=ids, logits_to_keep=1, use_cache=False):
            for module in modules:
                clean.append(_tensor(module.output)[0].save())
            logits = model.lm_head.output[:, -1].save()
        high = float(probabilities(logits, task.answer_id))

        def forward(rows: Rows) -> Tensor:
            first = int(rows.starts.min()) if self._skips else 0
            with model.trace(input_ids=ids.expand(len(rows), -1), logits_to_keep=1, use_cache=False):
                model.model.embed_tokens.output[:, start:end] += noise[rows.samples]
                for block in blocks[:first]:
                    block.skip(corrupted[first - 1][rows.samples])
                for layer in range(first, task.n_layers):
                    at, tokens = rows.at(layer)
                    if len(at):
                        _tensor(modules[layer].output)[at, tokens] = clean[layer][tokens]
                found = model.lm_head.output[:, -1].save()
            return probabilities(found, task.answer_id)

        return map_in_rows(task, high, forward)


def _tensor(output: Any) -> Any:
    return output[0] if isinstance(output, tuple) else output


if __name__ == "__main__":
    serve(Tracer)
