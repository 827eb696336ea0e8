"""Models dispatched by accelerate give the same numbers as the same weights on one device."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

from benchmarks.weight_loads import CountedWeights, offload_counted
from causal_tracer import CausalTracer
from causal_tracer.request.sites import KINDS
from causal_tracer.sweep.engine import choose_engine
from tests.support.tiny_models import FAMILIES, PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer, tiny_tracer

pytestmark = pytest.mark.slow

Dispatch = Callable[[Any, str, Path], Any]


def cpu_offload(model: Any, name: str, folder: Path) -> Any:
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def disk_offload(model: Any, name: str, folder: Path) -> Any:
    return accelerate.disk_offload(model, str(folder), execution_device=torch.device("cpu"))


def cpu_and_disk(model: Any, name: str, folder: Path) -> Any:
    """Every second block on disk, the rest on the CPU."""
    blocks = FAMILIES[name].site_names("hidden")
    device_map = dict.fromkeys(_parts_outside(model, blocks), "cpu")
    device_map |= {block: "disk" if number % 2 else "cpu" for number, block in enumerate(blocks)}
    return accelerate.dispatch_model(
        model, device_map, main_device="cpu", offload_dir=str(folder), force_hooks=True, offload_buffers=True
    )


def _parts_outside(model: Any, blocks: tuple[str, ...]) -> list[str]:
    """The largest modules that contain no block."""
    inside = [
        name for name, _ in model.named_modules() if any(block.startswith(f"{name}.") for block in blocks) or not name
    ]
    parts = [
        name for name, module in model.named_modules() if name not in inside and any(True for _ in module.parameters())
    ]
    return [
        name
        for name in parts
        if name not in blocks
        and not any(name.startswith(f"{other}.") for other in parts if other != name)
        and not any(name.startswith(f"{block}.") for block in blocks)
    ]


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma3_text", "mixtral", "qwen3_next", "lfm2"])
@pytest.mark.parametrize("dispatch", [cpu_offload, disk_offload, cpu_and_disk])
def test_dispatched_model_gives_the_numbers_of_the_undispatched_one(
    name: str, dispatch: Dispatch, tmp_path: Path
) -> None:
    model = dispatch(build_tiny_model(name), name, tmp_path)
    assert any(parameter.device.type == "meta" for parameter in model.parameters()), "nothing is offloaded"
    tracer = CausalTracer(model, tiny_tokenizer())
    plain = tiny_tracer(name)
    assert tracer.noise == pytest.approx(plain.noise, rel=1e-5)
    for kind in KINDS:
        found = tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind=kind, window=2, samples=2)
        expected = plain.calculate_hidden_flow(PROMPT, SUBJECT, kind=kind, window=2, samples=2)
        assert found.settings.engine == "resumed"
        assert found.high_score == pytest.approx(expected.high_score, abs=1e-5)
        torch.testing.assert_close(found.sample_scores, expected.sample_scores, atol=1e-5, rtol=0)
        full = tracer.calculate_hidden_flow(PROMPT, SUBJECT, kind=kind, window=2, samples=2, engine="full")
        torch.testing.assert_close(full.sample_scores, expected.sample_scores, atol=1e-5, rtol=0)


def test_dtype_of_an_offloaded_model_is_recorded(tmp_path: Path) -> None:
    model = cpu_offload(build_tiny_model("llama").to(torch.bfloat16), "llama", tmp_path)
    flow = CausalTracer(model, tiny_tokenizer()).calculate_hidden_flow(PROMPT, SUBJECT, samples=2)
    assert flow.settings.dtype == "bfloat16"


OTHER_PASSES = 5
"""Forward passes besides the cells': the clean run, the corrupted run, the clean tokens before the subject, the
corrupted run's states, and the audit."""


@functools.cache
def counted_tracer(name: str) -> tuple[CausalTracer, CountedWeights]:
    """A tracer of an offloaded model, whose engine check is done, and the mapping that its weights are loaded from."""
    model = build_tiny_model(name)
    weights = offload_counted(model)
    tracer = CausalTracer(model, tiny_tokenizer())
    choose_engine(tracer.context.traced, "auto", 11)
    return tracer, weights


def loads_of_blocks(name: str, **options: Any) -> tuple[list[int], Any]:
    """The number of loads of each block's weights for a map of three samples, and the map."""
    tracer, weights = counted_tracer(name)
    weights.loads.clear()
    flow = tracer.calculate_hidden_flow(PROMPT, SUBJECT, samples=3, **options)
    return weights.of_modules(FAMILIES[name].site_names("hidden")), flow


@pytest.mark.parametrize("batch_size", [1000, 20, 7])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3_text", "qwen3_next", "lfm2", "bloom"])
def test_a_map_takes_few_passes_over_offloaded_weights(name: str, batch_size: int) -> None:
    loads, flow = loads_of_blocks(name, batch_size=batch_size)
    tokens, layers = flow.scores.shape
    corrupted_tokens = tokens - flow.subject_range[0]
    # Cells of tokens before the subject need no run, nor do the last layer's cells that do not affect the last token.
    rows = 3 * (corrupted_tokens * layers - (corrupted_tokens - 1))
    assert max(loads) <= math.ceil(rows / batch_size) + OTHER_PASSES
    assert min(loads) >= 1


def test_loads_are_counted_once_a_pass_in_the_full_sweep() -> None:
    for batch_size in (1000, 20, 7):
        loads, flow = loads_of_blocks("llama", batch_size=batch_size, engine="full")
        passes = math.ceil(3 * flow.scores.numel() / batch_size)
        assert loads == [passes + 2] * 3, "and one each for the clean and the corrupted run"
