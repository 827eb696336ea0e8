"""Causal tracing for decoder-only Hugging Face language models: find where a model stores a fact.

Start with `CausalTracer`. Public names are imported on first use.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from causal_tracer.errors import CausalTracerError
from causal_tracer.version import __version__

if TYPE_CHECKING:
    from causal_tracer.loading.models import LoadedModel, load_model
    from causal_tracer.model.layer_config import GPT2_LAYER_CONFIG, LLAMA_LAYER_CONFIG, LayerConfig, LayerMatcher
    from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap
    from causal_tracer.plots.lens import plot_lens
    from causal_tracer.plots.saving import save_figure
    from causal_tracer.prompts.subject import guess_subject
    from causal_tracer.request.records import (
        HiddenFlowQuery,
        MapSpec,
        OtherPrompt,
        RunOptions,
        SamplesUntil,
        TraceRequest,
    )
    from causal_tracer.request.sites import LayerKind
    from causal_tracer.results.flow import HiddenFlow, TraceSettings
    from causal_tracer.results.lens import LogitLens
    from causal_tracer.results.patched import PatchedRun
    from causal_tracer.tracer import CausalTracer
    from causal_tracer.tracing.loop import MapsUpdate

# Imported on first use: opening a saved result does not import the engine, and tracing does not import Plotly.
_MODULES = {
    "loading.models": ("LoadedModel", "load_model"),
    "model.layer_config": ("GPT2_LAYER_CONFIG", "LLAMA_LAYER_CONFIG", "LayerConfig", "LayerMatcher"),
    "plots.heatmap": ("plot_hidden_flow_heatmap",),
    "plots.lens": ("plot_lens",),
    "plots.saving": ("save_figure",),
    "prompts.subject": ("guess_subject",),
    "request.records": ("HiddenFlowQuery", "MapSpec", "OtherPrompt", "RunOptions", "SamplesUntil", "TraceRequest"),
    "request.sites": ("LayerKind",),
    "results.flow": ("HiddenFlow", "TraceSettings"),
    "results.lens": ("LogitLens",),
    "results.patched": ("PatchedRun",),
    "tracer": ("CausalTracer",),
    "tracing.loop": ("MapsUpdate",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "GPT2_LAYER_CONFIG",
    "LLAMA_LAYER_CONFIG",
    "CausalTracer",
    "CausalTracerError",
    "HiddenFlow",
    "HiddenFlowQuery",
    "LayerConfig",
    "LayerKind",
    "LayerMatcher",
    "LoadedModel",
    "LogitLens",
    "MapSpec",
    "MapsUpdate",
    "OtherPrompt",
    "PatchedRun",
    "RunOptions",
    "SamplesUntil",
    "TraceRequest",
    "TraceSettings",
    "__version__",
    "guess_subject",
    "load_model",
    "plot_hidden_flow_heatmap",
    "plot_lens",
    "save_figure",
]


def __dir__() -> list[str]:
    """Return the public names only."""
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Import a public name on first use."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"causal_tracer.{_MODULE_OF[name]}"), name)
