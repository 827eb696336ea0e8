"""One short run of a model that checks what its named modules hand on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from causal_tracer.errors import ModelStructureError
from causal_tracer.model.hooks import add_input_hook, editing_outputs, stream_argument
from causal_tracer.model.layers import SiteNames
from causal_tracer.model.probing import probe_ids, run_probe
from causal_tracer.request.sites import KINDS


def verify_sites(model: nn.Module, embedding_name: str, site_names: SiteNames) -> tuple[int, int, bool]:
    """Run the model once and check what each module hands on: d_model, embedding width, whether streams are stacked."""
    ids = probe_ids(model)
    modules = dict(model.named_modules())
    shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> Callable[[Tensor], None]:
        return lambda activation: shapes.__setitem__(name, tuple(activation.shape))

    taken: list[tuple[int, ...]] = []

    def note_taken(_module: nn.Module, args: Any, kwargs: Any) -> None:
        stream = stream_argument(args, kwargs)
        taken.append(() if stream is None else tuple(stream.shape))

    names = [embedding_name, *(name for kind in KINDS for layer in site_names[kind] for name in layer)]
    block = modules[site_names["hidden"][0][0]]
    handle = add_input_hook(block, note_taken)
    try:
        with editing_outputs({modules[name]: record(name) for name in names}, ids.shape[1]):
            run_probe(model, ids)
    finally:
        handle.remove()
    expected = shapes.get(site_names["hidden"][0][0], ())
    # Some models keep several streams, [rows, tokens, n, d_model] or [n, rows, tokens, d_model]: one site, all of them.
    stacked = len(expected) == 4 and expected[1:3] == tuple(ids.shape)
    if len(expected) not in (3, 4) or not (stacked or expected[:2] == tuple(ids.shape)):
        raise ModelStructureError(
            f"Block {site_names['hidden'][0][0]!r} of {type(model).__name__} returned the shape {list(expected)} for "
            f"{ids.shape[1]} tokens; a residual stream [rows, tokens, d_model] is needed. A model whose blocks work on "
            "patches of bytes, or on more vectors than tokens, has no map of token by layer. If the blocks were found "
            "by themselves and are others, name them with a LayerConfig."
        )
    # Where blocks take and give several streams side by side, modules inside are narrower: as wide as the embedding.
    widths = {expected[-1], *(shapes.get(embedding_name, expected)[-1:] if taken == [expected] else ())}
    for name in names:
        if name not in shapes:
            raise ModelStructureError(
                f"Module {name!r} of {type(model).__name__} was not called in a forward pass, so restoring its output "
                "would do nothing. Name the module that is called in a LayerConfig."
            )
        is_block = any(name in layer for layer in site_names["hidden"])
        fits = shapes[name] == expected or (
            not is_block and shapes[name][:-1] == tuple(ids.shape) and shapes[name][-1] in widths
        )
        if not fits and name != embedding_name:
            raise ModelStructureError(
                f"Module {name!r} of {type(model).__name__} returned the shape {list(shapes[name])}, and the residual "
                f"stream has {list(expected)}. Name the module whose output is added to it in a LayerConfig."
            )
    order = list(shapes)
    if len(shapes[embedding_name]) != 3 or order.index(embedding_name) > order.index(site_names["hidden"][0][0]):
        raise ModelStructureError(
            f"Module {embedding_name!r} of {type(model).__name__} returned the shape {list(shapes[embedding_name])} "
            "and is no token embedding that the blocks are fed from. Name that one in a LayerConfig."
        )
    return expected[-1], shapes[embedding_name][-1], stacked
