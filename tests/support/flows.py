"""A made-up result."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch

from causal_tracer import HiddenFlow, TraceSettings


def some_flow(**changes: Any) -> HiddenFlow:
    """A made-up result: 3 samples, 4 tokens, 2 layers, one column not computed."""
    generator = torch.Generator().manual_seed(0)
    samples = torch.rand(3, 4, 2, generator=generator)
    samples[:, :, 1] = torch.nan
    low = torch.rand(3, generator=generator)
    settings = TraceSettings(
        model="some/model",
        revision=None,
        dtype="float32",
        noise=0.1 + 0.2,
        noise_rule="given",
        samples=3,
        seed=1,
        window=1,
        batch_size=32,
        start_layer=0,
        end_layer=1,
        subject_tokens_only=False,
        engine="full",
        versions={"torch": "2.13.0"},
    )
    values: dict[str, Any] = {
        "scores": samples.mean(dim=0),
        "low_score": float(low.mean()),
        "high_score": 0.7,
        "input_ids": torch.tensor([256, 5, 6, 7]),
        "input_tokens": ["<bos>", " the", "東[1/2]", "🚀"],
        "subject_range": (2, 4),
        "answer": " Seattle",
        "kind": "mlp",
        "layer_outputs": OrderedDict(),
        "answer_id": 9,
        "prompt": "the 東🚀",
        "subject": "東🚀",
        "subject_guessed": True,
        "sample_scores": samples,
        "low_sample_scores": low,
        "settings": settings,
        "notes": ("Layers without mlp: 1.",),
    }
    return HiddenFlow(**{**values, **changes})
