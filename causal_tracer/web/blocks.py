"""The app's `gr.Blocks`: endpoints that fill in defaults, refuse wrong numbers of values in words."""

from __future__ import annotations

import inspect
from typing import Any

import gradio as gr
from gradio.utils import get_function_description


class AppBlocks(gr.Blocks):
    """Blocks whose endpoints for programs take a list of values as Python takes arguments: what is left out is filled.

    Gradio itself raises a `ValueError` there, which a client sees as no message at all. It also looks for files in the
    values; these endpoints take none.
    """

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Return the values that the function of an event is called with."""
        if block_fn.api_visibility == "private":
            values: list[Any] = await super().preprocess_data(block_fn, inputs, state, explicit_call)
            return values
        return completed(block_fn, inputs)

    def get_api_info(self, *args: Any, **kwargs: Any) -> Any:
        """Return what is published about the endpoints: as Gradio does, with what each argument means."""
        info = super().get_api_info(*args, **kwargs)
        functions = {f"/{fn.api_name}": fn.fn for fn in self.fns.values() if fn.fn and fn.api_visibility != "private"}
        for name, endpoint in info["named_endpoints"].items():
            abouts, inside = get_function_description(functions[name])[1], getattr(functions[name], "inside", {})
            # Gradio appends a sentence of its own, with no space before it.
            endpoint["description"] += " "
            for parameter in endpoint["parameters"]:
                argument = parameter["parameter_name"]
                about, fields = abouts.get(argument, ""), inside.get(argument)
                parameter["type"] = {**parameter["type"], "description": about}
                parameter["python_type"]["description"] = about
                if fields:
                    types = parameter["type"]["properties"]
                    described = {field: {**types[field], "description": fields[field]} for field in fields}
                    parameter["type"]["properties"] = described
        return info


def completed(block_fn: Any, values: list[Any]) -> list[Any]:
    """Return the values of an endpoint's arguments, with the defaults of those left out.

    Raises:
        gr.Error: There are too many, or one that is required is missing.
    """
    parameters = list(inspect.signature(block_fn.fn).parameters.values())[: len(block_fn.inputs)]
    order = ", ".join(each.name for each in parameters) or "none"
    missing = parameters[len(values) :]
    required = [each.name for each in missing if each.default is each.empty]
    if required or len(values) > len(parameters):
        wrong = f"needs {required[0]!r}" if required else f"takes at most {len(parameters)} values"
        raise gr.Error(
            f"/{block_fn.api_name} {wrong}, and {len(values)} were given. Its values, in order: {order}.",
            print_exception=False,
        )
    return [*values, *(each.default for each in missing)]
