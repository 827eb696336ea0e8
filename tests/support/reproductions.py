"""Random GPT-2s whose tokenizer splits Figure 1's prompt as GPT-2's does, and maps that have its published numbers."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
import transformers

from causal_tracer import CausalTracer, HiddenFlow
from causal_tracer.reproduce.published import FIGURE_1_ANSWER, FIGURE_1_PROMPT, FIGURE_1_SUBJECT, FIGURE_1_TOKENS
from tests.support.flows import some_flow
from tests.support.tiny_models import make_sensitive
from tests.support.tiny_tokenizers import byte_level_tokenizer_of

LE, DOWNTOWN, NEED = 3, 6, 2
LAYERS = 48
LOW, HIGH = 0.0296, 0.976


@cache
def figure_tokenizer() -> Any:
    # "le" comes last, so that it cannot match inside a longer one.
    return byte_level_tokenizer_of([*(token for token in FIGURE_1_TOKENS if token != "le"), FIGURE_1_ANSWER, "le"])


def random_gpt2(layers: int, width: int = 8) -> Any:
    """A random GPT-2 with as many blocks, whose answer depends on the subject."""
    config = transformers.GPT2Config(
        vocab_size=len(figure_tokenizer()),
        n_positions=16,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        tie_word_embeddings=False,
    )
    return make_sensitive(transformers.GPT2LMHeadModel(config), gain=1.0, head=1.0, embedding_sd=0.3, seed=0)


@cache
def figure_tracer(layers: int = 4) -> CausalTracer:
    """A tracer of a random GPT-2 that tests share."""
    return CausalTracer(random_gpt2(layers), figure_tokenizer(), model_id="random-gpt2")


def published_maps(shift: int = 0, **settings: Any) -> dict[str, HiddenFlow]:
    """Made-up maps with all published numbers of Figure 1.

    Args:
        shift: Move all windows by as many layers: windows of c-4 ... c+5 have the values of centre c+1 at c.
        settings: Changes of the maps' settings.
    """
    maps = {kind: torch.full((7, LAYERS), LOW) for kind in ("hidden", "mlp", "attention")}
    hidden, mlp, attention = maps.values()
    hidden[LE, 10:34] = 0.9
    hidden[LE, 15] = 0.974
    hidden[DOWNTOWN, 31:] = torch.linspace(0.6, 0.976, LAYERS - 31)
    hidden[DOWNTOWN, 46] = 0.9765
    hidden[NEED, :12] = 0.07
    hidden[NEED, 3] = 0.111
    mlp[LE, 11:21] = 0.7
    mlp[LE, 14], mlp[LE, 17] = 0.8755, 0.8949
    mlp[NEED, 3:8] = 0.06
    mlp[NEED, 5] = 0.093
    attention[DOWNTOWN, 27:39] = 0.7
    attention[DOWNTOWN, 32], attention[DOWNTOWN, 37] = 0.7994, 0.383
    attention[LE, 8:12] = 0.15
    attention[LE, 10] = 0.2115
    for window in (mlp, attention):
        window.copy_(window.roll(-shift, dims=1))
    return {kind: figure_flow(kind, scores, **settings) for kind, scores in maps.items()}


def figure_flow(kind: str, scores: torch.Tensor, **settings: Any) -> HiddenFlow:
    """A made-up map of Figure 1's prompt."""
    made = {"model": "gpt2-xl", "dtype": "float32", "noise": 0.1, "window": 1 if kind == "hidden" else 10}
    return some_flow(
        kind=kind,
        scores=scores,
        sample_scores=scores[None],
        low_score=LOW,
        low_sample_scores=torch.tensor([LOW]),
        high_score=HIGH,
        input_ids=torch.arange(7),
        input_tokens=list(FIGURE_1_TOKENS),
        subject_range=(0, 4),
        prompt=FIGURE_1_PROMPT,
        subject=FIGURE_1_SUBJECT,
        answer=FIGURE_1_ANSWER,
        settings=replace(some_flow().settings, **{**made, **settings}),
    )
