"""The saved form of `HiddenFlow`: conversion to JSON types, and back with checks."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from causal_tracer.errors import ResultFormatError
from causal_tracer.request.sites import SITES, SPANS, require_site
from causal_tracer.results import saved_form
from causal_tracer.results.audit import Audit
from causal_tracer.results.settings import TraceSettings
from causal_tracer.results.token_alignment import TokenAlignment
from causal_tracer.results.top_tokens import TopTokens

if TYPE_CHECKING:
    from causal_tracer.results.flow import HiddenFlow


def to_dict(flow: HiddenFlow) -> dict[str, Any]:
    """Return a result as JSON types; see `HiddenFlow.to_dict`."""
    data = saved_form.format_header("HiddenFlow")
    for item in fields(flow):
        value = getattr(flow, item.name)
        if item.name == "layer_outputs":
            continue
        if isinstance(value, Tensor):
            value = saved_form.nested_lists(value)
        elif isinstance(value, TraceSettings):
            value = {**asdict(value), "versions": dict(value.versions)}
        elif isinstance(value, (TopTokens, Audit, TokenAlignment)):
            value = value.to_dict()
        elif isinstance(value, tuple):
            value = list(value)
        data[item.name] = value
    return data


def from_dict(kind: type[HiddenFlow], data: Any) -> HiddenFlow:
    """Return the result that `to_dict` wrote.

    Args:
        kind: The class `HiddenFlow`, which imports this module.
        data: The JSON types.

    Raises:
        ResultFormatError: The data is not a saved HiddenFlow, is from a newer version, or is inconsistent.
    """
    with saved_form.checked_format("HiddenFlow", data):
        flow = kind(
            scores=saved_form.float_tensor(data["scores"]),
            low_score=float(data["low_score"]),
            high_score=float(data["high_score"]),
            input_ids=torch.tensor([int(i) for i in data["input_ids"]], dtype=torch.long, device="cpu"),
            input_tokens=[str(token) for token in data["input_tokens"]],
            subject_range=(int(data["subject_range"][0]), int(data["subject_range"][1])),
            answer=str(data["answer"]),
            kind=require_site(data["kind"]),
            layer_outputs=OrderedDict(),
            answer_id=int(data["answer_id"]),
            prompt=str(data["prompt"]),
            subject=str(data["subject"]),
            subject_guessed=bool(data["subject_guessed"]),
            sample_scores=saved_form.float_tensor(data["sample_scores"]),
            low_sample_scores=saved_form.float_tensor(data["low_sample_scores"]),
            settings=TraceSettings.from_dict(data["settings"]),
            notes=tuple(str(note) for note in data["notes"]),
            answer_ids=tuple(int(token) for token in data["answer_ids"]),
            top_tokens=None if data["top_tokens"] is None else TopTokens.from_dict(data["top_tokens"]),
            audit=None if data.get("audit") is None else Audit.from_dict(data["audit"]),
            request=None if data.get("request") is None else dict(data["request"]),
            alignment=None if data.get("alignment") is None else TokenAlignment.from_dict(data["alignment"]),
        )
    _check(flow)
    return flow


def _check(flow: HiddenFlow) -> None:
    samples, rows, layers = flow.sample_scores.shape if flow.sample_scores.dim() == 3 else (0, 0, 0)
    start, end = flow.subject_range
    tokens, at_tokens, site = len(flow.input_tokens), flow.settings.at_tokens, SITES[flow.kind]
    height = {"tokens": tokens, "spans": len(SPANS)}.get(site.rows, rows)
    at_each_token = site.rows == "tokens" and not site.blocks
    fits = (
        samples > 0
        and flow.scores.shape == (rows, layers)
        and flow.low_sample_scores.shape == (samples,)
        and len(flow.input_ids) == tokens
        and rows == height
        and bool(at_tokens) != at_each_token
        and (site.blocks or len(at_tokens) < 2)
        and all(0 <= token < tokens for token in at_tokens)
        and 0 <= start < end <= tokens
    )
    if not fits:
        raise ResultFormatError(
            f"This saved HiddenFlow is inconsistent: scores {list(flow.scores.shape)}, sample scores "
            f"{list(flow.sample_scores.shape)}, {len(flow.input_tokens)} tokens, subject {flow.subject_range}, "
            f"kind {flow.kind!r}, token {flow.settings.token}."
        )
