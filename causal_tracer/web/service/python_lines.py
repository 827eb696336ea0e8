"""The Python lines that reproduce a run of the page."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from causal_tracer.prompts.chat import ChatText
from causal_tracer.request.record import changed_fields
from causal_tracer.web.service.field_checks import CheckedFields


def python_lines(checked: CheckedFields, model: str, revision: str | None = None) -> str:
    """Return the lines of Python that reproduce a run, with texts as literals.

    Args:
        checked: The request.
        model: The model, as `load_model` takes it.
        revision: The hub revision to load; None for models that have only one.
    """
    request = replace(checked.request, top_tokens=0)
    chat = ["from causal_tracer.prompts.chat import ChatText"] if isinstance(request.prompt, ChatText) else []
    lines = [
        "from causal_tracer import CausalTracer, MapSpec, RunOptions, TraceRequest, plot_hidden_flow_heatmap",
        *chat,
        "",
        f"tracer = CausalTracer.from_pretrained({loading_arguments(model, revision)})",
        "request = TraceRequest(",
        *(f"    {name}={literal(value)}," for name, value in changed_fields(request).items()),
        ")",
        "maps = {",
        *(f"    {kind!r}: {spec!r}," for kind, spec in checked.specs.items()),
        "}",
        f"flows = tracer.trace_maps(request, maps, {checked.options!r})",
        "for flow in flows.values():",
        "    print(flow.kind, flow.answer, flow.high_score, flow.low_score, flow.peaks())",
        "    plot_hidden_flow_heatmap(flow)",
    ]
    return "\n".join(lines) + "\n"


def loading_arguments(model: str, revision: str | None) -> str:
    """Return the arguments of `CausalTracer.from_pretrained`, as code."""
    return repr(model) if revision is None else f"{model!r}, revision={revision!r}"


def literal(value: Any) -> str:
    """Return a value as Python code; a conversation of the app has one message only."""
    return f"ChatText.from_user({value.messages[-1]['content']!r})" if isinstance(value, ChatText) else repr(value)
