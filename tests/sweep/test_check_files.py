"""First-use checks on disk: a later process takes them over for an equal model, and only for one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from causal_tracer import CausalTracer
from causal_tracer.files import CACHE_VARIABLE
from causal_tracer.sweep import check_files, engine
from causal_tracer.sweep.check import EngineCheck
from causal_tracer.sweep.check_files import _source_digest, check_file
from causal_tracer.sweep.resume_mode import RESUME_MODES
from tests.support.tiny_models import build_tiny_model, tiny_tokenizer


def no_hook(_module: Any, _inputs: Any, output: Any) -> Any:
    return output


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the checks, which here are read and written."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path))
    monkeypatch.setattr(check_files, "check_file", check_file)
    return tmp_path / "engine_checks"


@pytest.fixture
def checked_in_a_new_process(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], bool]:
    """Choose a model's engine as a process that knows nothing, and return whether the model was checked."""
    runs: list[int] = []
    check = engine.check_resume_modes

    def counted(*args: Any, **kwargs: Any) -> EngineCheck:
        runs.append(1)
        return check(*args, **kwargs)

    monkeypatch.setattr(engine, "check_resume_modes", counted)

    def checked(model: Any, n_tokens: int = 8) -> bool:
        monkeypatch.setattr(engine, "_engine_checks", {})
        runs.clear()
        assert engine.choose_engine(CausalTracer(model, tiny_tokenizer()).context.traced, "auto", n_tokens).mode
        return bool(runs)

    return checked


def test_an_equal_model_is_checked_once(checked_in_a_new_process: Any, folder: Path) -> None:
    assert checked_in_a_new_process(build_tiny_model("gpt2"))
    assert len(list(folder.iterdir())) == 1
    assert not checked_in_a_new_process(build_tiny_model("gpt2"))


def changes_a_weight(model: Any) -> None:
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight += 1e-3


def changes_a_buffer(model: Any) -> None:
    model.register_buffer("scale", torch.ones(3))


def changes_the_dtype(model: Any) -> None:
    model.double()


def changes_the_attention(model: Any) -> None:
    model.set_attn_implementation("eager")


@pytest.mark.parametrize("change", [changes_a_weight, changes_a_buffer, changes_the_dtype, changes_the_attention])
def test_a_model_that_differs_is_checked(checked_in_a_new_process: Any, change: Any) -> None:
    checked_in_a_new_process(build_tiny_model("gpt2"))
    model = build_tiny_model("gpt2")
    change(model)
    assert checked_in_a_new_process(model)


def test_other_code_of_the_package_checks_again(
    checked_in_a_new_process: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked_in_a_new_process(build_tiny_model("gpt2"))
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "sweep.py").write_text("changed = True\n")
    monkeypatch.setattr(check_files, "_PACKAGE", tmp_path / "package")
    # A cache of its own, since a process reads the code once.
    monkeypatch.setattr(check_files, "_source_digest", functools.cache(_source_digest.__wrapped__))
    assert checked_in_a_new_process(build_tiny_model("gpt2"))


def test_a_user_s_hook_means_no_file(checked_in_a_new_process: Any, folder: Path) -> None:
    model = build_tiny_model("gpt2")
    model.transformer.h[0].register_forward_hook(no_hook)
    for _ in range(2):
        assert checked_in_a_new_process(model)
    assert not folder.exists()


def test_weights_that_cannot_be_read_mean_no_file(
    checked_in_a_new_process: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meta(_model: Any) -> str:
        raise NotImplementedError("Cannot copy out of meta tensor; no data!")

    monkeypatch.setattr(check_files, "_sample", meta)
    for _ in range(2):
        assert checked_in_a_new_process(build_tiny_model("gpt2"))
    assert not folder.exists()


def test_a_check_with_a_failed_mode_is_repeated(
    checked_in_a_new_process: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The failure may be due to the moment, such as little memory."""
    slower = EngineCheck(RESUME_MODES[1], ("The sweep 'resumed' failed on this model.",))
    with monkeypatch.context() as patch:
        patch.setattr(engine, "check_resume_modes", lambda *_, **__: slower)
        checked_in_a_new_process(build_tiny_model("gpt2"))
    assert not folder.exists()
    assert checked_in_a_new_process(build_tiny_model("gpt2"))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 1}', '{"mode": {"name": 1}, "tried": []}'])
def test_a_damaged_file_is_reported_and_replaced(
    checked_in_a_new_process: Any, folder: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    checked_in_a_new_process(build_tiny_model("gpt2"))
    (file,) = folder.iterdir()
    whole = file.read_text()
    file.write_text(damage)
    assert checked_in_a_new_process(build_tiny_model("gpt2"))
    assert "could not be read" in caplog.text
    assert file.read_text() == whole


def test_a_folder_that_cannot_be_written_is_reported(
    checked_in_a_new_process: Any, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.write_text("a file where the folder should be")
    assert checked_in_a_new_process(build_tiny_model("gpt2"))
    assert "could not be stored" in caplog.text
    assert checked_in_a_new_process(build_tiny_model("gpt2"))
