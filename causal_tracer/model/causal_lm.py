"""Getting a causal LM from a user's model: wrappers are removed, and a base model gets its tied head."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from causal_tracer.errors import ModelStructureError
from causal_tracer.model.engine_mode import loading_hooks
from causal_tracer.model.quantization import refuse_dynamic_quantization
from causal_tracer.model.wrappers import unwrapped


def as_causal_lm(model: Any) -> Any:
    """Return the model itself if it has a language-model head, else a causal LM around the given base model.

    Wrappers of torch.compile, PEFT and nnsight are removed first. A base model (from `AutoModel`) has no head. If its
    config ties the head to the embedding, no weights are missing: the returned causal LM shares the given weights.

    Raises:
        ModelStructureError: The model is not a transformers model, or is an encoder-decoder; its head is missing and
            not tied to its embedding; its wrapper changes what it computes; its weights are not loaded, or are
            dynamically quantized, so that tokens affect each other's rounding.
    """
    model = unwrapped(model)
    given = type(model).__name__
    advice = "Give a decoder-only causal LM, as AutoModelForCausalLM.from_pretrained(...) returns."
    if not isinstance(model, nn.Module):
        raise ModelStructureError(f"The model must be a torch module (given: {given}). {advice}")
    refuse_dynamic_quantization(model)
    require_weights(model)
    config: Any = getattr(model, "config", None)
    if not hasattr(config, "get_text_config"):
        raise ModelStructureError(f"{given} has no transformers config. {advice}")
    if getattr(config, "is_encoder_decoder", False):
        raise ModelStructureError(f"{given} is an encoder-decoder ({config.model_type}). {advice}")
    head = getattr(model, "get_output_embeddings", lambda: None)()
    return _with_tied_head(model, config) if head is None else model


def require_weights(model: nn.Module) -> None:
    """Check that every parameter and buffer has values, or is loaded by accelerate at each call.

    Raises:
        ModelStructureError: Some are on the `meta` device, and no hook of accelerate loads them.
    """
    missing = list(_unloaded_tensors(model))
    if missing:
        named = ", ".join(missing[:4]) + (", …" if len(missing) > 4 else "")
        raise ModelStructureError(
            f"{len(missing)} parameters and buffers of {type(model).__name__} are on the meta device and have no "
            f"values ({named}), and no hook of accelerate loads them. Load the model's weights first, with "
            "from_pretrained(...) or load_state_dict(..., assign=True)."
        )


def _unloaded_tensors(module: nn.Module, prefix: str = "", loaded_above: bool = False) -> Iterator[str]:
    hooks = [hook for hook in loading_hooks(module) if hook.offload]
    if not (loaded_above or hooks):
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        yield from (prefix + name for name, tensor in tensors if tensor.device.type == "meta")
    loaded_below = loaded_above or any(hook.place_submodules for hook in hooks)
    for name, child in module.named_children():
        yield from _unloaded_tensors(child, f"{prefix}{name}.", loaded_below)


def _with_tied_head(model: nn.Module, config: Any) -> nn.Module:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    given = type(model).__name__

    def refused(reason: str) -> ModelStructureError:
        source = getattr(config, "_name_or_path", "") or "..."
        return ModelStructureError(
            f"{given} has no language-model head, and {reason}. Load the model with its head: "
            f"model = AutoModelForCausalLM.from_pretrained({source!r})"
        )

    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise refused(f"transformers has no causal LM for {config.model_type!r}")
    if not getattr(config.get_text_config(), "tie_word_embeddings", False):
        raise refused("its config does not tie the head to the embedding, so the head's weights are missing")
    with torch.device("meta"):
        causal_lm: nn.Module = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    prefix: str = causal_lm.base_model_prefix  # type: ignore[assignment]
    if not isinstance(model, type(getattr(causal_lm, prefix))):
        raise refused(f"it is not the base model of {type(causal_lm).__name__}")
    setattr(causal_lm, prefix, model)
    causal_lm.tie_weights()  # type: ignore[operator]
    missing = [name for name, parameter in causal_lm.named_parameters() if parameter.device.type == "meta"]
    if missing and not hasattr(model, "hf_device_map"):
        raise refused(f"{', '.join(missing)} cannot be taken from its embedding")
    return causal_lm
