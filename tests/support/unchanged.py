"""Checks that a model is left as it was."""

from __future__ import annotations

from typing import Any

import torch


def fingerprint(model: Any) -> dict[str, Any]:
    """The model's outputs on a text, all parameters and buffers, hooks, modes and gradients' flags."""
    with torch.no_grad():
        logits = model(torch.tensor([[256, 7, 8, 9, 40]])).logits
    state = {name: tensor.detach().clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    return {"logits": logits.clone(), "state": state, "shape": _shape_of(model)}


def assert_unchanged(model: Any, before: dict[str, Any]) -> None:
    after = fingerprint(model)
    assert after["shape"] == before["shape"]
    assert torch.equal(after["logits"], before["logits"])
    assert after["state"].keys() == before["state"].keys()
    for name, tensor in before["state"].items():
        assert torch.equal(after["state"][name], tensor), name


def _shape_of(model: Any) -> list[tuple[Any, ...]]:
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_forward_hooks_with_kwargs")
    return [
        (name, module.training, "forward" in module.__dict__, *(tuple(getattr(module, kind)) for kind in hooks))
        for name, module in model.named_modules()
    ] + [(name, parameter.requires_grad, parameter.grad is None) for name, parameter in model.named_parameters()]
