"""Causal tracing for decoder-only Hugging Face language models: where does a model keep this fact?"""

from typing import TYPE_CHECKING, Any

from causal_tracer.errors import CausalTracerError
from causal_tracer.loading.models import LoadedModel, load_model
from causal_tracer.model.layers import GPT2_LAYER_CONFIG, LLAMA_LAYER_CONFIG, LayerConfig, LayerKind, LayerMatcher
from causal_tracer.prompts.subject import guess_subject
from causal_tracer.request.records import HiddenFlowQuery, MapSpec, SamplesUntil, TraceRequest
from causal_tracer.results.flow import HiddenFlow, TraceSettings
from causal_tracer.tracer import CausalTracer
from causal_tracer.tracing.loop import FlowUpdate
from causal_tracer.version import __version__

if TYPE_CHECKING:
    from causal_tracer.plots.heatmap import plot_hidden_flow_heatmap, save_figure

__all__ = [
    "GPT2_LAYER_CONFIG",
    "LLAMA_LAYER_CONFIG",
    "CausalTracer",
    "CausalTracerError",
    "FlowUpdate",
    "HiddenFlow",
    "HiddenFlowQuery",
    "LayerConfig",
    "LayerKind",
    "LayerMatcher",
    "LoadedModel",
    "MapSpec",
    "SamplesUntil",
    "TraceRequest",
    "TraceSettings",
    "__version__",
    "guess_subject",
    "load_model",
    "plot_hidden_flow_heatmap",
    "save_figure",
]


def __dir__() -> list[str]:
    """List the public names only."""
    return sorted(__all__)


def __getattr__(name: str) -> Any:
    """Plotting is loaded when it is first asked for, so that tracing needs no Plotly."""
    if name in ("plot_hidden_flow_heatmap", "save_figure"):
        from causal_tracer.plots import heatmap as plots

        return getattr(plots, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
