"""The default batch size: how many rows one forward pass of a sweep has."""

from __future__ import annotations

from typing import Any

import psutil
import torch

from causal_tracer.model.layers import TracedModel

_MOST_ROWS = 1024
_ROWS_MEMORY = 384 * 2**20


def default_batch_size(traced: TracedModel, n_tokens: int) -> int:
    """Return the number of rows whose activations fit in the memory for one batch.

    That memory is 1/16 of a GPU's, and else 384 MiB or 1/32 of the machine's, whichever is less. The result depends
    only on the model, the prompt's length and the total memory, so it is the same in every run.
    """
    config: Any = traced.model.config
    text = config.get_text_config()
    names = ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size")
    widths = [width for name in names if isinstance(width := getattr(text, name, None), int)]
    width = widths[0] if widths else 4 * traced.d_model
    row = (4 * width + 10 * traced.d_model) * traced.dtype.itemsize * n_tokens
    device = traced.input_device
    if device.type == "cuda":
        # A GPU is faster with larger batches.
        memory = torch.cuda.get_device_properties(device).total_memory // 16
    else:
        memory = min(_ROWS_MEMORY, psutil.virtual_memory().total // 32)
    return max(1, min(_MOST_ROWS, memory // row))
