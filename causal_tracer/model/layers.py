"""Where a model keeps its embedding, blocks, attention and MLP: named by the user, or found by structure."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from causal_tracer.arguments import function, instance, text
from causal_tracer.errors import ModelStructureError
from causal_tracer.model.engine_mode import model_lock
from causal_tracer.model.probing import device_of, logits_to_keep_trims, tokens_meet_again
from causal_tracer.model.quantization import weight_bits
from causal_tracer.model.torch_state import in_standard_torch_state
from causal_tracer.request.sites import LayerKind

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

    def matcher(self, kind: LayerKind) -> LayerMatcher:
        """The matcher of one kind."""
        return {
            "hidden": self.hidden_layers_matcher,
            "mlp": self.mlp_layers_matcher,
            "attention": self.attention_layers_matcher,
        }[kind]


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
"""The module names of Llama and many models made like it."""

SiteNames = Mapping[LayerKind, tuple[tuple[str, ...], ...]]
"""For each kind and layer, the modules restored together: usually one; none where a layer lacks the kind."""


@dataclass(frozen=True, eq=False)
class TracedModel:
    """A causal language model whose parts are known: what every run of the engine takes.

    Attributes:
        model: The causal LM. It is never changed; hooks are placed and taken away around each run.
        embedding_name: The module whose output [rows, tokens, d_model] is corrupted.
        site_names: The modules of each kind and layer.
        d_model: Width of the residual stream.
        embedding_width: Width of the embedding's output; narrower than the stream where a model projects it.
        vocab_size: Number of logits.
        context_length: The longest prompt that the model takes, or None where it has no limit.
        stacked_streams: Whether blocks hand on several streams, [n, rows, tokens, d_model].
        tokens_meet_again: Whether inside the last block, what attention or MLP gives at a token is seen at later ones.
        logits_to_keep_trims: Whether the model's `logits_to_keep` also drops tokens from its later blocks (Gemma 4).
    """

    model: nn.Module
    embedding_name: str
    site_names: SiteNames
    d_model: int
    embedding_width: int
    vocab_size: int
    context_length: int | None
    stacked_streams: bool = False
    tokens_meet_again: bool = True
    logits_to_keep_trims: bool = False

    @property
    def n_layers(self) -> int:
        """Number of blocks."""
        return len(self.site_names["hidden"])

    @cached_property
    def modules(self) -> dict[str, nn.Module]:
        """Every named module of the model."""
        return dict(self.model.named_modules())

    @property
    def embedding(self) -> nn.Module:
        """The token embedding."""
        return self.modules[self.embedding_name]

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks, in order."""
        return [self.modules[names[0]] for names in self.site_names["hidden"]]

    @property
    def head(self) -> nn.Module:
        """The language-model head."""
        head: nn.Module = self.model.get_output_embeddings()  # type: ignore[operator]
        return head

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the model's parameters; weights kept in fewer bits do not count."""
        dtypes = (parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point())
        return next((dtype for dtype in dtypes if dtype.itemsize > 1), torch.float32)

    @property
    def dtype_name(self) -> str:
        """What results call the dtype, with the bits of the weights where those are fewer."""
        name = str(self.dtype).removeprefix("torch.")
        if quantisation := getattr(self.model.config, "gguf_quantisation", None):
            name += f" from GGUF {quantisation}"
        bits = weight_bits(self.model)
        return f"{name} with {' and '.join(f'{size}-bit' for size in bits)} weights" if bits else name

    @property
    def input_device(self) -> torch.device:
        """Where token ids go."""
        return device_of(self.embedding)

    @cached_property
    def head_sites(self) -> dict[int, tuple[str, int]]:
        """For each layer whose attention has heads: its output projection, and the number of heads in what that takes.

        Found with a short run when first asked for.
        """
        from causal_tracer.model.heads import find_head_sites

        return find_head_sites(self)

    @property
    def offloaded(self) -> bool:
        """Whether weights are elsewhere between calls, as accelerate's offloading does: each pass loads them anew."""
        return any(parameter.device.type == "meta" for parameter in self.model.parameters())

    @property
    def lock(self) -> threading.RLock:
        """The one lock of this model, shared by all who trace it."""
        return model_lock(self.model)

    def missing_layers(self, kind: LayerKind) -> tuple[int, ...]:
        """The layers that have no module of this kind."""
        return tuple(layer for layer, names in enumerate(self.site_names[kind]) if not names)

    @property
    def layer_config(self) -> LayerConfig:
        """The same names in the form that a user would write them."""
        return LayerConfig(
            hidden_layers_matcher=_as_matcher(self.site_names["hidden"]),
            attention_layers_matcher=_as_matcher(self.site_names["attention"]),
            mlp_layers_matcher=_as_matcher(self.site_names["mlp"]),
            embedding_layer=self.embedding_name,
        )


@in_standard_torch_state
def trace_model(model: nn.Module, layer_config: LayerConfig | None = None) -> TracedModel:
    """Find the parts of a causal LM, or take them from `layer_config`, and check them with one short run.

    Raises:
        ModelStructureError: The model is an encoder-decoder or has no LM head; its parts cannot be found; or the
            modules named in `layer_config` do not exist or do not return [rows, tokens, d_model].
    """
    from causal_tracer.model.causal_lm import as_causal_lm
    from causal_tracer.model.discovery import discover_sites
    from causal_tracer.model.verification import verify_sites

    model = as_causal_lm(model)
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    with model_lock(model):
        if layer_config is None:
            embedding_name, site_names = discover_sites(model)
        else:
            embedding_name, site_names = _resolve(model, layer_config)
        d_model, embedding_width, stacked = verify_sites(model, embedding_name, site_names)
        last_block = site_names["hidden"][-1][0]
        inside = [name for kind in ("attention", "mlp") for name in site_names[kind][-1]]
        meet_again = tokens_meet_again(model, last_block, inside)
        trims = logits_to_keep_trims(model, last_block)
    context = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    return TracedModel(
        model=model,
        embedding_name=embedding_name,
        site_names=site_names,
        d_model=d_model,
        embedding_width=embedding_width,
        vocab_size=int(config.vocab_size),
        context_length=int(context) if context and context > 0 else None,
        stacked_streams=stacked,
        tokens_meet_again=meet_again,
        logits_to_keep_trims=trims,
    )


def _resolve(model: nn.Module, layer_config: LayerConfig) -> tuple[str, SiteNames]:
    instance("layer_config", layer_config, LayerConfig)
    text("embedding_layer of a LayerConfig", layer_config.embedding_layer)
    names = {name for name, _ in model.named_modules() if name}
    prefix = getattr(model, "base_model_prefix", "")

    def resolve(name: str) -> str | None:
        # "base_model.model." stands before every name in a model that PEFT has wrapped.
        own = str(name).removeprefix("base_model.model.")
        return next((n for n in (name, f"{prefix}.{name}", own) if n in names), None)

    def name_of(kind: LayerKind, layer: int) -> str:
        matcher = layer_config.matcher(kind)
        if not isinstance(matcher, str):
            return _name_from_function(matcher, model, kind, layer)
        if "{num}" not in matcher:
            raise ModelStructureError(
                f"The {kind} matcher {matcher!r} has no '{{num}}' in it. Write the layer number's place as "
                "'{num}', as in 'transformer.h.{num}.mlp', or give a function (model, number) -> name."
            )
        return matcher.replace("{num}", str(layer))

    embedding_name = resolve(layer_config.embedding_layer)
    if embedding_name is None:
        raise ModelStructureError(
            f"LayerConfig names the embedding {layer_config.embedding_layer!r}, and {type(model).__name__} has no "
            "module of that name. model.named_modules() lists the names there are."
        )
    blocks: list[str] = []
    while (name := resolve(name_of("hidden", len(blocks)))) is not None and name not in blocks:
        blocks.append(name)
    if not blocks:
        raise ModelStructureError(
            f"LayerConfig names block 0 {name_of('hidden', 0)!r}, and {type(model).__name__} has no module of that "
            "name. model.named_modules() lists the names there are."
        )
    sites: dict[LayerKind, tuple[tuple[str, ...], ...]] = {"hidden": tuple((name,) for name in blocks)}
    for kind in ("mlp", "attention"):
        found = [resolve(name_of(kind, layer)) for layer in range(len(blocks))]
        if not any(found):
            raise ModelStructureError(
                f"LayerConfig names the {kind} of layer 0 {name_of(kind, 0)!r}, and {type(model).__name__} has no "
                "module of that name in any layer. model.named_modules() lists the names there are."
            )
        sites[kind] = tuple((name,) if name else () for name in found)
    return embedding_name, sites


def _name_from_function(matcher: Callable[[nn.Module, int], str], model: nn.Module, kind: str, layer: int) -> str:
    """What a user's function says that a module is called; "" where it knows no such layer."""
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


def _as_matcher(names: tuple[tuple[str, ...], ...]) -> LayerMatcher:
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
    """A matcher that looks a layer up; unlike a lambda it pickles."""

    names: tuple[tuple[str, ...], ...]

    def __call__(self, _model: nn.Module, layer: int) -> str:
        return self.names[layer][0] if layer < len(self.names) and self.names[layer] else ""
