"""GGUF files: each architecture loads as the model it was made from; names, folders and hub repositories work."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import math
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from causal_tracer import CausalTracer, CausalTracerError, load_model
from causal_tracer.errors import ModelLoadError, SettingsError
from causal_tracer.loading import converted, gguf_conversion, hub
from causal_tracer.loading.embedded import _source_files, embedded_model_folder, find_embedded_model
from causal_tracer.loading.gguf_config import FAMILIES, supported_architectures
from causal_tracer.loading.gguf_files import choose_gguf
from causal_tracer.loading.gguf_header import read_gguf_header
from causal_tracer.web.service.model_files import public_name, require_safetensors, stored_identity, stored_parameters
from causal_tracer.web.service.registry import ModelSlot, load_tracer
from tests.support.gguf_models import SOURCES, Source, source_model, write_source

IDS = torch.randint(3, 200, (1, 24), generator=torch.Generator().manual_seed(1))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(IDS).logits
    return found


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of converted models for each test."""
    monkeypatch.setenv(converted.CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """One small Llama and its file."""
    model = source_model(SOURCES["llama"])
    path = tmp_path_factory.mktemp("files") / "tiny-llama.gguf"
    write_source(path, SOURCES["llama"], model)
    return SimpleNamespace(model=model, path=path)


def copied(written: SimpleNamespace, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(written.path.read_bytes())
    return target


# --- architectures ---


@pytest.mark.parametrize("name", SOURCES)
def test_a_file_gives_the_model_it_was_made_of(name: str, tmp_path: Path) -> None:
    source = SOURCES[name]
    model = source_model(source)
    write_source(tmp_path / "tiny.gguf", source, model)
    loaded = load_model(tmp_path / "tiny.gguf", device="cpu", progress=False)
    assert type(loaded.model) is type(model)
    found, expected = logits(loaded.model), logits(model)
    assert float(expected.std()) > 0.5
    assert torch.allclose(found, expected, atol=2e-5)
    assert (
        loaded.tokenizer.decode(loaded.tokenizer("the in")["input_ids"], skip_special_tokens=True).strip() == "the in"
    )


@pytest.mark.parametrize("name", [name for name in SOURCES if name in FAMILIES])
def test_tables_agree_with_what_transformers_reads(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # For Qwen 3, transformers' reader supports only the default head_dim.
    source = SOURCES[name]
    if name == "qwen3":
        source = dataclasses.replace(source, settings={"head_dim": 128})
    write_source(tmp_path / "tiny.gguf", source, source_model(source))
    ours = load_model(tmp_path / "tiny.gguf", device="cpu", progress=False, cache_dir=tmp_path / "ours")
    monkeypatch.setattr(gguf_conversion, "FAMILIES", {})
    theirs = load_model(tmp_path / "tiny.gguf", device="cpu", progress=False, cache_dir=tmp_path / "theirs")
    assert torch.equal(logits(ours.model), logits(theirs.model))
    assert type(ours.tokenizer) is type(theirs.tokenizer)
    for text in ("the in of", "  The  needle\n", "日本 <|im_end|>"):
        assert ours.tokenizer(text)["input_ids"] == theirs.tokenizer(text)["input_ids"]


def test_architectures_without_a_table_are_read_by_transformers() -> None:
    assert set(SOURCES) <= set(supported_architectures())
    assert {"general", "tokenizer", "t5"}.isdisjoint(supported_architectures())


def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path, written: SimpleNamespace) -> None:
    data = written.path.read_bytes().replace(b"\x05\0\0\0\0\0\0\0llama", b"\x05\0\0\0\0\0\0\0rwkv7")
    (tmp_path / "other.gguf").write_bytes(data)
    with pytest.raises(ModelLoadError, match=r"architecture 'rwkv7'.*gemma3, .*llama, .*qwen3"):
        load_model(tmp_path / "other.gguf")


# --- rotary scaling ---


def llama3_factors(theta: float, head: int, factor: float) -> np.ndarray:
    """Rotary factors, computed as in `LlamaModel.generate_extra_tensors` of llama.cpp's converter."""
    found = []
    for number in range(0, head, 2):
        wavelength = 2 * math.pi * theta ** (number / head)
        if wavelength < 8192 / 4:
            found.append(1.0)
        elif wavelength > 8192:
            found.append(factor)
        else:
            smooth = (8192 / wavelength - 1) / 3
            found.append(1 / ((1 - smooth) / factor + smooth))
    return np.array(found, dtype=np.float32)


def test_rotary_factors_of_llama_3(tmp_path: Path) -> None:
    rope = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    rope |= {"original_max_position_embeddings": 8192, "rope_theta": 5000.0}
    source = SOURCES["llama"]
    source = dataclasses.replace(source, settings={**source.settings, "rope_parameters": rope})
    model = source_model(source)
    factors = llama3_factors(5000.0, 32, 8.0)
    write_source(tmp_path / "tiny.gguf", source, model, extra={"rope_freqs.weight": factors})
    loaded = load_model(tmp_path / "tiny.gguf", device="cpu", progress=False)
    assert torch.allclose(logits(loaded.model), logits(model), atol=1e-5)
    assert loaded.model.config.rope_parameters["rope_type"] == "llama3"

    write_source(tmp_path / "strange.gguf", source, model, extra={"rope_freqs.weight": factors * 1.5})
    with pytest.raises(ModelLoadError, match="rotary factors"):
        load_model(tmp_path / "strange.gguf", progress=False)


@pytest.mark.parametrize(
    ("settings", "values"),
    [
        ({"rope_type": "linear", "factor": 4.0}, {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}),
        (
            {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            {
                "rope.scaling.type": "yarn",
                "rope.scaling.factor": 4.0,
                "rope.scaling.original_context_length": 32,
            },
        ),
    ],
)
def test_rotary_scaling(settings: dict[str, Any], values: dict[str, Any], tmp_path: Path) -> None:
    source = Source("qwen2", "Qwen2Config", {"rope_parameters": {**settings, "rope_theta": 5000.0}}, values=values)
    model = source_model(source)
    write_source(tmp_path / "tiny.gguf", source, model)
    loaded = load_model(tmp_path / "tiny.gguf", device="cpu", progress=False)
    assert torch.allclose(logits(loaded.model), logits(model), atol=1e-5)
    plain = source_model(SOURCES["qwen2"])
    assert not torch.allclose(logits(plain), logits(model), atol=1e-3)


def test_rotary_scaling_that_is_not_known_is_refused(tmp_path: Path) -> None:
    source = dataclasses.replace(SOURCES["phi3"], values={"rope.scaling.type": "longrope"})
    write_source(tmp_path / "tiny.gguf", source, source_model(source))
    with pytest.raises(ModelLoadError, match="longrope"):
        load_model(tmp_path / "tiny.gguf", progress=False)


def test_weights_that_the_model_does_not_use_are_refused(tmp_path: Path) -> None:
    source, extra = SOURCES["starcoder2"], {"blk.0.attn_q_norm.weight": np.ones(16, np.float32)}
    write_source(tmp_path / "tiny.gguf", source, source_model(source), extra=extra)
    with pytest.raises(ModelLoadError, match="so its outputs would be wrong"):
        load_model(tmp_path / "tiny.gguf", progress=False)


# --- damaged files ---


@pytest.mark.parametrize("kept", [0, 3, 30, 3000, 60000, -1000])
def test_a_truncated_file_is_refused(kept: int, written: SimpleNamespace, tmp_path: Path, cache: Path) -> None:
    path = tmp_path / "part.gguf"
    path.write_bytes(written.path.read_bytes()[:kept])
    with pytest.raises(ModelLoadError, match=r"part\.gguf"):
        load_model(path, progress=False)
    assert not [entry for entry in cache.glob("*") if entry.suffix != ".lock"]


def test_a_text_file_is_not_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("not a model, but long enough to have a header")
    with pytest.raises(ModelLoadError, match="not a GGUF file"):
        load_model(tmp_path / "text.gguf")
    (tmp_path / "model.bin").write_text("anything")
    with pytest.raises(ModelLoadError, match=r"is a file\. Give a \.gguf file"):
        load_model(tmp_path / "model.bin")


def test_a_file_without_a_tokenizer_is_refused(written: SimpleNamespace, tmp_path: Path) -> None:
    write_source(tmp_path / "bare.gguf", SOURCES["llama"], written.model, tokenizer=False)
    with pytest.raises(ModelLoadError, match="has no tokenizer"):
        load_model(tmp_path / "bare.gguf", progress=False)


def test_a_part_of_a_split_model_is_refused(written: SimpleNamespace, tmp_path: Path) -> None:
    parts = [copied(written, tmp_path / "split" / f"big-0000{number}-of-00003.gguf") for number in (1, 2, 3)]
    for given in (parts[1], tmp_path / "split"):
        with pytest.raises(ModelLoadError, match=r"part [12] of 3 .*llama-gguf-split --merge"):
            load_model(given, progress=False)


def test_a_file_that_changes_while_it_is_read_is_refused(written: SimpleNamespace, tmp_path: Path, cache: Path) -> None:
    path = copied(written, tmp_path / "tiny.gguf")

    def replace(stage: str, fraction: float) -> None:
        if "tokenizer" in stage:
            path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\0")

    with pytest.raises(ModelLoadError, match="changed while it was read"):
        load_model(path, progress=replace)
    assert not [entry for entry in cache.glob("*") if entry.suffix != ".lock"]


# --- the cache ---


def test_a_file_is_converted_once_and_anew_when_it_is_replaced(written: SimpleNamespace, tmp_path: Path) -> None:
    path, stages = copied(written, tmp_path / "tiny.gguf"), []

    def load() -> Any:
        return load_model(path, device="cpu", progress=lambda stage, fraction: stages.append(stage))

    first = load()
    assert any("weights" in stage for stage in stages)
    stages.clear()
    assert torch.equal(logits(load().model), logits(first.model))
    assert stages == []
    kept = os.stat(path)
    other = source_model(SOURCES["llama"])
    with torch.no_grad():
        other.lm_head.weight.mul_(2)
    write_source(path, SOURCES["llama"], other)
    os.utime(path, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert path.stat().st_size == kept.st_size
    assert torch.equal(logits(load().model), logits(other))
    assert load().revision != first.revision


def test_a_damaged_copy_is_converted_again(written: SimpleNamespace, cache: Path) -> None:
    expected = logits(load_model(written.path, device="cpu", progress=False).model)
    (weights,) = cache.glob("*/model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-100] ^= 1
    weights.write_bytes(data)
    assert torch.equal(logits(load_model(written.path, device="cpu", progress=False).model), expected)


def test_a_full_disk_is_explained(written: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    usage = SimpleNamespace(total=1, used=1, free=1000)
    monkeypatch.setattr(converted.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(ModelLoadError, match=r"needs 0\.10 GB .*CAUSAL_TRACER_CACHE"):
        load_model(written.path, progress=False)


def test_the_gguf_package_is_named_where_it_is_missing(
    written: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest))
    with pytest.raises(ModelLoadError, match="pip install gguf"):
        load_model(written.path, progress=False)


# --- files and folders that users name ---


def test_results_name_the_file_and_its_quantisation(written: SimpleNamespace, tmp_path: Path) -> None:
    for given in (written.path, str(written.path), written.path.parent):
        tracer = CausalTracer.from_pretrained(given, device="cpu", progress=False)
        flow = tracer.trace("the in of the in", "of", samples=1)
        assert flow.settings.dtype == "float32 from GGUF F32"
        assert flow.settings.model == Path(given).name
        assert len(flow.settings.revision or "") == 12
        assert str(tmp_path) not in json.dumps(flow.to_dict())


@pytest.mark.parametrize(
    ("stated", "words"), [(15, "Q4_K_M"), (7, "Q8_0"), (None, "Q8_0"), (1024, "Q8_0"), (999, "Q8_0")]
)
def test_quantisation_is_the_stated_one_or_that_of_most_weights(stated: int | None, words: str, tmp_path: Path) -> None:
    import gguf

    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    if stated is not None:
        writer.add_file_type(stated)
    kind = gguf.GGMLQuantizationType.Q8_0
    writer.add_tensor("a.weight", gguf.quants.quantize(np.ones((64, 64), np.float32), kind), raw_dtype=kind)
    writer.add_tensor("b.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert read_gguf_header(tmp_path / "tiny.gguf").quantisation == words


def test_safetensors_win_over_a_gguf_file_beside_them(written: SimpleNamespace, tmp_path: Path) -> None:
    other = source_model(SOURCES["qwen2"])
    other.save_pretrained(tmp_path / "both")
    load_model(written.path, device="cpu", progress=False).tokenizer.save_pretrained(tmp_path / "both")
    copied(written, tmp_path / "both" / "tiny.gguf")
    loaded = load_model(tmp_path / "both", device="cpu")
    assert type(loaded.model) is type(other)
    assert getattr(loaded.model.config, "gguf_quantisation", None) is None


def test_a_folder_with_several_files_lists_them(written: SimpleNamespace, tmp_path: Path) -> None:
    for name in ("a-Q4_K_M.gguf", "a-Q8_0.gguf"):
        copied(written, tmp_path / "several" / name)
    with pytest.raises(ModelLoadError, match=r"matches 2 GGUF files \(a-Q4_K_M\.gguf, a-Q8_0\.gguf\)\. Give the path"):
        load_model(tmp_path / "several")
    (tmp_path / "several" / "a-Q8_0.gguf").rename(tmp_path / "several" / "mmproj-a.gguf")
    assert load_model(tmp_path / "several", device="cpu", progress=False).title == "a-Q4_K_M (F32)"


def test_a_local_file_has_no_revision(written: SimpleNamespace) -> None:
    with pytest.raises(SettingsError, match=r"local file and has no revisions \(given: revision='main'\)"):
        load_model(written.path, revision="main")


@pytest.mark.parametrize(
    ("wanted", "chosen"),
    [("m.Q4_0.gguf", "m.Q4_0.gguf"), ("Q4_K_M", "sub/m.Q4_K_M.gguf"), ("sub/m.Q4_K_M.gguf", "sub/m.Q4_K_M.gguf")],
)
def test_a_file_is_named_whole_or_by_a_part(wanted: str, chosen: str) -> None:
    files = ["README.md", "m.Q4_0.gguf", "sub/m.Q4_K_M.gguf", "mmproj-m.gguf"]
    assert choose_gguf(files, wanted, "owner/repo", "") == chosen
    with pytest.raises(ModelLoadError, match=r"no GGUF file 'Q9'.*m\.Q4_0\.gguf, sub/m\.Q4_K_M\.gguf"):
        choose_gguf(files, "Q9", "owner/repo", "")
    with pytest.raises(ModelLoadError, match="matches 2 GGUF files"):
        choose_gguf(files, "Q4", "owner/repo", "")


# --- the hub ---

COMMIT = "c" * 40


@pytest.fixture
def repository(written: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """A fake hub: owner/repo has two GGUF files and owner/single has one. Downloads are recorded."""
    asked: list[tuple[str, str]] = []
    listings = {"owner/repo": ["a.Q4_K_M.gguf", "a.Q8_0.gguf", "README.md"], "owner/single": ["a.Q8_0.gguf"]}

    def fail(*args: Any, **settings: Any) -> Any:
        raise OSError("owner/repo does not appear to have a file named config.json")

    def listed(repo: str, *, revision: str) -> list[str]:
        return listings[repo]

    def download(repo: str, file: str, *, revision: str, cache_dir: Any) -> str:
        asked.append((file, revision))
        return str(copied(written, tmp_path / "hub" / "snapshots" / COMMIT / file))

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("transformers.AutoConfig.from_pretrained", _but_for_folders(fail))
    monkeypatch.setattr("huggingface_hub.list_repo_files", listed)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    return asked


def _but_for_folders(otherwise: Any) -> Any:
    from transformers import AutoConfig

    usual = AutoConfig.from_pretrained

    def load(source: Any, **settings: Any) -> Any:
        return usual(source, **settings) if Path(source).is_dir() else otherwise(source)

    return load


@pytest.mark.parametrize(
    ("given", "file"),
    [
        ("owner/repo:a.Q4_K_M.gguf", "a.Q4_K_M.gguf"),
        ("owner/repo:Q8_0", "a.Q8_0.gguf"),
        ("owner/single", "a.Q8_0.gguf"),
    ],
)
def test_a_hub_repository_with_gguf_files(
    given: str, file: str, repository: list[tuple[str, str]], written: SimpleNamespace
) -> None:
    loaded = load_model(given, revision="v1", device="cpu", progress=False)
    assert repository == [(file, "v1")]
    assert (loaded.name, loaded.revision) == (f"{given.split(':')[0]}:{file}", COMMIT)
    assert torch.equal(logits(loaded.model), logits(written.model))


def test_a_hub_repository_with_several_files_lists_them(repository: list[tuple[str, str]]) -> None:
    with pytest.raises(ModelLoadError, match=r"matches 2 GGUF files .*such as owner/repo:FILE"):
        load_model("owner/repo")
    with pytest.raises(ModelLoadError, match=r"no GGUF file 'Q2'.*a\.Q4_K_M\.gguf, a\.Q8_0\.gguf"):
        load_model("owner/repo:Q2")
    assert repository == []


def test_a_hub_repository_that_is_not_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelLoadError, match=r"list of files of 'owner/none:a\.gguf' could not be loaded") as caught:
        load_model("owner/none:a.gguf", cache_dir=tmp_path)
    assert "HF_HUB_OFFLINE is set" in str(caught.value)


def test_a_downloaded_file_is_found_without_the_hub(
    written: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    stored = tmp_path / "hub" / "models--owner--repo"
    copied(written, stored / "snapshots" / COMMIT / "a.Q8_0.gguf")
    (stored / "refs").mkdir()
    (stored / "refs" / "main").write_text(COMMIT)
    found = hub.download_gguf("owner/repo", "Q8_0", None, tmp_path / "hub")
    assert (found.file, found.commit) == ("a.Q8_0.gguf", COMMIT)


@pytest.mark.parametrize("name", ["owner/repo/a.gguf", "no such file.gguf"])
def test_invalid_names_are_explained(name: str) -> None:
    with pytest.raises(ModelLoadError, match=r"owner/repo:file\.gguf"):
        load_model(name)


# --- the app's model list ---


def test_the_app_knows_a_file_before_it_is_loaded(written: SimpleNamespace, tmp_path: Path) -> None:
    path = copied(written, tmp_path / "tiny.gguf")
    parameters = sum(parameter.numel() for parameter in written.model.parameters())
    for given, name in ((str(path), "tiny.gguf"), (str(tmp_path), tmp_path.name)):
        require_safetensors(given)
        assert public_name(given) == name
        assert stored_parameters(given) == parameters
        before = stored_identity(given)
        assert before is not None
        os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
        assert stored_identity(given) != before


def test_the_app_loads_a_file_and_says_nothing_of_its_folder(written: SimpleNamespace, tmp_path: Path) -> None:
    path = copied(written, tmp_path / "tiny.gguf")
    slot = ModelSlot(str(path), load_tracer)
    slot.start()
    assert slot.wait(60)
    assert slot.status.state == "ready", slot.status.error
    assert (slot.status.model, slot.status.title) == ("tiny.gguf", "tiny (F32)")
    assert slot.hub_revision is None
    path.write_bytes(path.read_bytes()[:50_000])
    slot = ModelSlot(str(path), load_tracer)
    slot.start()
    assert slot.wait(60)
    assert slot.status.state == "failed"
    assert "tiny.gguf ends early" in slot.status.error
    assert str(tmp_path) not in slot.status.error


def test_errors_are_causal_tracer_errors(tmp_path: Path) -> None:
    (tmp_path / "no.gguf").mkdir()
    with pytest.raises(CausalTracerError, match="has no config"):
        load_model(tmp_path / "no.gguf")


# --- real files ---


@pytest.mark.model
@pytest.mark.nightly
@pytest.mark.parametrize("name", ["embedded", "embedded:smollm2-135m-instruct"])
def test_a_real_file_gives_the_embedded_model(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = find_embedded_model(name)
    if importlib.util.find_spec(embedded.parts[0][0]) is None:
        pytest.skip(f"{embedded.parts[0][0]} is not installed")
    path = tmp_path / "real.gguf"
    path.write_bytes(b"".join(part.read_bytes() for part in _source_files(embedded)))
    loaded = load_model(path, device="cpu", progress=False)
    monkeypatch.delenv(converted.CACHE_VARIABLE)
    reference = load_model(embedded_model_folder(name), device="cpu", progress=False)
    text = "The Space Needle is located in the city of"
    ids = loaded.tokenizer(text, return_tensors="pt")
    assert torch.equal(ids["input_ids"], reference.tokenizer(text, return_tensors="pt")["input_ids"])
    with torch.no_grad():
        assert torch.equal(loaded.model(**ids).logits, reference.model(**ids).logits)
    assert loaded.model.config.gguf_quantisation == ("Q4_K_M" if name == "embedded" else "Q4_1")


@pytest.mark.model
@pytest.mark.nightly
def test_transformers_reads_a_real_file_as_the_table_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    embedded = find_embedded_model("embedded:smollm2-135m-instruct")
    if importlib.util.find_spec(embedded.parts[0][0]) is None:
        pytest.skip(f"{embedded.parts[0][0]} is not installed")
    (path,) = _source_files(embedded)
    ours = load_model(path, device="cpu", progress=False, cache_dir=tmp_path / "ours")
    monkeypatch.setattr(gguf_conversion, "FAMILIES", {})
    theirs = load_model(path, device="cpu", progress=False, cache_dir=tmp_path / "theirs")
    assert torch.equal(logits(ours.model), logits(theirs.model))
