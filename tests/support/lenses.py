"""Made-up results of single runs."""

from __future__ import annotations

from typing import Any

import torch

from causal_tracer import LogitLens, PatchedRun
from causal_tracer.results.patched import PatchedAnswer

TOKENS = ("<bos>", " the", "\n", " 東", "=x")


def some_lens(**changes: Any) -> LogitLens:
    """A made-up lens: 5 tokens, 3 layers, 2 top tokens."""
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(5, 3, 2, generator=generator).sort(dim=-1, descending=True).values / 2
    ids = torch.randint(0, 5, (5, 3, 2), generator=generator)
    values: dict[str, Any] = {
        "prompt": "the\n東=x",
        "input_ids": torch.tensor([256, 5, 6, 7, 8]),
        "input_tokens": TOKENS,
        "top_ids": ids,
        "top_probabilities": probabilities,
        "texts": {0: " Seattle", 1: "\n", 2: "=1+1", 3: "<b>", 4: " a{long}erthanacell"},
        "answer": " Seattle",
        "answer_id": 0,
        "answer_probabilities": torch.rand(5, 3, generator=generator) / 3,
        "answer_ranks": torch.randint(1, 9, (5, 3), generator=generator),
        "entropies": torch.rand(5, 3, generator=generator) * 4,
        "run": "clean run",
        "samples": 1,
        "model": "some/model",
        "revision": None,
        "dtype": "float32",
        "final_norm": "model.norm",
        "versions": {"torch": "2.13.0"},
        "notes": ("A note.",),
    }
    return LogitLens(**{**values, **changes})


def some_patched_run(**changes: Any) -> PatchedRun:
    """A made-up patched run into the prompt of `some_lens`."""
    values: dict[str, Any] = {
        "source_prompt": "a b",
        "source_tokens": ("a", " b"),
        "base_prompt": "the\n東=x",
        "base_tokens": TOKENS,
        "site": "mlp",
        "pairs": (((1, 0), (2, 1)), ((0, 2), (4, 0))),
        "answers": (PatchedAnswer(0, " Seattle", 0.1 + 0.2, 0.25, 0.5), PatchedAnswer(1, "\n", 0.5, 0.25, 0.125)),
        "lens": some_lens(run="patched run, 2 pairs of MLP outputs"),
        "cone": torch.rand(5, 3, generator=torch.Generator().manual_seed(1)) > 0.5,
        "notes": ("A note.",),
    }
    return PatchedRun(**{**values, **changes})
