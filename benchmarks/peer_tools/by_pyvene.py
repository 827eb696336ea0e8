"""Maps by pyvene: an intervenable model for each window of layers, with tokens and samples as batch rows."""

from __future__ import annotations

from typing import Any

import pyvene
import torch
from pyvene.models.intervenable_modelcard import type_to_dimension_mapping, type_to_module_mapping
from serving import Map, Rows, Task, load_model, map_in_rows, probabilities, serve
from torch import Tensor
from transformers import Gemma2ForCausalLM

COMPONENTS = {"hidden": "block_output", "mlp": "mlp_output", "attention": "attention_output"}


class Tracer:
    """A tracer of one model by pyvene."""

    def __init__(self, folder: str) -> None:
        self._model: Any = load_model(folder)
        # pyvene does not know Gemma 3, whose modules have the same names as Gemma 2's.
        for mapping in (type_to_module_mapping, type_to_dimension_mapping):
            mapping.setdefault(type(self._model), mapping[Gemma2ForCausalLM])

    def __call__(self, task: Task) -> Map:
        """Return one map."""
        ids, noise, tokens = torch.tensor([task.ids]), task.drawn(), list(range(len(task.ids)))
        subject = list(range(*task.subject_range))
        component = COMPONENTS[task.site]

        def at(layers: range, kind: type, units: int) -> list[dict[str, Any]]:
            shared = {"component": component, "intervention_type": kind, "max_number_of_units": units}
            return [{"layer": layer, **shared} for layer in layers]

        def inputs(rows: int) -> dict[str, Any]:
            return {"input_ids": ids.expand(rows, -1), "logits_to_keep": 1, "use_cache": False}

        collected = at(range(task.n_layers), pyvene.CollectIntervention, len(tokens))
        collecting = self._intervenable(collected)
        (_, clean), output = collecting(inputs(1), unit_locations={"base": [[tokens]] * task.n_layers})
        high = float(probabilities(output.logits[:, -1], task.answer_id))
        corruption = {"component": "model.embed_tokens.output", "intervention_type": pyvene.AdditionIntervention}
        models: dict[range, Any] = {}

        def in_window(window: range, places: Tensor, samples: Tensor) -> Tensor:
            if window not in models:
                made = [corruption, *at(window, pyvene.VanillaIntervention, 1)]
                models[window] = self._intervenable(made)
            locations = [[subject] * len(places), *[places[:, None].tolist()] * len(window)]
            output = models[window](
                inputs(len(places)),
                unit_locations={"sources->base": (None, locations)},
                source_representations=[noise[samples], *(clean[layer][0, places, None] for layer in window)],
            )[1]
            return probabilities(output.logits[:, -1], task.answer_id)

        def forward(rows: Rows) -> Tensor:
            found = []
            for start, end in torch.stack((rows.starts, rows.ends), dim=1).unique(dim=0).tolist():
                same = (rows.starts == start) & (rows.ends == end)
                found.append(in_window(range(start, end), rows.tokens[same], rows.samples[same]))
            return torch.cat(found)

        return map_in_rows(task, high, forward)

    def _intervenable(self, representations: list[dict[str, Any]]) -> Any:
        made = pyvene.IntervenableModel(representations, self._model)
        # pyvene freezes the weights, and torch is several times slower at multiplying strided rows by frozen weights.
        self._model.requires_grad_(True)
        return made


if __name__ == "__main__":
    serve(Tracer)
