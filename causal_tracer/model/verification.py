"""Checking the outputs of a model's named modules in one short run."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from causal_tracer.errors import ModelStructureError
from causal_tracer.model.hooks import add_stream_hook, editing_outputs
from causal_tracer.model.layer_config import SiteNames
from causal_tracer.model.probing import probe_ids, run_probe
from causal_tracer.request.sites import KINDS


def verify_sites(model: nn.Module, embedding_name: str, site_names: SiteNames) -> tuple[int, int, bool]:
    """Run the model once and check the output of each module.

    Returns:
        The width of the residual stream, the width of the embedding's output, and whether blocks return stacked
        streams [n, rows, tokens, d_model].

    Raises:
        ModelStructureError: A module was not called, or its output does not have the shape of its kind.
    """
    ids = probe_ids(model)
    modules = dict(model.named_modules())
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> Callable[[Tensor], None]:
        return lambda activation: shapes.__setitem__(name, tuple(activation.shape))

    taken: list[tuple[int, ...]] = []
    names = [embedding_name, *(name for kind in KINDS for layer in site_names[kind] for name in layer)]
    first_block = site_names["hidden"][0][0]
    with (
        add_stream_hook(modules[first_block], lambda stream: taken.append(tuple(stream.shape))),
        editing_outputs({modules[name]: record(name) for name in names}, ids.shape[1]),
    ):
        run_probe(model, ids)
    expected = shapes.get(first_block, ())
    # Some models have several streams, [rows, tokens, n, d_model] or [n, rows, tokens, d_model]. They form one site.
    stacked = len(expected) == 4 and expected[1:3] == tuple(ids.shape)
    if len(expected) not in (3, 4) or not (stacked or expected[:2] == tuple(ids.shape)):
        raise ModelStructureError(
            f"Block {first_block!r} of {type(model).__name__} returned the shape {list(expected)} for "
            f"{ids.shape[1]} tokens, and must return a residual stream [rows, tokens, d_model]. Models whose blocks "
            "work on patches of bytes, or on more vectors than tokens, cannot be traced. If these are not the model's "
            "blocks, name them with a LayerConfig."
        )
    # If blocks take and return several streams side by side, modules inside are only as wide as the embedding.
    widths = {expected[-1], *(shapes.get(embedding_name, expected)[-1:] if taken == [expected] else ())}
    for name in names:
        if name not in shapes:
            raise ModelStructureError(
                f"Module {name!r} of {type(model).__name__} was not called in a forward pass, so restoring its output "
                "would have no effect. Name a module that is called with a LayerConfig."
            )
        is_block = any(name in layer for layer in site_names["hidden"])
        fits = shapes[name] == expected or (
            not is_block and shapes[name][:-1] == tuple(ids.shape) and shapes[name][-1] in widths
        )
        if not fits and name != embedding_name:
            raise ModelStructureError(
                f"Module {name!r} of {type(model).__name__} returned the shape {list(shapes[name])}, and the residual "
                f"stream has the shape {list(expected)}. Name the module whose output is added to the stream with a "
                "LayerConfig."
            )
    order = list(shapes)
    if len(shapes[embedding_name]) != 3 or order.index(embedding_name) > order.index(first_block):
        raise ModelStructureError(
            f"Module {embedding_name!r} of {type(model).__name__} returned the shape {list(shapes[embedding_name])} "
            "and is not the token embedding whose output the blocks take. Name that embedding with a LayerConfig."
        )
    return expected[-1], shapes[embedding_name][-1], stacked
