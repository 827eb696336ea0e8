"""The app's `gr.Blocks`: endpoints fill in default values, and all sessions share the description of the page."""

from __future__ import annotations

import inspect
from typing import Any

import gradio as gr
from gradio.blocks import Block, BlocksConfig
from gradio.renderable import Renderable
from gradio.utils import get_function_description


class SharedConfig(BlocksConfig):
    """A configuration that describes each component of the page once for all sessions.

    Gradio describes all of them for each new session, on the server's event loop: 0.1 s for this page. Each visit and
    each call of the API is a session.
    """

    root_block: AppBlocks

    def __copy__(self) -> SharedConfig:
        return SharedConfig.of(super().__copy__())  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, config: BlocksConfig) -> SharedConfig:
        """Return the same configuration as one of this class."""
        shared = cls(config.root_block)
        vars(shared).update(vars(config))
        return shared

    def config_for_block(  # type: ignore[override]  # Gradio calls its static method on the instance.
        self, _id: int, rendered_ids: list[int], block: Block, renderable: Renderable | None = None
    ) -> dict[str, Any]:
        """Return a component's description, whose `props` the session may change."""
        # Gradio's sessions pass no `rendered_ids`. A component that a session has changed is another object.
        if rendered_ids or renderable or self.root_block.blocks.get(_id) is not block:
            return super().config_for_block(_id, rendered_ids, block, renderable)
        described = self.root_block.described
        if _id not in described:
            described[_id] = super().config_for_block(_id, [], block)
        return {**described[_id], "props": dict(described[_id]["props"])}


class AppBlocks(gr.Blocks):
    """Blocks whose endpoints for programs take positional values like a Python function: left out ones get defaults.

    Gradio itself raises a `ValueError`, whose message does not reach the client. It also searches the values for files;
    these endpoints take none.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        # Descriptions of the components, by identifier.
        self.described: dict[int, dict[str, Any]] = {}
        self.default_config = SharedConfig.of(self.default_config)

    async def preprocess_data(
        self, block_fn: Any, inputs: list[Any], state: Any, explicit_call: bool = False
    ) -> list[Any]:
        """Return the values with which an event's function is called."""
        if block_fn.api_visibility == "private":
            values: list[Any] = await super().preprocess_data(block_fn, inputs, state, explicit_call)
            return values
        return completed(block_fn, inputs)

    def get_api_info(self, *args: Any, **kwargs: Any) -> Any:
        """Return Gradio's description of the endpoints, with a description of each argument added."""
        info = super().get_api_info(*args, **kwargs)
        functions = {f"/{fn.api_name}": fn.fn for fn in self.fns.values() if fn.fn and fn.api_visibility != "private"}
        for name, endpoint in info["named_endpoints"].items():
            abouts, field_help = (
                get_function_description(functions[name])[1],
                getattr(functions[name], "field_help", {}),
            )
            # Gradio appends a sentence without a space before it.
            endpoint["description"] += " "
            for parameter in endpoint["parameters"]:
                argument = parameter["parameter_name"]
                about, fields = abouts.get(argument, ""), field_help.get(argument)
                parameter["type"] = {**parameter["type"], "description": about}
                parameter["python_type"]["description"] = about
                if fields:
                    types = parameter["type"]["properties"]
                    described = {field: {**types[field], "description": fields[field]} for field in fields}
                    parameter["type"]["properties"] = described
        return info


def completed(block_fn: Any, values: list[Any]) -> list[Any]:
    """Return the values of an endpoint's arguments, with defaults for those left out.

    Raises:
        gr.Error: There are too many values, or a required one is missing.
    """
    parameters = list(inspect.signature(block_fn.fn).parameters.values())[: len(block_fn.inputs)]
    order = ", ".join(each.name for each in parameters) or "none"
    missing = parameters[len(values) :]
    required = [each.name for each in missing if each.default is each.empty]
    if required or len(values) > len(parameters):
        wrong = f"needs {required[0]!r}" if required else f"takes at most {len(parameters)} values"
        raise gr.Error(
            f"/{block_fn.api_name} {wrong} (given: {len(values)} values). Its values, in order: {order}.",
            print_exception=False,
        )
    return [*values, *(each.default for each in missing)]
