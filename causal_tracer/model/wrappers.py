"""Taking the transformers model out of another library's wrapper, or refusing the wrapper.

`torch.compile(model)` wraps the model itself, which the engine runs uncompiled. PEFT's adapters lie inside the
transformers model's own modules, so the model alone computes what the wrapper does (checked by running both). nnsight
drives a transformers model from outside. TransformerLens replaces modules inside the blocks by its own, which do not
support the engine's edits.
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
    """Return the transformers model in a wrapper of torch.compile, PEFT or nnsight; any other model as it is.

    Raises:
        ModelStructureError: The model inside does not compute what the wrapper does, its weights are not loaded, or
            TransformerLens has put its own modules in it.
    """
    while (inner := _inside(model)) is not None:
        model = inner
    if isinstance(model, nn.Module) and any(_library(module) == "transformer_lens" for module in model.modules()):
        raise ModelStructureError(
            f"{type(model).__name__} contains modules of TransformerLens, which replace the model's own blocks and do "
            "not support edits. Load the transformers model again, without a bridge, with "
            "AutoModelForCausalLM.from_pretrained(...)."
        )
    return model


def _inside(model: Any) -> Any:
    """Return the model in a wrapper, or None where there is no wrapper."""
    if any(cls.__name__ == "OptimizedModule" for cls in type(model).__mro__):
        return model._orig_mod
    library = _library(model)
    if library == "peft":
        return _from_peft(model)
    if library == "nnsight":
        return _from_nnsight(model)
    return None


def _library(model: Any) -> str:
    """Return which of the known packages a model's class, or one that it derives from, comes from; "" for none."""
    packages = {cls.__module__.partition(".")[0] for cls in type(model).__mro__}
    return next((name for name in ("peft", "nnsight", "transformer_lens") if name in packages), "")


def _from_peft(model: Any) -> Any:
    given = type(model).__name__
    if not hasattr(model, "get_base_model"):
        # A tuner such as LoraModel, the layer between PeftModel and the transformers model.
        return model.model
    for name, config in model.peft_config.items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if config.is_prompt_learning or kind in ("POLY", "XLORA") or getattr(config, "alora_invocation_tokens", None):
            raise ModelStructureError(
                f"{given} has the adapter {name!r} ({kind}), which works outside the model's own modules, by virtual "
                "tokens or by the whole prompt, so it cannot be traced. Use an adapter inside modules, such as LoRA, "
                "or give model.get_base_model() to trace without it."
            )
    inner = model.get_base_model()
    ids = probe_ids(inner)
    found, expected = _logits(inner, inner, ids), _logits(model, inner, ids)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ModelStructureError(
            f"{given} computes other logits than the {type(inner).__name__} inside it, so its adapter cannot be "
            "traced. Merge it first: model.merge_and_unload()."
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
            f"{given} has edits, which take effect only in nnsight's own runs, so a map would not show them. Remove "
            "them with clear_edits(), or build them into the transformers model."
        )
    return model._module


def adapter_state(model: nn.Module) -> Hashable:
    """Return the state of the adapters: it changes when one is chosen, switched off, merged or scaled."""
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
    """Return the notes that a result needs about the model: its adapters, and layers that round activations."""
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
            "Its layers round activations to 8 bits, which depends a little on the runs that share a batch: another "
            "batch_size gives slightly other scores."
        )
    return tuple(notes)


def _adapter_modules(model: nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield PEFT's layers, also where transformers added them without a wrapper."""
    for name, module in model.named_modules():
        if hasattr(module, "active_adapters") and hasattr(module, "disable_adapters") and _library(module) == "peft":
            yield name, module
