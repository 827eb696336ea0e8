"""Noise levels, computed from the standard deviation of a model's embeddings."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from causal_tracer.corruption.noise_rules import NOISE_MULTIPLIER, NoiseRule, SubjectsNoise
from causal_tracer.errors import NumericsError, SettingsError, SubjectError
from causal_tracer.model.engine_mode import engine_mode
from causal_tracer.model.layers import TracedModel
from causal_tracer.model.torch_state import in_standard_torch_state
from causal_tracer.prompts.encoding import check_text, encode

_MULTIPLE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(?:σ|s|sd|sigmas?)\s*")
# Numbers of a part of the embedding's output: a megabyte in float64.
_IN_CACHE = 2**17
_moments: WeakKeyDictionary[nn.Module, tuple[Tensor, Tensor]] = WeakKeyDictionary()


def embedded_tokens(traced: TracedModel, token_ids: Sequence[int]) -> Tensor:
    """Return the embedding module's output for tokens [tokens, width], float32 on the CPU."""
    ids = torch.tensor([list(token_ids)], device=traced.input_device)
    with engine_mode(traced.model):
        embedded: Tensor = traced.embedding(ids)
    return embedded[0].float().cpu()


def _vocabulary(traced: TracedModel, chunk: int = 8192) -> Iterator[Tensor]:
    """Yield the embedding's output over the whole vocabulary in chunks [tokens, width]."""
    size = getattr(traced.embedding, "num_embeddings", traced.vocab_size)
    with engine_mode(traced.model):
        for start in range(0, size, chunk):
            ids = torch.arange(start, min(start + chunk, size), device=traced.input_device)
            yield traced.embedding(ids[None])[0]


def embedding_scale(traced: TracedModel, chunk: int = 8192) -> float:
    """Return the standard deviation of the embedding module's output over the whole vocabulary.

    It is not computed from the weight, since some modules scale their output (Gemma by the square root of d_model).

    Raises:
        NumericsError: The embedding returns NaN or infinite values.
    """
    total, squares, count = 0.0, 0.0, 0
    for output in _vocabulary(traced, chunk):
        # Parts whose float64 copies stay in the processor's cache take a tenth of the time.
        for part in torch.split(output, max(1, _IN_CACHE // output.shape[-1])):
            values = part.double().flatten()
            total += float(values.sum())
            squares += float(torch.dot(values, values))
        count += output.numel()
    return _standard_deviation(traced, total, squares, count)


def _standard_deviation(traced: TracedModel, total: float, squares: float, count: int) -> float:
    mean = total / count
    variance = (squares - count * mean * mean) / (count - 1)
    if not math.isfinite(variance):
        raise NumericsError(
            f"The embedding {traced.embedding_name!r} returns NaN or infinite values, so it gives no "
            "noise level. Check the model's weights, or give a noise level."
        )
    return math.sqrt(max(0.0, variance))


def subjects_scale(traced: TracedModel, tokenizer: Any, subjects: Sequence[str]) -> float:
    """Return the standard deviation of the embedding's output over the subjects' tokens, as for ROME's "s3".

    Raises:
        SettingsError: The subjects have no tokens.
        NumericsError: The embedding returns NaN or infinite values.
    """
    texts = [check_text("subject", subject, SubjectError) for subject in subjects]
    ids = [token for text in texts for token in encode(tokenizer, text, special_tokens=False).ids]
    if not ids:
        raise SettingsError(f"The {len(subjects)} given subjects have no tokens. Give the subjects of some facts.")
    embedded = embedded_tokens(traced, ids).double()
    return _standard_deviation(traced, float(embedded.sum()), float(embedded.square().sum()), embedded.numel())


@in_standard_torch_state
def noise_level(traced: TracedModel, tokenizer: Any, rule: NoiseRule) -> tuple[float, str]:
    """Return the noise level of a rule on a model, and its description in results.

    Raises:
        SettingsError: The rule is invalid, or its level is negative or not finite.
        NumericsError: The embedding returns NaN or infinite values.
    """
    if isinstance(rule, SubjectsNoise):
        level = rule.multiplier * subjects_scale(traced, tokenizer, rule.subjects)
        description = f"{rule.multiplier:g} sd of the embeddings of {len(rule.subjects)} subjects"
    elif rule is None or (isinstance(rule, str) and (found := _MULTIPLE.fullmatch(rule))):
        multiplier = NOISE_MULTIPLIER if rule is None else float(found[1])  # type: ignore[index]
        level, description = multiplier * embedding_scale(traced), f"{multiplier:g} sd of the embedding output"
    else:
        try:
            level, description = float(rule), "given"
        except (TypeError, ValueError, OverflowError) as error:
            raise SettingsError(
                f'noise={rule!r} is not a noise level. Give 0 or a positive number, a multiple such as "2 sigma", or '
                "None."
            ) from error
    if not math.isfinite(level) or level < 0:
        raise SettingsError(f"noise={rule!r} is not a noise level. Give 0 or a positive number.")
    return level, description


def embedding_moments(traced: TracedModel) -> tuple[Tensor, Tensor]:
    """Return mean [width] and covariance [width, width] of the embedding's output over the vocabulary, float64, CPU."""
    if traced.model not in _moments:
        total = products = torch.zeros((), dtype=torch.float64)
        count = 0
        for output in map(Tensor.double, _vocabulary(traced)):
            count += len(output)
            total, products = total + output.sum(0), products + output.T @ output
        mean = total / count
        _moments[traced.model] = (mean.cpu(), ((products - count * torch.outer(mean, mean)) / (count - 1)).cpu())
    return _moments[traced.model]
