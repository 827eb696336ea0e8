"""A fingerprint of what a model computes: its modules, hooks, forwards, dtypes, configs and implementations.

It does not include the values of weights and buffers: reading them would take as long as a forward pass.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from causal_tracer.model.wrappers import adapter_state

# The code of these libraries is identified by their versions. Other functions are identified by the object only.
_LIBRARIES = frozenset({"accelerate", "bitsandbytes", "causal_tracer", "kernels", "peft", "torch", "transformers"})
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_pre_hooks_with_kwargs")
# Attributes that do not affect the computation, or are added to the digest separately.
_IGNORED_ATTRIBUTES = frozenset({"training", "_parameters", "_buffers", "_modules", "_is_hf_initialized", *_HOOKS})
_PLAIN = (bool, int, float, str, torch.dtype, torch.Size, type(None))

_serials: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
_next_serial = itertools.count()


@dataclass(frozen=True)
class Fingerprint:
    """The fingerprint of a model.

    Attributes:
        digest: A SHA-256 that changes with everything that can change the model's computation, except weight values.
        portable: Whether an equal model has the same digest in another process. False if the model uses functions
            that are not part of a versioned library, such as a user's hooks.
    """

    digest: str
    portable: bool


def fingerprint(model: nn.Module) -> Fingerprint:
    """Return the fingerprint of a model. The caller must hold `TracedModel.lock`, so that no run edits the model."""
    functions = _Functions()
    digest = hashlib.sha256()
    configs: dict[int, Any] = {}
    for name, module in model.named_modules():
        digest.update(repr((name, *_module(module, functions))).encode())
        config = getattr(module, "config", None)
        if hasattr(config, "to_json_string"):
            configs.setdefault(id(config), config)
    digest.update(repr(adapter_state(model)).encode())
    digest.update(repr([_config(config) for config in configs.values()]).encode())
    digest.update(repr(list(_implementations(configs.values(), functions))).encode())
    return Fingerprint(digest.hexdigest(), functions.portable)


class _Functions:
    """Identifies functions and classes, and records whether all of them come from versioned libraries."""

    def __init__(self) -> None:
        self.portable = True

    def name(self, function: Any) -> Any:
        """Return what identifies a function, class or callable object."""
        if isinstance(function, partial):
            return "partial", self.name(function.func), len(function.args), sorted(function.keywords)
        if (bound := getattr(function, "__func__", None)) is not None:
            return "method", self.name(bound)
        code = getattr(function, "__code__", None)
        if code is None:
            named = function if hasattr(function, "__qualname__") else type(function)
            module = named.__module__
            known: tuple[Any, ...] = (module, named.__qualname__)
        else:
            # Not `__module__`: decorators copy it from the wrapped function.
            module = function.__globals__.get("__name__")
            wrapped = getattr(function, "__wrapped__", None)
            known = (module, code.co_qualname, None if wrapped is None else self.name(wrapped))
        library = str(module).partition(".")[0] in _LIBRARIES
        return known if library else (*known, self._identity(function))

    def _identity(self, thing: Any) -> int:
        self.portable = False
        try:
            return _serials.setdefault(thing, next(_next_serial))
        except TypeError:  # not hashable, or without weak references
            return id(thing)


def _module(module: nn.Module, functions: _Functions) -> Iterator[Any]:
    kind = type(module)
    yield functions.name(kind)
    # A replaced forward does not change the name of the class.
    yield functions.name(kind.forward)
    for hooks in _HOOKS:
        found = getattr(module, hooks)
        if found:
            yield [functions.name(hook) if callable(hook) else hook for hook in found.values()]
    for name, value in vars(module).items():
        if name in _IGNORED_ATTRIBUTES:
            continue
        items = value if isinstance(value, (tuple, list)) else (value,)
        if all(isinstance(item, _PLAIN) for item in items):
            yield name, value
        elif callable(value) and not isinstance(value, Tensor):
            yield name, functions.name(value)
    for group in (module._parameters, module._buffers):
        yield [
            (name, value.dtype, tuple(value.shape), value.device.type, type(value).__qualname__)
            for name, value in group.items()
            if value is not None
        ]


def _config(config: Any) -> Any:
    plain = {name: value for name, value in vars(config).items() if isinstance(value, _PLAIN)}
    return type(config).__qualname__, config.to_json_string(), sorted(plain.items(), key=lambda item: item[0])


def _implementations(configs: Iterable[Any], functions: _Functions) -> Iterator[Any]:
    """Yield the functions registered under the configs' implementation names, since a user may register others."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    registers: Mapping[str, tuple[Any, ...]] = {
        "_attn_implementation": (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS),
        "_experts_implementation": (ALL_EXPERTS_FUNCTIONS,),
    }
    for config in configs:
        for field, known in registers.items():
            name = getattr(config, field, None)
            for register in known:
                if name in register:
                    yield field, name, functions.name(register[name])
