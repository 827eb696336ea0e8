"""Embedded models: conversion equal to transformers' own, and a cache that survives damage, kills and races."""

import dataclasses
import errno
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from causal_tracer.errors import EmbeddedModelError, ModelLoadError
from causal_tracer.loading import embedded, gguf_conversion
from causal_tracer.loading.embedded import EmbeddedModel, embedded_model_folder, find_embedded_model

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "The Space Needle is located in the city of",
    " leading and  double   spaces\n\n\tand a tab",
    "日本語 العربية 👩‍🚀 naïve 12345",
    "<bos>special <|im_start|>user tokens<|im_end|>",
    "",
]
LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD, FFN, WINDOW = 6, 64, 4, 2, 32, 96, 8


def gemma_vocabulary() -> tuple[list[str], list[int]]:
    control = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
    pieces = ["  ", "▁", *"abcdefghijklmnopqrstuvwxyzTSN", "th", "he", "▁th", "▁the", "in", "▁in", "▁is", "of"]
    tokens = control + [f"<0x{byte:02X}>" for byte in range(256)] + pieces
    return tokens, [3] * 4 + [4] + [6] * 256 + [1] * len(pieces)


def llama_vocabulary() -> tuple[list[str], list[int], list[str]]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    merges = ["Ġ t", "h e", "Ġt he", "i n", "Ġ in", "o f", "Ġ of"]
    tokens = control + list(bytes_to_unicode().values()) + [merge.replace(" ", "") for merge in merges]
    return tokens, [3] * 3 + [1] * (len(tokens) - 3), merges


def write_gguf(path: Path, architecture: str, *, tied: bool = True, extra: str | None = None) -> None:
    """A small random model with F32 and Q8_0 tensors and a working tokenizer."""
    import gguf

    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(128)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FFN)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(50000.0)
    if architecture == "gemma3":
        tokens, types = gemma_vocabulary()
        writer.add_key_length(HEAD)
        writer.add_sliding_window(WINDOW)
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
        writer.add_bos_token_id(2)
        writer.add_eos_token_id(1)
        writer.add_unk_token_id(3)
        writer.add_pad_token_id(0)
        writer.add_add_bos_token(True)
    else:
        tokens, types, merges = llama_vocabulary()
        writer.add_vocab_size(len(tokens))
        writer.add_rope_dimension_count(HEAD)
        writer.add_tokenizer_model("gpt2")
        writer.add_token_merges(merges)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_add_bos_token(False)
        writer.add_chat_template("{% for message in messages %}{{ message['content'] }}{% endfor %}")
    writer.add_add_space_prefix(False)
    writer.add_token_list(tokens)
    writer.add_token_types(types)

    random = np.random.RandomState(0)

    def add(name: str, *shape: int, quantise: bool = True) -> None:
        data = random.randn(*shape).astype(np.float32)
        if quantise:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, data)

    add("token_embd.weight", len(tokens), HIDDEN)
    add("output_norm.weight", HIDDEN, quantise=False)
    if not tied:
        add("output.weight", len(tokens), HIDDEN)
    for layer in range(LAYERS):
        block = f"blk.{layer}."
        add(block + "attn_q.weight", HEADS * HEAD, HIDDEN)
        add(block + "attn_k.weight", KV_HEADS * HEAD, HIDDEN, quantise=False)
        add(block + "attn_v.weight", KV_HEADS * HEAD, HIDDEN)
        add(block + "attn_output.weight", HIDDEN, HEADS * HEAD)
        add(block + "ffn_gate.weight", FFN, HIDDEN)
        add(block + "ffn_up.weight", FFN, HIDDEN)
        add(block + "ffn_down.weight", HIDDEN, FFN)
        norms = {"attn_norm": HIDDEN, "ffn_norm": HIDDEN}
        if architecture == "gemma3":
            norms |= {"post_attention_norm": HIDDEN, "post_ffw_norm": HIDDEN}
            norms |= {"attn_q_norm": HEAD, "attn_k_norm": HEAD}
        for norm, size in norms.items():
            add(f"{block}{norm}.weight", size, quantise=False)
    if extra:
        add(extra, HIDDEN, quantise=False)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def nothing(stage: str, fraction: float) -> None:
    """A progress callback that does nothing."""


def assert_equal_to_transformers(folder: Path, gguf: Path, logits_too: bool = True) -> None:
    """Check that config, weights, tokenizer and logits equal those that transformers reads from the GGUF file."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ours = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    assert type(ours) is type(theirs)
    first, second = ours.state_dict(), theirs.state_dict()
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    ignored = {"architectures", "_name_or_path", "_model_name_or_path", "quantization_config"}
    ours_config, theirs_config = (
        {key: value for key, value in model.config.to_dict().items() if key not in ignored} for model in (ours, theirs)
    )
    assert ours_config == theirs_config
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    reference = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    assert type(tokenizer) is type(reference)
    assert tokenizer.special_tokens_map == reference.special_tokens_map
    assert tokenizer.chat_template == reference.chat_template
    assert tokenizer.padding_side == reference.padding_side
    for text in TEXTS:
        for special in (True, False):
            encoded, expected = (
                one(text, add_special_tokens=special, return_offsets_mapping=True) for one in (tokenizer, reference)
            )
            assert encoded.data == expected.data
            assert tokenizer.decode(encoded["input_ids"]) == reference.decode(expected["input_ids"])
    if logits_too:
        ids = torch.tensor([[5, 70, 71, 72, 90, 91, 92, 93, 100, 101, 102, 103]])
        with torch.no_grad():
            assert torch.equal(ours.eval()(ids).logits, theirs.eval()(ids).logits)


# --- conversion ---


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("architecture", ["gemma3", "llama"])
def test_conversion_equals_transformers(tmp_path: Path, architecture: str, tied: bool) -> None:
    source, folder = tmp_path / "tiny.gguf", tmp_path / "made"
    write_gguf(source, architecture, tied=tied)
    folder.mkdir()
    seen: list[float] = []
    gguf_conversion.convert_gguf(source, folder, lambda stage, fraction: seen.append(fraction))
    config = json.loads((folder / "config.json").read_text())
    assert "quantization_config" not in config
    assert str(tmp_path) not in (folder / "config.json").read_text()
    assert str(tmp_path) not in (folder / "tokenizer_config.json").read_text()
    assert config["tie_word_embeddings"] is tied
    assert seen == sorted(seen)
    assert 0 < seen[0] <= seen[-1] <= 1
    assert_equal_to_transformers(folder, source)


@pytest.mark.parametrize(("architecture", "first"), [("gemma3", [2]), ("llama", [])])
def test_tokenizer_keeps_the_flags_of_the_file(tmp_path: Path, architecture: str, first: list[int]) -> None:
    from transformers import AutoTokenizer

    write_gguf(tmp_path / "tiny.gguf", architecture)
    folder = tmp_path / "made"
    folder.mkdir()
    gguf_conversion.convert_gguf(tmp_path / "tiny.gguf", folder, nothing)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    bare = tokenizer("the", add_special_tokens=False)["input_ids"]
    assert tokenizer("the")["input_ids"] == first + bare
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == ((2, 1) if architecture == "gemma3" else (1, 2))
    assert (tokenizer.chat_template is not None) is (architecture == "llama")


def test_conversion_in_small_pieces_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tmp_path / "tiny.gguf"
    write_gguf(source, "gemma3")
    hashes = []
    for piece in (gguf_conversion._PIECE, 1000):
        monkeypatch.setattr(gguf_conversion, "_PIECE", piece)
        folder = tmp_path / str(piece)
        folder.mkdir()
        gguf_conversion.convert_gguf(source, folder, nothing)
        hashes.append(hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest())
    assert hashes[0] == hashes[1]


def test_unknown_tensor_is_an_error(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", "llama", extra="blk.0.attn_q.bias")
    with pytest.raises(ModelLoadError, match=r"blk\.0\.attn_q\.bias"):
        gguf_conversion.convert_gguf(tmp_path / "tiny.gguf", tmp_path, nothing)


# --- the cache ---


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A package on disk that contains a tiny model in two parts, and that fails when imported."""
    home = tmp_path_factory.mktemp("packages")
    folder = home / "tiny_gguf_package"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('nobody should import this package')\n")
    write_gguf(home / "tiny.gguf", "llama")
    data = (home / "tiny.gguf").read_bytes()
    (folder / "part0").write_bytes(data[:5000])
    (folder / "part1").write_bytes(data[5000:])
    model = EmbeddedModel(
        name="embedded:tiny",
        aliases=("embedded",),
        title="Tiny",
        pip_command="pip install tiny-gguf-package==1.2.3",
        parts=(("tiny_gguf_package", "part0"), ("tiny_gguf_package", "part1")),
        sha256=hashlib.sha256(data).hexdigest(),
        license="none",
        license_url="https://example.com/license",
        notice="made by a test",
        space_needed=1_000_000,
    )
    return SimpleNamespace(home=home, gguf=home / "tiny.gguf", model=model)


@pytest.fixture
def tiny(package: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> EmbeddedModel:
    """The tiny model, registered in place of the real ones."""
    monkeypatch.syspath_prepend(str(package.home))
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", (package.model,))
    return package.model


def entries(cache: Path) -> set[str]:
    """The files in the cache, except lock files."""
    return {path.name for path in cache.iterdir() if path.suffix != ".lock"} if cache.exists() else set()


def test_first_use_converts_and_second_does_not(
    tiny: EmbeddedModel, package: SimpleNamespace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "new" / "cache"
    seen: list[tuple[str, float]] = []
    with caplog.at_level(logging.INFO, "causal_tracer"):
        folder = embedded_model_folder(
            "embedded", cache_dir=cache, progress=lambda stage, fraction: seen.append((stage, fraction))
        )
    assert caplog.text.count("Converting Tiny into") == 1
    fractions = [fraction for _, fraction in seen]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1
    assert entries(cache) == {"tiny"}
    assert_equal_to_transformers(folder, package.gguf)
    assert tiny.license_url in (folder / "NOTICE.txt").read_text()
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == {path.name for path in folder.iterdir()} - {"manifest.json"}

    seen.clear()
    caplog.clear()
    again = embedded_model_folder(
        "embedded:tiny", cache_dir=cache, progress=lambda stage, fraction: seen.append((stage, fraction))
    )
    assert again == folder
    assert seen == []
    assert caplog.text == ""


def test_environment_variable_names_the_cache(
    tiny: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CAUSAL_TRACER_CACHE", str(tmp_path / "mine"))
    assert embedded_model_folder("embedded") == tmp_path / "mine" / "tiny"


def flip_a_byte(folder: Path) -> None:
    path = folder / "model.safetensors"
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 1000)


def lose_a_file(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def lose_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def spoil_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"files": ')


def list_as_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("[1]")


def age_the_manifest(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"converter": 0}))


def other_source(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"source_sha256": "0" * 64}))


def file_in_its_place(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.write_text("not a folder")


@pytest.mark.parametrize(
    "damage",
    [
        flip_a_byte,
        truncate,
        lose_a_file,
        lose_the_manifest,
        spoil_the_manifest,
        list_as_manifest,
        age_the_manifest,
        other_source,
        file_in_its_place,
    ],
)
def test_damaged_copy_is_rebuilt_with_a_warning(
    damage: object, tiny: EmbeddedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = embedded_model_folder("embedded", cache_dir=tmp_path)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert callable(damage)
    damage(folder)
    with caplog.at_level(logging.WARNING, "causal_tracer"):
        assert embedded_model_folder("embedded", cache_dir=tmp_path) == folder
    assert "Tiny is converted again: " in caplog.text
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert entries(tmp_path) == {"tiny"}
    caplog.clear()
    embedded_model_folder("embedded", cache_dir=tmp_path)
    assert caplog.text == ""


def test_stale_temporary_folder_is_removed(
    tiny: EmbeddedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stale = tmp_path / ".tiny.partial-abc" / "made"
    stale.mkdir(parents=True)
    (stale / "model.safetensors").write_bytes(b"half")
    (tmp_path / ".tinyother.partial-abc").mkdir()
    embedded_model_folder("embedded", cache_dir=tmp_path)
    assert entries(tmp_path) == {"tiny", ".tinyother.partial-abc"}
    assert "left by a conversion that was killed" in caplog.text


def test_an_interrupt_leaves_nothing(tiny: EmbeddedModel, tmp_path: Path) -> None:
    def interrupt(stage: str, fraction: float) -> None:
        if "weights" in stage:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded_model_folder("embedded", cache_dir=tmp_path, progress=interrupt)
    assert entries(tmp_path) == set()
    embedded_model_folder("embedded", cache_dir=tmp_path)


def test_package_with_another_file_is_refused(
    tiny: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", (dataclasses.replace(tiny, sha256="0" * 64),))
    with pytest.raises(EmbeddedModelError, match=r"SHA-256.*--force-reinstall.*tiny-gguf-package==1\.2\.3"):
        embedded_model_folder("embedded", cache_dir=tmp_path)
    assert entries(tmp_path) == set()


def test_package_without_its_file_is_refused(
    tiny: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = dataclasses.replace(tiny, parts=(("tiny_gguf_package", "gone"),))
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", (broken,))
    with pytest.raises(EmbeddedModelError, match=r"gone is missing.*--force-reinstall"):
        embedded_model_folder("embedded", cache_dir=tmp_path)


def test_missing_package_names_the_command(
    tiny: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = dataclasses.replace(tiny, parts=(("no_such_gguf_package", "x"),))
    monkeypatch.setattr(embedded, "EMBEDDED_MODELS", (absent,))
    with pytest.raises(EmbeddedModelError, match=r"Run: pip install tiny-gguf-package==1\.2\.3"):
        embedded_model_folder("embedded", cache_dir=tmp_path)


def test_missing_gguf_library_names_the_command(
    tiny: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "gguf" else find(name, *rest))
    with pytest.raises(EmbeddedModelError, match="Run: pip install gguf"):
        embedded_model_folder("embedded", cache_dir=tmp_path)


def test_a_converted_copy_needs_no_package(
    tiny: EmbeddedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = embedded_model_folder("embedded", cache_dir=tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda *rest: None)
    assert embedded_model_folder("embedded", cache_dir=tmp_path) == folder


def full_disk_while_writing_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = gguf_conversion._pieces

    def fail(path, tensor, *rest):
        if tensor.name == "blk.3.attn_q.weight":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pieces(path, tensor, *rest)

    monkeypatch.setattr(gguf_conversion, "_pieces", fail)


def full_disk_while_writing_the_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerFast

    def fail(*args, **settings):
        raise Exception("No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", fail)


def full_disk_before_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(total=1, used=1, free=1000))


@pytest.mark.parametrize(
    "fill",
    [
        full_disk_while_writing_weights,
        full_disk_while_writing_the_tokenizer,
        full_disk_before_the_start,
    ],
)
def test_full_disk_leaves_no_half_copy(fill: object, tiny: EmbeddedModel, tmp_path: Path) -> None:
    assert callable(fill)
    with pytest.MonkeyPatch.context() as patch:
        fill(patch)
        with pytest.raises(EmbeddedModelError, match=r"needs 0\.00 GB .*CAUSAL_TRACER_CACHE") as caught:
            embedded_model_folder("embedded", cache_dir=tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "full" in str(caught.value)
    assert entries(tmp_path) == set()
    embedded_model_folder("embedded", cache_dir=tmp_path)


def test_a_cache_that_is_a_file_is_explained(tiny: EmbeddedModel, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("")
    with pytest.raises(EmbeddedModelError, match="could not be stored"):
        embedded_model_folder("embedded", cache_dir=tmp_path / "cache")


def test_unknown_embedded_name_lists_the_known() -> None:
    with pytest.raises(EmbeddedModelError, match=r"'embedded'.*gemma-3-270m.*smollm2"):
        find_embedded_model("embedded:gpt-5")


# --- several processes ---

CHILD = """
import json, logging, sys
from causal_tracer.loading import embedded
fields, cache, stop_at = json.loads(sys.argv[1]), sys.argv[2], sys.argv[3]
fields["parts"] = [tuple(part) for part in fields["parts"]]
embedded.EMBEDDED_MODELS = (embedded.EmbeddedModel(**fields),)
logging.basicConfig(level=logging.INFO)
last = None
def progress(stage, fraction):
    global last
    if stage != last:
        last = stage
        print(stage, flush=True)
        if stop_at and stop_at in stage:
            sys.stdin.readline()
print(embedded.embedded_model_folder("embedded", cache_dir=cache, progress=progress), flush=True)
"""


def start(package: SimpleNamespace, cache: Path, stop_at: str) -> subprocess.Popen[str]:
    """A process that converts a model, prints each stage, and waits for a line of input at the stage `stop_at`."""
    fields = json.dumps(dataclasses.asdict(package.model))
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, fields, str(cache), stop_at],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(package.home)])},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def read_until(process: subprocess.Popen[str], words: str) -> None:
    for line in process.stdout:
        if words in line:
            return
    pytest.fail(f"the process ended before {words!r}: {process.stderr.read()}")


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["checking", "weights", "tokenizer", "hashing"])
def test_killed_while_converting(stage: str, package: SimpleNamespace, tiny: EmbeddedModel, tmp_path: Path) -> None:
    with start(package, tmp_path, stage) as process:
        read_until(process, stage)
        process.send_signal(signal.SIGKILL)
    assert len(entries(tmp_path)) == 1
    assert "tiny" not in entries(tmp_path)
    folder = embedded_model_folder("embedded", cache_dir=tmp_path)
    assert entries(tmp_path) == {"tiny"}
    assert (folder / "manifest.json").is_file()


@pytest.mark.slow
def test_two_processes_convert_once(package: SimpleNamespace, tmp_path: Path) -> None:
    with start(package, tmp_path, "weights") as first:
        read_until(first, "weights")
        with start(package, tmp_path, "") as second:
            read_until(second, "waiting for another process")
            output, log = first.communicate("go on\n", timeout=60)
            waited, waiting_log = second.communicate(timeout=60)
    assert (first.returncode, second.returncode) == (0, 0)
    assert str(tmp_path / "tiny") in output
    assert str(tmp_path / "tiny") in waited
    assert (log + waiting_log).count("Converting Tiny into") == 1
    assert entries(tmp_path) == {"tiny"}


# --- the real models; converted once, in the user's own cache folder ---


@pytest.fixture(scope="session", params=["embedded", "embedded:smollm2-135m-instruct"])
def real(request: pytest.FixtureRequest) -> SimpleNamespace:
    model = find_embedded_model(request.param)
    package = model.parts[0][0]
    if importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return SimpleNamespace(model=model, folder=embedded_model_folder(request.param))


@pytest.mark.nightly
def test_real_model_equals_transformers(real: SimpleNamespace, tmp_path: Path) -> None:
    gguf = tmp_path / "model.gguf"
    embedded._assemble(embedded._source_files(real.model), gguf, real.model, nothing)
    assert_equal_to_transformers(real.folder, gguf, logits_too=False)


@pytest.mark.model
@pytest.mark.nightly
@pytest.mark.parametrize(
    ("prompt", "answer", "probability"),
    [
        ("The Space Needle is located in the city of", " Seattle", 0.4722),
        ("Steve Jobs was the founder of", " Apple", 0.93),
    ],
)
def test_gemma_knows_facts(prompt: str, answer: str, probability: float) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = embedded_model_folder("embedded")
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    (answer_id,) = tokenizer(answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    assert logits.softmax(-1)[answer_id].item() == pytest.approx(probability, abs=0.005)
