"""Detecting quantized weights of any library: their bits, and whether activations are quantized as well."""

from __future__ import annotations

import math
import re
from typing import Any

import torch
from torch import Tensor, nn

from causal_tracer.errors import ModelStructureError

_MODULE_BITS = ("bits", "w_bit", "wbits", "nbits", "num_bits")
_CLASS_BITS = {"Linear4bit": 4, "Linear8bitLt": 8}  # bitsandbytes; its int8 layers look like plain ones until moved
_PACKED = ("qweight", "W_q", "weight_packed", "packed_weight", "weight")
_DIGITS = re.compile(r"(?:int|float|fp|nf)(\d+)", re.IGNORECASE)
_CONFIG_BITS = ("bits", "w_bit", "nbits", "num_bits", "weights_dtype", "weights", "quant_type", "quant_method")
_METHOD_BITS = {"eetq": 8, "bitnet": 2}


def weight_bits(model: nn.Module) -> tuple[int, ...]:
    """Return the bit widths (8 or fewer) of a model's quantized weights, ascending; empty if there are none.

    They are read from the modules and their tensors. If these do not state them, they are read from the model's
    `quantization_config`.
    """
    found = {_bits_of_module(module) for module in model.modules()} - {None}
    if not found and any(_is_foreign_linear(module) for module in model.modules()):
        found = {_bits_of_config(getattr(getattr(model, "config", None), "quantization_config", None))}
    return tuple(sorted(bits for bits in found if bits is not None))


def quantizes_activations(model: nn.Module) -> bool:
    """Check whether layers quantize their inputs, so that a row's scores depend slightly on the rows in its batch."""
    return any(
        type(module).__name__ == "Linear8bitLt"
        or getattr(module, "activation_qtype", None) is not None  # quanto
        or getattr(getattr(module, "weight", None), "act_quant_kwargs", None) is not None  # torchao
        for module in model.modules()
    )


def refuse_dynamic_quantization(model: nn.Module) -> None:
    """Refuse a model with torch's dynamic quantization, where a token's activations depend on the whole batch.

    Raises:
        ModelStructureError: The model was created by `torch.ao.quantization.quantize_dynamic`.
    """
    for name, module in model.named_modules():
        if type(module).__module__.startswith("torch.ao.nn.quantized.dynamic"):
            raise ModelStructureError(
                f"Module {name!r} of {type(model).__name__} is dynamically quantized by torch: it rounds all rows and "
                "tokens of a batch with one scale, so restoring one token changes all others. Trace the model without "
                "quantize_dynamic, or quantize only its weights (with torchao, quanto or bitsandbytes)."
            )


def has_matrix(module: nn.Module) -> bool:
    """Check whether a module, or one inside it, has weights of two or more dimensions, quantized or not."""
    tensors = (*module.parameters(), *module.buffers())
    return any(tensor.dim() > 1 for tensor in tensors) or any(map(_is_foreign_linear, module.modules()))


def _bits_of_module(module: nn.Module) -> int | None:
    named = [_CLASS_BITS[cls.__name__] for cls in type(module).__mro__ if cls.__name__ in _CLASS_BITS]
    if named:
        return named[0]
    kept = [getattr(module, name, None) for name in _PACKED]
    tensors = [tensor for tensor in kept if isinstance(tensor, Tensor) and tensor.dim() > 1]
    bits = _first_bits(*map(_bits_of_tensor, tensors))
    if bits is None and all(tensor.is_floating_point() for tensor in tensors):
        return None
    # Several small numbers may be packed into one byte or word. Then the module states their bits.
    meta = getattr(module, "meta", None)
    scheme = getattr(getattr(module, "quantization_scheme", None), "weights", None)
    return _first_bits(
        *(getattr(module, name, None) for name in _MODULE_BITS),
        meta.get("nbits") if isinstance(meta, dict) else None,
        getattr(scheme, "num_bits", None),
        bits,
    )


def _bits_of_tensor(tensor: Tensor) -> int | None:
    quanto = getattr(getattr(tensor, "qtype", None), "bits", None)
    target = getattr(tensor, "target_dtype", None)  # torchao
    lowest, highest = getattr(tensor, "quant_min", None), getattr(tensor, "quant_max", None)
    if isinstance(target, torch.dtype):
        return _first_bits(quanto, _bits_in_name(target))
    if isinstance(lowest, int) and isinstance(highest, int):
        return _first_bits(quanto, math.ceil(math.log2(highest - lowest + 1)))
    # A subclass has the bits in its name (Int4Tensor, Float8Tensor), a plain tensor in its dtype.
    plain = type(tensor) in (Tensor, nn.Parameter)
    return _first_bits(quanto, _bits_in_name(tensor.dtype if plain else type(tensor).__name__))


def _is_foreign_linear(module: nn.Module) -> bool:
    """Check whether a module is a linear layer of a quantization library, without plain floating-point weights."""
    if isinstance(module, nn.Linear) or "linear" not in type(module).__name__.lower():
        return False
    weight = getattr(module, "weight", None)
    return not (isinstance(weight, Tensor) and weight.is_floating_point()) and not list(module.children())


def _bits_of_config(config: Any) -> int | None:
    values = config if isinstance(config, dict) else vars(config) if hasattr(config, "__dict__") else {}

    def stated(name: str) -> Any:
        value = values.get(name)
        value = getattr(value, "value", value)
        if isinstance(value, str):
            return _METHOD_BITS.get(value.lower(), _bits_in_name(value))
        return value if value is None or isinstance(value, int) else _bits_in_name(type(value).__name__)

    loaded = (bits for bits in (4, 8) if values.get(f"load_in_{bits}bit") or values.get(f"_load_in_{bits}bit"))
    return _first_bits(*loaded, *map(stated, _CONFIG_BITS))


def _bits_in_name(named: torch.dtype | str) -> int | None:
    found = _DIGITS.search(str(named))
    return int(found[1]) if found else None


def _first_bits(*stated: Any) -> int | None:
    """Return the first value that is an integer from 1 to 8."""
    numbers = (bits for bits in stated if isinstance(bits, int) and not isinstance(bits, bool))
    return next((bits for bits in numbers if 1 <= bits <= 8), None)
