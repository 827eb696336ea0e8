"""Whether a model is the papers' own, GPT-2 XL in float32."""

from __future__ import annotations

from collections.abc import Iterator

from causal_tracer.reproduce.published import PAPER_CLASS, PAPER_LAYERS


def why_other_model(name: str, model_class: str, layers: int, dtype: str) -> Iterator[str]:
    """Yield why the published numbers are not a model's, in words.

    The model is recognised by its class and number of layers, so a local copy of the weights counts too.

    Args:
        name: The model's name, for the words.
        model_class: The name of its class.
        layers: Its blocks.
        dtype: The dtype of its weights.
    """
    if (model_class, layers) != (PAPER_CLASS, PAPER_LAYERS):
        yield (
            f"the published numbers are GPT-2 XL's ({PAPER_CLASS}, {PAPER_LAYERS} layers), and {name} is a "
            f"{model_class} of {layers} layers"
        )
    elif dtype != "float32":
        yield f"the published numbers are those of float32 weights, and these are in {dtype}"
