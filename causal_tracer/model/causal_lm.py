"""From what a user holds to a causal LM: wrappers come off, base models get their head back, others are refused."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from causal_tracer.errors import ModelStructureError
from causal_tracer.model.engine_mode import loading_hooks
from causal_tracer.model.quantization import require_separate_tokens
from causal_tracer.model.wrappers import unwrapped


def as_causal_lm(model: Any) -> Any:
    """The model itself if it has a language-model head; else its base wrapped in the head its config describes.

    Wrappers of torch.compile, PEFT and nnsight come off first. A base model (from `AutoModel`) carries no head. Where
    the config ties head and embedding, the head's weights are the embedding's, so nothing is missing: the returned
    causal LM shares the given model's weights.

    Raises:
        ModelStructureError: The model is not a transformers model, or is an encoder-decoder; its head is missing and
            not tied to its embedding; its wrapper does more than the model inside; its weights are not loaded, or
            are quantized in a way that ties tokens together.
    """
    model = unwrapped(model)
    if not isinstance(model, nn.Module):
        raise ModelStructureError(
            f"The model must be a torch module (given: {type(model).__name__}). Give a decoder-only causal LM such as "
            "AutoModelForCausalLM.from_pretrained(...) returns."
        )
    require_separate_tokens(model)
    require_weights(model)
    config: Any = getattr(model, "config", None)
    if config is None or not hasattr(config, "get_text_config"):
        raise ModelStructureError(
            f"{type(model).__name__} has no transformers config. Give a decoder-only causal LM such as "
            "AutoModelForCausalLM.from_pretrained(...) returns."
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ModelStructureError(
            f"{type(model).__name__} is an encoder-decoder ({config.model_type}). Causal tracing as done here needs a "
            "decoder-only causal LM."
        )
    if _head_of(model) is not None:
        return model
    return _with_tied_head(model, config)


def require_weights(model: nn.Module) -> None:
    """Check that every parameter and buffer has values, or gets them from accelerate when it is needed.

    Raises:
        ModelStructureError: Some are placeholders on the `meta` device that nothing loads.
    """
    missing = list(_never_loaded(model))
    if missing:
        named = ", ".join(missing[:4]) + (", …" if len(missing) > 4 else "")
        raise ModelStructureError(
            f"{len(missing)} parameters and buffers of {type(model).__name__} are on the meta device and have no "
            f"values ({named}), and no hook of accelerate loads them. Load the model's weights first, with "
            "from_pretrained(...) or load_state_dict(..., assign=True)."
        )


def _never_loaded(module: nn.Module, prefix: str = "", loaded_above: bool = False) -> Iterator[str]:
    hooks = [hook for hook in loading_hooks(module) if hook.offload]
    if not (loaded_above or hooks):
        tensors = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        yield from (prefix + name for name, tensor in tensors if tensor.device.type == "meta")
    loaded_below = loaded_above or any(hook.place_submodules for hook in hooks)
    for name, child in module.named_children():
        yield from _never_loaded(child, f"{prefix}{name}.", loaded_below)


def _head_of(model: nn.Module) -> nn.Module | None:
    getter = getattr(model, "get_output_embeddings", None)
    head: nn.Module | None = getter() if getter else None
    return head


def _with_tied_head(model: nn.Module, config: Any) -> nn.Module:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    given = type(model).__name__
    advice = (
        "Load it with its head instead: "
        f"model = AutoModelForCausalLM.from_pretrained({getattr(config, '_name_or_path', '') or '...'!r})"
    )
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise ModelStructureError(
            f"{given} has no language-model head, and transformers knows no causal LM for "
            f"{config.model_type!r}. {advice}"
        )
    if not getattr(config.get_text_config(), "tie_word_embeddings", False):
        raise ModelStructureError(
            f"{given} has no language-model head, and its config does not tie one to the embedding, so the head's "
            f"weights are not there. {advice}"
        )
    with torch.device("meta"):
        causal_lm: nn.Module = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)
    prefix: str = causal_lm.base_model_prefix  # type: ignore[assignment]
    if not isinstance(model, type(getattr(causal_lm, prefix))):
        raise ModelStructureError(
            f"{given} has no language-model head and is not the base model of {type(causal_lm).__name__}. {advice}"
        )
    setattr(causal_lm, prefix, model)
    causal_lm.tie_weights()  # type: ignore[operator]
    missing = [name for name, parameter in causal_lm.named_parameters() if parameter.device.type == "meta"]
    if missing and not hasattr(model, "hf_device_map"):
        raise ModelStructureError(
            f"{given} has no language-model head, and {', '.join(missing)} cannot be had from its embedding. {advice}"
        )
    return causal_lm
