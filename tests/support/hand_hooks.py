"""The oracle of the oracle: causal tracing by hand, one cell and one noise sample at a time.

Plain forward hooks on modules named by hand, batch 1, the whole forward, all logits, softmax. It shares no code with
the package: where the two agree, an error would have to be made twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.support.tiny_models import FAMILIES


def rome_noise(seed: int, samples: int, tokens: int, d_model: int, level: float) -> Tensor:
    """ROME's draws, as the issue spells them."""
    return torch.tensor(np.random.RandomState(seed).randn(samples, tokens, d_model) * level, dtype=torch.float32)


def hand_window(layer: int, window: int, n_layers: int) -> list[int]:
    """ROME's window, counted out: a window of 10 is [l-5 ... l+4], one of 3 is [l-1 ... l+1]."""
    first = layer - window // 2
    return [number for number in range(first, first + window) if 0 <= number < n_layers]


@contextmanager
def hooked(model: Any, hooks: Mapping[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    handles = []
    for name, change in hooks.items():

        def hook(_module: Any, _inputs: Any, output: Any, change: Callable[[Tensor], Tensor] = change) -> Any:
            if isinstance(output, tuple):
                return (change(output[0]), *output[1:])
            return change(output)

        handles.append(model.get_submodule(name).register_forward_hook(hook))
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def last_probabilities(model: Any, ids: Sequence[int], hooks: Mapping[str, Callable[[Tensor], Tensor]]) -> Tensor:
    with hooked(model, hooks):
        logits = model(torch.tensor([list(ids)])).logits
    assert logits.shape[:2] == (1, len(ids))
    return torch.softmax(logits[0, -1].float(), dim=-1)


def clean_by_hand(model: Any, name: str, ids: Sequence[int]) -> tuple[Tensor, dict[str, Tensor]]:
    """Probabilities of the next token, and what every pinned module gave: [tokens, d_model] by name."""
    family = FAMILIES[name]
    kept: dict[str, Tensor] = {}

    def keep(module_name: str) -> Callable[[Tensor], Tensor]:
        def note(activation: Tensor) -> Tensor:
            kept[module_name] = activation.detach().clone().reshape(len(ids), -1)
            return activation

        return note

    names = [module for kind in ("hidden", "mlp", "attention") for module in family.site_names(kind)]
    return last_probabilities(model, ids, {module: keep(module) for module in names}), kept


def cell_by_hand(
    model: Any,
    name: str,
    ids: Sequence[int],
    subject: tuple[int, int],
    noise: Tensor | None,
    restore: Mapping[str, Sequence[int]],
    clean: Mapping[str, Tensor],
    answer: int,
) -> float:
    """P(answer) with one noise sample [subject tokens, d_model] and with `restore`'s modules put back at its tokens."""
    hooks: dict[str, Callable[[Tensor], Tensor]] = {}
    if noise is not None:

        def corrupt(embedded: Tensor) -> Tensor:
            changed = embedded.clone()
            for i, position in enumerate(range(*subject)):
                changed[0, position] = changed[0, position] + noise[i]
            return changed

        hooks[FAMILIES[name].embedding] = corrupt
    for module, tokens in restore.items():

        def put_back(activation: Tensor, module: str = module, tokens: Sequence[int] = tokens) -> Tensor:
            changed = activation.clone()
            rows = changed.view(len(ids), -1)
            for token in tokens:
                rows[token] = clean[module][token]
            return changed

        hooks[module] = put_back
    return float(last_probabilities(model, ids, hooks)[answer])


def map_by_hand(
    model: Any,
    name: str,
    ids: Sequence[int],
    subject: tuple[int, int],
    *,
    kind: str,
    window: int,
    samples: int,
    seed: int,
    level: float,
    positions: Sequence[int],
) -> tuple[Tensor, Tensor, float]:
    """Scores [samples, positions, layers], corrupted scores [samples], and the clean probability of the answer."""
    probabilities, clean = clean_by_hand(model, name, ids)
    answer = int(probabilities.argmax())
    sites = FAMILIES[name].site_names(kind)
    noise = rome_noise(seed, samples, subject[1] - subject[0], next(iter(clean.values())).shape[1], level)

    def score(sample: int, restore: Mapping[str, Sequence[int]]) -> float:
        return cell_by_hand(model, name, ids, subject, noise[sample], restore, clean, answer)

    scores = torch.tensor(
        [
            [
                [
                    score(sample, {sites[number]: [position] for number in hand_window(layer, window, len(sites))})
                    for layer in range(len(sites))
                ]
                for position in positions
            ]
            for sample in range(samples)
        ]
    )
    return scores, torch.tensor([score(sample, {}) for sample in range(samples)]), float(probabilities[answer])
