"""The logit lens by hand: hooks on blocks named by hand, the norm and the head called one after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from causal_tracer import LogitLens
from tests.support.hand_hooks import last_probabilities
from tests.support.tiny_models import FAMILIES

FINAL_NORMS = {
    "gpt2": "transformer.ln_f",
    "llama": "model.norm",
    "gpt_neox": "gpt_neox.final_layer_norm",
    "gemma3_text": "model.norm",
    "opt": "model.decoder.final_layer_norm",
    "bloom": "transformer.ln_f",
    "mixtral": "model.norm",
    "phi": "model.final_layernorm",
    "mistral": "model.norm",
    "gptj": "transformer.ln_f",
    "falcon": "transformer.ln_f",
    "qwen3_next": "model.norm",
    "lfm2": "model.embedding_norm",
    "gpt_oss": "model.norm",
    "mpt": "transformer.norm_f",
}
"""The final norm of each family."""

Hooks = Mapping[str, Callable[[Tensor], Tensor]]


@torch.no_grad()
def lens_by_hand(model: Any, name: str, ids: Sequence[int], hooks: Hooks | None = None) -> Tensor:
    """Return the probabilities [tokens, layers, vocabulary] of a run with some hooks in it, in double precision."""
    family, hooks = FAMILIES[name], hooks or {}
    blocks = family.site_names("hidden")
    kept: dict[str, Tensor] = {}

    def keep(block: str) -> Callable[[Tensor], Tensor]:
        def note(activation: Tensor) -> Tensor:
            changed = hooks[block](activation) if block in hooks else activation
            kept[block] = changed.detach().clone().reshape(len(ids), -1)
            return changed

        return note

    last_probabilities(model, ids, {**hooks, **{block: keep(block) for block in blocks}})
    norm, head = model.get_submodule(FINAL_NORMS[name]), model.get_output_embeddings()
    return torch.stack([torch.softmax(head(norm(kept[block])).double(), dim=-1) for block in blocks], dim=1)


def assert_lens(lens: LogitLens, expected: Tensor, atol: float = 1e-5) -> None:
    """Compare all numbers of a lens with probabilities [tokens, layers, vocabulary]."""
    tokens, layers, _ = expected.shape
    assert lens.top_ids.shape[:2] == lens.entropies.shape == (tokens, layers)
    close = {"rtol": 0, "atol": atol}
    found = expected.gather(-1, lens.top_ids).float()
    torch.testing.assert_close(lens.top_probabilities, found, **close)  # type: ignore[arg-type]
    best = expected.topk(lens.top_ids.shape[-1]).values.float()
    torch.testing.assert_close(lens.top_probabilities, best, **close)  # type: ignore[arg-type]
    answer = expected[..., lens.answer_id]
    torch.testing.assert_close(lens.answer_probabilities, answer.float(), **close)  # type: ignore[arg-type]
    entropies = -(expected * expected.clamp(min=1e-300).log()).sum(dim=-1).float()
    torch.testing.assert_close(lens.entropies, entropies, rtol=0, atol=20 * atol)
    # Rounding may change the order of tokens that are as probable as the answer.
    margin = 1e-5 * answer[..., None]
    least = (expected > answer[..., None] + margin).sum(dim=-1) + 1
    most = (expected >= answer[..., None] - margin).sum(dim=-1)
    assert bool(((least <= lens.answer_ranks) & (lens.answer_ranks <= most)).all())


def putting(values: Mapping[int, Tensor]) -> Callable[[Tensor], Tensor]:
    """Return a hook that sets a module's output at some tokens, in a run of one row."""

    def put(activation: Tensor) -> Tensor:
        changed = activation.clone()
        rows = changed.view(-1, changed.shape[-1])
        for token, value in values.items():
            rows[token] = value
        return changed

    return put
