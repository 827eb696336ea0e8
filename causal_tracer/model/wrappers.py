"""Removing another library's wrapper from a transformers model, or refusing the wrapper.

- `torch.compile(model)` wraps the model itself. The engine runs the model uncompiled.
- PEFT puts its adapters inside the transformers model's own modules, so the inner model computes the same as the
  wrapper. Both are run to check this.
- nnsight runs a transformers model from outside.
- TransformerLens replaces modules inside the blocks. Its modules do not support the engine's edits, so it is refused.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracer.errors import ModelStructureError
from causal_tracer.model.engine_mode import engine_mode
from causal_tracer.model.probing import device_of, probe_ids
from causal_tracer.model.quantization import quantizes_activations


def unwrapped(model: Any) -> Any:
    """Return the transformers model inside a wrapper of torch.compile, PEFT or nnsight, or else the model itself.

    Raises:
        ModelStructureError: The inner model does not compute the same as the wrapper, its weights are not loaded, or
            it contains modules of TransformerLens.
    """
    while (inner := _inside(model)) is not None:
        model = inner
    if isinstance(model, nn.Module) and any(_library(module) == "transformer_lens" for module in model.modules()):
        raise ModelStructureError(
            f"{type(model).__name__} contains modules of TransformerLens, which replace the model's own blocks and do "
            "not support edits. Load the transformers model again, without TransformerLens, with "
            "AutoModelForCausalLM.from_pretrained(...)."
        )
    return model


def _inside(model: Any) -> Any:
    """Return the model inside a wrapper, or None if the model has no wrapper."""
    if any(cls.__name__ == "OptimizedModule" for cls in type(model).__mro__):
        return model._orig_mod
    library = _library(model)
    if library == "peft":
        return _from_peft(model)
    if library == "nnsight":
        return _from_nnsight(model)
    return None


def _library(model: Any) -> str:
    """Return the known package that defines a model's class or one of its base classes, or "" for none."""
    packages = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    return next((name for name in ("peft", "nnsight", "transformer_lens") if name in packages), "")


def _from_peft(model: Any) -> Any:
    given = type(model).__name__
    if not hasattr(model, "get_base_model"):
        # A tuner such as LoraModel stands between PeftModel and the transformers model.
        return model.model
    for name, config in model.peft_config.items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if config.is_prompt_learning or kind in ("POLY", "XLORA") or getattr(config, "alora_invocation_tokens", None):
            raise ModelStructureError(
                f"{given} has the adapter {name!r} ({kind}), which works outside the model's own modules, by virtual "
                "tokens or by the whole prompt, so it cannot be traced. Use an adapter inside modules, such as LoRA, "
                "or give model.get_base_model() to trace the model without the adapter."
            )
    inner = model.get_base_model()
    ids = probe_ids(inner)
    found, expected = _logits(inner, inner, ids), _logits(model, inner, ids)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ModelStructureError(
            f"{given} and the {type(inner).__name__} inside it compute different logits, so its adapter cannot be "
            "traced. Merge the adapter first: model.merge_and_unload()."
        )
    return inner


def _logits(model: nn.Module, inner: nn.Module, ids: Tensor) -> Tensor:
    with engine_mode(model):
        logits: Tensor = model(ids.to(device_of(inner.get_input_embeddings())), use_cache=False).logits  # type: ignore[operator]
    return logits.float()


def _from_nnsight(model: Any) -> Any:
    given = type(model).__name__
    if getattr(model, "dispatched", True) is False:
        raise ModelStructureError(
            f"{given} has not loaded its weights yet. Create it with dispatch=True, or give the transformers model."
        )
    if getattr(model, "_edits", None):
        raise ModelStructureError(
            f"{given} has edits. They take effect only in nnsight's own runs, so a map would not show them. Remove "
            "them with clear_edits(), or build them into the transformers model."
        )
    return model._module


def adapter_state(model: nn.Module) -> Hashable:
    """Return the state of PEFT's adapters. It changes when an adapter is activated, disabled, merged or scaled."""
    return tuple(
        (
            name,
            tuple(module.active_adapters),
            bool(module.disable_adapters),
            tuple(getattr(module, "merged_adapters", ())),
            tuple((key, float(value)) for key, value in getattr(module, "scaling", {}).items()),
        )
        for name, module in _adapter_modules(model)
    )


def model_notes(model: nn.Module) -> tuple[str, ...]:
    """Return the notes of a result about its model: active adapters, and layers that round activations."""
    notes = []
    active = {
        adapter
        for _, module in _adapter_modules(model)
        if not module.disable_adapters
        for adapter in [*module.active_adapters, *getattr(module, "merged_adapters", ())]
    }
    if active:
        notes.append(f"Traced with PEFT adapters in place: {', '.join(sorted(active))}.")
    if quantizes_activations(model):
        notes.append(
            "The model's layers round activations to 8 bits. The rounding depends on the other rows of the batch, so "
            "another batch_size gives slightly different scores."
        )
    return tuple(notes)


def _adapter_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the names and modules of PEFT's layers, also those that transformers added without a wrapper."""
    for name, module in model.named_modules():
        if hasattr(module, "active_adapters") and hasattr(module, "disable_adapters") and _library(module) == "peft":
            yield name, module
