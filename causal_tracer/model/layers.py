"""`TracedModel`: a causal LM whose embedding, blocks, attention and MLP are known, named by the user or found."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import nn

from causal_tracer.model.attention_masks import MaskedModule
from causal_tracer.model.causal_lm import as_causal_lm
from causal_tracer.model.discovery import discover_sites
from causal_tracer.model.engine_mode import model_lock
from causal_tracer.model.final_norm import find_final_norm
from causal_tracer.model.heads import find_head_sites
from causal_tracer.model.knockout import find_knockout_sites
from causal_tracer.model.layer_config import LayerConfig, SiteNames, as_matcher, named_sites
from causal_tracer.model.probing import device_of, logits_to_keep_drops_tokens, outputs_reach_later_tokens
from causal_tracer.model.quantization import weight_bits
from causal_tracer.model.torch_state import in_standard_torch_state
from causal_tracer.model.verification import verify_sites
from causal_tracer.request.sites import SITES, SiteName, require_kind

INPUT = " input"
"""Suffix of a module's name in recorded activations: the module's input was recorded, not its output."""


@dataclass(frozen=True, eq=False)
class TracedModel:
    """A causal language model and the names of its parts.

    Attributes:
        model: The causal LM. It is never changed: hooks are added for each run and removed after it.
        embedding_name: The module whose output [rows, tokens, d_model] is corrupted.
        site_names: The modules of each kind and layer.
        d_model: Width of the residual stream.
        embedding_width: Width of the embedding's output. Some models project a narrower embedding to the stream.
        vocab_size: Number of logits.
        context_length: The longest prompt that the model takes, in tokens, or None for no limit.
        stacked_streams: Whether blocks take and return several streams, [n, rows, tokens, d_model].
        outputs_reach_later_tokens: Whether attention's or the MLP's output at a token affects later tokens within the
            last block.
        logits_to_keep_drops_tokens: Whether the model's `logits_to_keep` also drops tokens from its later blocks
            (Gemma 4).
    """

    model: nn.Module
    embedding_name: str
    site_names: SiteNames
    d_model: int
    embedding_width: int
    vocab_size: int
    context_length: int | None
    stacked_streams: bool = False
    outputs_reach_later_tokens: bool = True
    logits_to_keep_drops_tokens: bool = False

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
        """The dtype of the model's parameters, ignoring quantized weights."""
        dtypes = (parameter.dtype for parameter in self.model.parameters() if parameter.is_floating_point())
        return next((dtype for dtype in dtypes if dtype.itemsize > 1), torch.float32)

    @property
    def dtype_name(self) -> str:
        """The dtype as written in results, with the bits of quantized weights."""
        name = str(self.dtype).removeprefix("torch.")
        if quantisation := getattr(self.model.config, "gguf_quantisation", None):
            name += f" from GGUF {quantisation}"
        bits = weight_bits(self.model)
        return f"{name} with {' and '.join(f'{size}-bit' for size in bits)} weights" if bits else name

    @property
    def input_device(self) -> torch.device:
        """The device that token ids must be on."""
        return device_of(self.embedding)

    @cached_property
    def head_sites(self) -> dict[int, tuple[str, int]]:
        """For each layer whose attention has heads: the name of its output projection, and the number of heads.

        The projection's input holds the heads side by side. Found by a short run at first use.
        """
        return find_head_sites(self.model, self.site_names, self.d_model)

    @cached_property
    def knockout_sites(self) -> dict[int, tuple[MaskedModule, ...]]:
        """For each layer whose attention can be blocked: the modules that take the attention mask.

        Found by short runs at first use.
        """
        return find_knockout_sites(self.model, self.site_names)

    @cached_property
    def final_norm(self) -> str:
        """The name of the norm between the last block and the head. Found by a short run at first use.

        Raises:
            ModelStructureError: The model has no final norm.
        """
        return find_final_norm(self.model, self.site_names)

    @property
    def offloaded(self) -> bool:
        """Whether accelerate offloads weights and loads them again in each forward pass."""
        return any(parameter.device.type == "meta" for parameter in self.model.parameters())

    @property
    def lock(self) -> threading.RLock:
        """The lock of this model, shared by all its tracers."""
        return model_lock(self.model)

    def activation_names(self, site: SiteName) -> list[str]:
        """Return the names under which runs record a site's activations, layer by layer.

        A name is the module's, followed by `INPUT` where its input is recorded. Attention knockout records none.
        """
        if SITES[site].blocks:
            return []
        if site == "head":
            return [name + INPUT for name, _ in self.head_sites.values()]
        return [name for layer in self.site_names[require_kind(site)] for name in layer]

    def missing_layers(self, site: SiteName) -> tuple[int, ...]:
        """Return the layers that do not have the site."""
        has: Any
        if SITES[site].blocks:
            has = self.knockout_sites
        elif site == "head":
            has = self.head_sites
        else:
            has = [n for n, names in enumerate(self.site_names[require_kind(site)]) if names]
        return tuple(layer for layer in range(self.n_layers) if layer not in has)

    @property
    def layer_config(self) -> LayerConfig:
        """A `LayerConfig` that names the same modules."""
        return LayerConfig(
            hidden_layers_matcher=as_matcher(self.site_names["hidden"]),
            attention_layers_matcher=as_matcher(self.site_names["attention"]),
            mlp_layers_matcher=as_matcher(self.site_names["mlp"]),
            embedding_layer=self.embedding_name,
        )


@in_standard_torch_state
def trace_model(model: nn.Module, layer_config: LayerConfig | None = None) -> TracedModel:
    """Find the parts of a causal LM, or take them from `layer_config`, and check them in a short run.

    Raises:
        ModelStructureError: The model is an encoder-decoder or has no LM head; its parts cannot be found; or the
            modules named in `layer_config` do not exist or do not return [rows, tokens, d_model].
    """
    model = as_causal_lm(model)
    config: Any = model.config.get_text_config()  # type: ignore[union-attr, operator]
    with model_lock(model):
        if layer_config is None:
            embedding_name, site_names = discover_sites(model)
        else:
            embedding_name, site_names = named_sites(model, layer_config)
        d_model, embedding_width, stacked = verify_sites(model, embedding_name, site_names)
        last_block = site_names["hidden"][-1][0]
        inside = [name for kind in ("attention", "mlp") for name in site_names[kind][-1]]
        reach_later = outputs_reach_later_tokens(model, last_block, inside)
        drops_tokens = logits_to_keep_drops_tokens(model, last_block)
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
        outputs_reach_later_tokens=reach_later,
        logits_to_keep_drops_tokens=drops_tokens,
    )
