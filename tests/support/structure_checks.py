"""Checks of the modules that were found in a model."""

from __future__ import annotations

from causal_tracer.model.layers import TracedModel
from causal_tracer.request.sites import KINDS
from tests.support.tiny_models import (
    FAMILIES,
)


def check_names_are_the_pinned_ones(traced: TracedModel, name: str) -> None:
    family = FAMILIES[name]
    assert traced.embedding_name == family.embedding
    for kind in KINDS:
        assert traced.site_names[kind] == tuple((module,) for module in family.site_names(kind)), kind
