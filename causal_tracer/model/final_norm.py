"""Finding the final norm: the module that normalises the residual stream between the last block and the head."""

from __future__ import annotations

from torch import Tensor, nn

from causal_tracer.errors import ModelStructureError
from causal_tracer.model.engine_mode import model_lock
from causal_tracer.model.hooks import editing_outputs
from causal_tracer.model.layer_config import SiteNames
from causal_tracer.model.probing import Call, probe_ids, record_calls

# A norm's output changes less than this when its input is doubled: only by the epsilon under the root.
_MOST_CHANGE = 0.25


def find_final_norm(model: nn.Module, site_names: SiteNames) -> str:
    """Return the name of the module that normalises the stream between the last block and the head.

    Candidates are the modules that run after the last block and before the head. The first one whose output stays the
    same when the last block's output is doubled is the final norm. If there is none, it is the first candidate with
    "norm" in its name or class.

    Raises:
        ModelStructureError: No candidate is a norm.
    """
    blocks = [name for names in site_names["hidden"] for name in names]
    last, modules = blocks[-1], dict(model.named_modules())
    outside = [
        name
        for name in modules
        if name and not any(name == block or name.startswith(f"{block}.") for block in blocks)
        # Modules that contain the last block run around it, not after it.
        if not last.startswith(f"{name}.")
    ]
    ids = probe_ids(model)

    def calls_after_last_block() -> list[Call]:
        calls = record_calls(model, [last, *outside], ids)
        return calls[max(number for number, call in enumerate(calls) if call.name == last) + 1 :]

    with model_lock(model):
        calls = calls_after_last_block()
        with editing_outputs({modules[last]: lambda stream: stream * 2}, ids.shape[1]):
            doubled = calls_after_last_block()
    for call, other in zip(calls, doubled, strict=True):
        if _change(call.input, other.input) > _MOST_CHANGE >= _change(call.output, other.output):
            return call.name
    for call in calls:
        if "norm" in f"{call.name.rpartition('.')[2]} {type(modules[call.name]).__name__}".lower():
            return call.name
    found = ", ".join(f"{call.name!r} ({type(modules[call.name]).__name__})" for call in calls) or "no module"
    raise ModelStructureError(
        f"No final norm was found in {type(model).__name__}: between its last block {last!r} and its head runs "
        f"{found}, and nothing there normalises the stream. A logit lens without a norm would show earlier layers on "
        "a different scale, so this model has no logit lens."
    )


def _change(before: Tensor | None, after: Tensor | None) -> float:
    """Return the norm of a tensor's change, relative to the tensor's norm; 0 if the two do not have one shape."""
    if before is None or after is None or before.shape != after.shape:
        return 0.0
    before, after = before.double(), after.double()
    return float((after - before).norm() / before.norm())
