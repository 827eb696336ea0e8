"""Models dispatched by accelerate trace to the numbers of the same weights undispatched."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

from causal_tracer import CausalTracer
from causal_tracer.layers import KINDS
from tests.tiny_models import FAMILIES, PROMPT, SUBJECT, build_tiny_model, tiny_tokenizer, tiny_tracer

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
    """The largest modules that hold no block."""
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
