"""`LayerConfig`: the user's names for the modules to trace, and how they are resolved in a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from causal_tracer.arguments import function, instance, text
from causal_tracer.errors import ModelStructureError
from causal_tracer.request.sites import LayerKind

SiteNames = Mapping[LayerKind, tuple[tuple[str, ...], ...]]
"""For each kind and layer, the names of the modules restored together: usually one, none if the layer has no such
module."""

LayerMatcher = str | Callable[[nn.Module, int], str]
"""A template such as "transformer.h.{num}.mlp", or a function from (model, layer number) to a module's name."""


@dataclass(frozen=True)
class LayerConfig:
    """The names of the modules to trace, as `model.named_modules()` spells them.

    Names relative to the base model work too ("h.{num}" for "transformer.h.{num}").
    """

    hidden_layers_matcher: LayerMatcher
    attention_layers_matcher: LayerMatcher
    mlp_layers_matcher: LayerMatcher
    embedding_layer: str


GPT2_LAYER_CONFIG = LayerConfig(
    hidden_layers_matcher="transformer.h.{num}",
    attention_layers_matcher="transformer.h.{num}.attn",
    mlp_layers_matcher="transformer.h.{num}.mlp",
    embedding_layer="transformer.wte",
)
"""The module names of GPT-2."""

LLAMA_LAYER_CONFIG = LayerConfig(
    hidden_layers_matcher="model.layers.{num}",
    attention_layers_matcher="model.layers.{num}.self_attn",
    mlp_layers_matcher="model.layers.{num}.mlp",
    embedding_layer="model.embed_tokens",
)
"""The module names of Llama and of many models with the same structure."""


def named_sites(model: nn.Module, layer_config: LayerConfig) -> tuple[str, SiteNames]:
    """Resolve a `LayerConfig` to the full names of the embedding and of each kind's modules.

    Raises:
        ModelStructureError: The model has no such embedding, no such block 0, or no module of a kind in any layer; or
            a matcher is invalid.
    """
    instance("layer_config", layer_config, LayerConfig)
    text("embedding_layer of a LayerConfig", layer_config.embedding_layer)
    names = {name for name, _ in model.named_modules() if name}
    prefix = getattr(model, "base_model_prefix", "")

    def full_name(name: str) -> str | None:
        # PEFT's wrapper puts "base_model.model." before every name.
        own = str(name).removeprefix("base_model.model.")
        return next((n for n in (name, f"{prefix}.{name}", own) if n in names), None)

    def missing(what: str, name: str, where: str = "") -> ModelStructureError:
        return ModelStructureError(
            f"LayerConfig names the {what} {name!r}, but {type(model).__name__} has no module of that name{where}. "
            "Use a name that model.named_modules() lists."
        )

    embedding_name = full_name(layer_config.embedding_layer)
    if embedding_name is None:
        raise missing("embedding", layer_config.embedding_layer)
    blocks: list[str] = []
    while (name := full_name(_name(layer_config, model, "hidden", len(blocks)))) is not None and name not in blocks:
        blocks.append(name)
    if not blocks:
        raise missing("block of layer 0", _name(layer_config, model, "hidden", 0))
    sites: dict[LayerKind, tuple[tuple[str, ...], ...]] = {"hidden": tuple((name,) for name in blocks)}
    for kind in ("mlp", "attention"):
        found = [full_name(_name(layer_config, model, kind, layer)) for layer in range(len(blocks))]
        if not any(found):
            raise missing(f"{kind} of layer 0", _name(layer_config, model, kind, 0), " in any layer")
        sites[kind] = tuple((name,) if name else () for name in found)
    return embedding_name, sites


def _name(layer_config: LayerConfig, model: nn.Module, kind: LayerKind, layer: int) -> str:
    """Return a matcher's name for the module of a layer, or "" if it has none."""
    matcher: LayerMatcher = getattr(layer_config, f"{kind}_layers_matcher")
    if isinstance(matcher, str):
        if "{num}" not in matcher:
            raise ModelStructureError(
                f"The {kind} matcher {matcher!r} does not contain '{{num}}'. Write '{{num}}' in place of the layer "
                "number, as in 'transformer.h.{num}.mlp', or give a function (model, number) -> name."
            )
        return matcher.replace("{num}", str(layer))
    function(f"The {kind} matcher of a LayerConfig", matcher)
    try:
        name = matcher(model, layer)
    except (IndexError, KeyError):
        return ""  # a matcher over a list of names, past its end
    except Exception as error:
        raise ModelStructureError(
            f"The {kind} matcher of the LayerConfig failed for layer {layer}: {type(error).__name__}: {error}"
        ) from error
    return name if isinstance(name, str) else ""


def as_matcher(names: tuple[tuple[str, ...], ...]) -> LayerMatcher:
    """Return a matcher for the first name of each layer: a template if one fits all layers, else a function."""
    template = next((layer[0] for layer in names if layer), "").split(".")
    first = next((number for number, layer in enumerate(names) if layer), 0)
    for place, part in enumerate(template):
        if part == str(first):
            candidate = ".".join([*template[:place], "{num}", *template[place + 1 :]])
            if all(layer == (candidate.replace("{num}", str(n)),) for n, layer in enumerate(names) if layer):
                return candidate
    return _ListedNames(names)


@dataclass(frozen=True)
class _ListedNames:
    """A matcher that looks up a layer's name. Unlike a lambda, it can be pickled."""

    names: tuple[tuple[str, ...], ...]

    def __call__(self, _model: nn.Module, layer: int) -> str:
        return self.names[layer][0] if layer < len(self.names) and self.names[layer] else ""
