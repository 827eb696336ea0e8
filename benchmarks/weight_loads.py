"""Offloading of a model whose weights are in a mapping that counts how often each weight is loaded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import accelerate
import torch
from torch import Tensor


class CountedWeights(Mapping[str, Tensor]):
    """A mapping from names to weights that counts its look-ups.

    Attributes:
        loads: The number of look-ups of each weight.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = dict(weights)
        self.loads: Counter[str] = Counter()

    def __getitem__(self, name: str) -> Tensor:
        self.loads[name] += 1
        return self._weights[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)

    @property
    def loaded_bytes(self) -> int:
        """The size of all loads in bytes."""
        return sum(count * self._weights[name].nbytes for name, count in self.loads.items())

    def of_modules(self, modules: Sequence[str]) -> list[int]:
        """Return, for each module, the number of loads of its most often loaded weight."""
        return [max(self.loads[name] for name in self._weights if name.startswith(f"{module}.")) for module in modules]


def offload_counted(model: Any) -> CountedWeights:
    """Offload all weights of a model to the CPU, in place, and return the mapping that they are loaded from."""
    counted = CountedWeights({name: weight.detach().clone() for name, weight in model.state_dict().items()})
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"), state_dict=counted)  # type: ignore[arg-type]
    counted.loads.clear()
    return counted
