"""Models inside other libraries' wrappers: the transformers model is taken out, or the wrapper is refused.

What `torch.compile(model)` returns holds the model itself, which the engine runs uncompiled.
PEFT's adapters lie inside the transformers model's own modules, so that model alone computes what the wrapper does
(checked by running both). nnsight drives a transformers model from outside. TransformerLens puts modules of its own
into the model's blocks, and those do not take what the sweep does to a block.
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

_LOAD_IT = "AutoModelForCausalLM.from_pretrained(...)"


def unwrapped(model: Any) -> Any:
    """The transformers model in a wrapper of torch.compile, PEFT or nnsight; any other model is handed back as it is.

    Raises:
        ModelStructureError: The model inside does not compute what the wrapper does, its weights are not loaded, or
            TransformerLens has put its own modules in it.
    """
    while (inner := _inside(model)) is not None:
        model = inner
    if isinstance(model, nn.Module) and any(_library(module) == "transformer_lens" for module in model.modules()):
        raise ModelStructureError(
            f"{type(model).__name__} holds modules of TransformerLens, which take the places of the model's own blocks "
            "and do not take edits from outside. Give the transformers model as it was before a bridge was made of it: "
            f"load it anew with {_LOAD_IT}."
        )
    return model


def _inside(model: Any) -> Any:
    """What the wrapper holds, or None where there is no wrapper."""
    if any(cls.__name__ == "OptimizedModule" for cls in type(model).__mro__):
        return model._orig_mod
    library = _library(model)
    if library == "peft":
        return _from_peft(model)
    if library == "nnsight":
        return _from_nnsight(model)
    return None


def _library(model: Any) -> str:
    """The package that a model's class comes from, PEFT's and nnsight's for classes that users derive from theirs."""
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
                "tokens or by the whole prompt, so that no run of the model alone has it. Adapters inside modules "
                "(LoRA and the like) can be traced; without the adapter, give model.get_base_model()."
            )
    inner = model.get_base_model()
    ids = probe_ids(inner)
    found, expected = _logits(inner, inner, ids), _logits(model, inner, ids)
    if not torch.allclose(found, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max())):
        raise ModelStructureError(
            f"{given} computes other logits than the {type(inner).__name__} inside it, so that no run of the model "
            "alone has what the adapter does. Merge it first: model.merge_and_unload()."
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
            f"{given} has not loaded its weights yet. Make it with dispatch=True, or give the transformers model."
        )
    if getattr(model, "_edits", None):
        raise ModelStructureError(
            f"{given} has edits of its own, which take effect only in nnsight's own runs, so a map would not show "
            "them. Take them away with clear_edits(), or build them into the transformers model."
        )
    return model._module


def adapter_state(model: nn.Module) -> Hashable:
    """What decides which adapters take part in a run: it changes when one is chosen, switched off, merged or scaled."""
    return tuple(
        (
            name,
            tuple(_as_list(module.active_adapters)),
            bool(module.disable_adapters),
            tuple(getattr(module, "merged_adapters", ())),
            tuple((key, float(value)) for key, value in getattr(module, "scaling", {}).items()),
        )
        for name, module in _adapter_modules(model)
    )


def model_notes(model: nn.Module) -> tuple[str, ...]:
    """What a reader of a result has to know about the model beyond its name: adapters in it, weights of few bits."""
    notes = []
    active = {
        adapter
        for _, module in _adapter_modules(model)
        if not module.disable_adapters
        for adapter in [*_as_list(module.active_adapters), *getattr(module, "merged_adapters", ())]
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
    """PEFT's layers, also where transformers put them in without a wrapper."""
    for name, module in model.named_modules():
        if hasattr(module, "active_adapters") and hasattr(module, "disable_adapters") and _library(module) == "peft":
            yield name, module


def _as_list(names: Any) -> list[str]:
    return [names] if isinstance(names, str) else list(names)
