"""Tracers of the models that come with pip. A process loads each once: that takes longer than most of their tests."""

from __future__ import annotations

from functools import cache

from causal_tracer import CausalTracer

GEMMA = "embedded"
SMOLLM = "embedded:smollm2-135m-instruct"


@cache
def real_tracer(name: str) -> CausalTracer:
    return CausalTracer.from_pretrained(name, progress=False)
