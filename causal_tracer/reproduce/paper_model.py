"""The check that a model is the papers' model, GPT-2 XL in float32."""

from __future__ import annotations

from collections.abc import Iterator

from causal_tracer.reproduce.published import PAPER_CLASS, PAPER_LAYERS


def model_mismatch(name: str, model_class: str, layers: int, dtype: str) -> Iterator[str]:
    """Yield the reason why the published numbers do not apply to a model, or nothing if they do.

    The model is recognised by its class and number of layers, so that a local copy of the weights counts, too.

    Args:
        name: The model's name, for the text.
        model_class: The name of the model's class.
        layers: The number of blocks.
        dtype: The dtype of the weights.
    """
    if (model_class, layers) != (PAPER_CLASS, PAPER_LAYERS):
        yield (
            f"the published numbers are those of GPT-2 XL ({PAPER_CLASS}, {PAPER_LAYERS} layers), and {name} is a "
            f"{model_class} with {layers} layers"
        )
    elif dtype != "float32":
        yield f"the published numbers are those of float32 weights, and these weights are {dtype}"
