"""A tiny model with facts that it knows, for tests of studies."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch

from causal_tracer import CausalTracer
from causal_tracer.study.facts import Fact, facts_from_records, predict_facts
from tests.support.tiny_models import build_tiny_model, tiny_tokenizer

NOISE = 0.5
_SUBJECTS = (
    "the Space Needle",
    "Steve Jobs",
    "Italy",
    "the Apple tower in Rome",
    "a river of France",
    "Paris and Rome",
)
_TEMPLATES = {"place": "Look: {} is located in", "founder": "In truth, {} was the founder of", "capital": "{} is to"}


def build_model() -> Any:
    """A tiny Llama that answers with whole words only."""
    model = build_tiny_model("llama")
    tokenizer = tiny_tokenizer(bos=True)
    words = [number for token, number in tokenizer.get_vocab().items() if token.startswith("Ġ") and len(token) > 2]
    kept = torch.zeros(model.lm_head.weight.shape[0], 1)
    kept[words] = 1.0
    with torch.no_grad():
        model.lm_head.weight *= kept
    return model


@cache
def tracer() -> CausalTracer:
    """A tracer of it that tests share."""
    return CausalTracer(build_model(), tiny_tokenizer(bos=True), noise=NOISE, model_id="tiny")


@cache
def known_facts() -> tuple[Fact, ...]:
    """Facts of three relations that the model knows."""
    records = [
        {
            "fact_id": f"{relation}-{number}",
            "prompt": template,
            "subject": subject,
            "attribute": "x",
            "relation": relation,
        }
        for relation, template in _TEMPLATES.items()
        for number, subject in enumerate(_SUBJECTS)
    ]
    answers, refused = predict_facts(tracer().context, facts_from_records(records))
    if refused:
        raise ValueError(f"The tiny tokenizer refuses {refused}.")
    decode = tracer().tokenizer.decode
    return tuple(replace(found.fact, attribute=decode([found.top_id]).strip()) for found in answers)
