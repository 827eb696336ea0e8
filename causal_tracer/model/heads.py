"""Finding attention heads: the output projection of each attention module. Its input holds the heads side by side."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from causal_tracer.errors import ModelStructureError
from causal_tracer.model.engine_mode import model_lock
from causal_tracer.model.layer_config import SiteNames
from causal_tracer.model.probing import probe_ids, record_calls


def find_head_sites(model: nn.Module, site_names: SiteNames, d_model: int) -> dict[int, tuple[str, int]]:
    """Return, for each layer whose attention has heads, the name of its output projection and the number of heads.

    The projection is the last linear module that runs inside the attention module, or the attention module itself if
    that is linear. Its input must be as wide as all heads of the config together. Layers without such a module (a state
    space, a linear attention with another number of heads) are left out.

    Raises:
        ModelStructureError: No layer has such a projection.
    """
    config: Any = model.config
    text, modules = config.get_text_config(), dict(model.named_modules())
    heads = next((n for name in ("num_attention_heads", "n_head", "num_heads") if (n := getattr(text, name, None))), 0)
    inside = {
        name: layer
        for layer, sites in enumerate(site_names["attention"])
        for site in sites
        for name, module in modules.items()
        if (name == site or name.startswith(f"{site}.")) and _is_linear(module)
        # Convolutions and state spaces have no heads, even if their widths match.
        if _in_attention(modules, name, site_names["hidden"][layer][0])
    }
    with model_lock(model):
        calls = record_calls(model, list(inside), probe_ids(model))
    # Calls are in order, so the last module that runs in a layer overwrites the earlier ones.
    last = {inside[call.name]: (call.name, call.input.shape[-1]) for call in calls if call.input is not None}
    sizes = _head_sizes(text, d_model, heads)
    sites = {layer: (name, heads) for layer, (name, width) in last.items() if heads and width in sizes}
    if not sites:
        raise ModelStructureError(
            f"{type(model).__name__} has no attention module with an output projection that takes {heads} heads side "
            "by side, so its heads cannot be restored separately. Trace kind='attention' instead."
        )
    return dict(sorted(sites.items()))


def _in_attention(modules: Mapping[str, nn.Module], name: str, block: str) -> bool:
    """Check whether a module, or a module around it inside the block, has "attention" in its class name."""
    parts = name.removeprefix(f"{block}.").split(".")
    around = [modules[".".join([block, *parts[:depth]])] for depth in range(1, len(parts) + 1)]
    return any("attention" in type(module).__name__.lower() for module in around)


def _is_linear(module: nn.Module) -> bool:
    """Check whether a module is a linear layer: torch's, a quantized one, or GPT-2's Conv1D."""
    weight = getattr(module, "weight", None)
    if isinstance(module, nn.Linear):
        return True
    if isinstance(weight, Tensor):
        return weight.dim() == 2 and not list(module.children())
    return "linear" in type(module).__name__.lower() and not list(module.children())


def _head_sizes(text: Any, d_model: int, heads: int) -> set[int]:
    """Return the possible widths of all heads together, from the config."""
    each = {value for name in ("head_dim", "v_head_dim", "kv_channels") if (value := getattr(text, name, None))}
    widths = {heads * value for value in each if isinstance(value, int)}
    return widths or ({d_model} if heads and d_model % heads == 0 else set())
