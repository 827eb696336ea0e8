"""The Python lines that do what the page's fields ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.records import MapSpec, TraceRequest
from causal_tracer.web.service.asking import CheckedInput


def python_lines(checked: CheckedInput, model: str, revision: str | None = None) -> str:
    """The lines of Python that reproduce a run. Texts stand in them as literals, whatever they are.

    Args:
        checked: What was asked for.
        model: What `load_model` takes.
        revision: The hub revision to load; None for models that have one only.
    """
    request = replace(checked.request, top_tokens=0)
    maps = ", ".join(f"{kind!r}: {_call('MapSpec', spec, ('kind', 'window'))}" for kind, spec in checked.specs.items())
    loading = [repr(model)]
    if revision is not None:
        loading.append(f"revision={revision!r}")
    if checked.noise is not None:
        loading.append(f"noise={checked.noise!r}")
    text, imports = repr(request.text), []
    if isinstance(request.text, ChatText):
        text = f"ChatText.from_user({request.text.messages[-1]['content']!r})"
        imports = ["from causal_tracer.prompts.chat import ChatText"]
    names = [name for name in _REQUEST_FIELDS if getattr(request, name) != getattr(TraceRequest(""), name)]
    lines = [
        "from causal_tracer import CausalTracer, MapSpec, TraceRequest, plot_hidden_flow_heatmap",
        *imports,
        "",
        f"tracer = CausalTracer.from_pretrained({', '.join(loading)})",
        "request = TraceRequest(",
        f"    text={text},",
        *(f"    {name}={getattr(request, name)!r}," for name in names),
        ")",
        f"maps = tracer.trace_maps(request, {{{maps}}})",
        "for flow in maps.values():",
        "    print(flow.kind, flow.answer, flow.high_score, flow.low_score, flow.peaks())",
        "    plot_hidden_flow_heatmap(flow)",
    ]
    return "\n".join(lines) + "\n"


_REQUEST_FIELDS = (
    "subject",
    "answer",
    "answer_id",
    "answer_form",
    "samples",
    "seed",
    "batch_size",
    "start_layer",
    "end_layer",
    "subject_tokens_only",
    "occurrence",
    "corruption",
)


def _call(name: str, value: MapSpec, fields: Sequence[str]) -> str:
    return f"{name}({', '.join(repr(getattr(value, field)) for field in fields)})"
