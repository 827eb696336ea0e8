"""load_model: embedded, local and hub names, settings, and error messages."""

import json
import socket
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from causal_tracer.errors import EmbeddedModelError, ModelLoadError, SettingsError
from causal_tracer.loading import hub, models
from causal_tracer.loading.embedded import EMBEDDED_MODELS
from causal_tracer.loading.models import LoadedModel, load_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Llama, in bfloat16, with a tokenizer, saved with save_pretrained."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("models") / "small-llama"
    words = ["<unk>", "the", "needle", "is", "in"]
    backend = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """A list of all attempts to reach the network. Each attempt fails, and is recorded even if the error is caught."""
    attempts: list[object] = []

    def refuse(*args, **settings):
        attempts.append(args)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return attempts


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, network: list[object]) -> None:
    """Set huggingface_hub offline, as HF_HUB_OFFLINE=1 does before its import."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


# --- what loads ---


def test_local_folder(saved: Path, network: list[object], no_accelerator: None) -> None:
    loaded = load_model(saved)
    assert isinstance(loaded, LoadedModel)
    assert not loaded.model.training
    assert loaded.model.dtype == torch.float32
    assert (loaded.name, loaded.title) == (str(saved), "small-llama")
    assert loaded.revision is None
    assert loaded.license is None
    ids = loaded.tokenizer("the needle is in", return_tensors="pt")
    assert loaded.model(**ids).logits.shape == (1, 4, 5)
    assert network == []


@pytest.mark.parametrize(
    ("asked", "got"),
    [
        ("bfloat16", torch.bfloat16),
        ("float16", torch.float16),
        ("auto", torch.bfloat16),
        (torch.float64, torch.float64),
    ],
)
def test_dtype(saved: Path, asked: str | torch.dtype, got: torch.dtype) -> None:
    assert load_model(saved, dtype=asked, device="cpu").model.dtype == got


def test_default_dtype_follows_the_device() -> None:
    assert models._checked_dtype(None, torch.device("cuda")) == "auto"
    assert models._checked_dtype(None, torch.device("cpu")) == torch.float32
    assert models._checked_dtype(None, torch.device("mps")) == torch.float32


def test_default_device(monkeypatch: pytest.MonkeyPatch, no_accelerator: None) -> None:
    assert models._checked_device(None).type == "cpu"
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert models._checked_device(None).type == "mps"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert models._checked_device(None).type == "cuda"


def test_device_map(saved: Path) -> None:
    loaded = load_model(saved, device_map="cpu")
    assert next(loaded.model.parameters()).device.type == "cpu"


def test_hub_ids_take_safetensors_only(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    asked: dict[str, object] = {}

    def load(name, source, place, options):
        asked.update(options)
        return SimpleNamespace(config=SimpleNamespace(_commit_hash="abc123")), None

    monkeypatch.setattr(models, "_load", load)
    loaded = load_model("someone/some-model", revision="v1", device="cpu", cache_dir="elsewhere")
    assert loaded.revision == "abc123"
    assert asked["use_safetensors"] is True
    assert asked["trust_remote_code"] is False
    assert (asked["revision"], asked["cache_dir"]) == ("v1", "elsewhere")


def test_embedded_name_calls_no_hub(saved: Path, network: list[object], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "embedded_model_folder", lambda name, **settings: saved)
    loaded = load_model("embedded", device="cpu")
    gemma = EMBEDDED_MODELS[0]
    assert loaded.name == "embedded:gemma-3-270m"
    assert loaded.title == "Gemma 3 270M (Q4_K_M, dequantised)"
    assert gemma.sha256.startswith(loaded.revision or "?")
    assert loaded.license == "Gemma Terms of Use"
    assert str(saved) not in json.dumps(loaded.model.config.to_dict(), default=str)
    assert network == []


@pytest.mark.model
@pytest.mark.nightly
def test_embedded_model_itself(network: list[object]) -> None:
    loaded = load_model("embedded", device="cpu", progress=False)
    ids = loaded.tokenizer("The Space Needle is located in the city of", return_tensors="pt")
    with torch.no_grad():
        probabilities = loaded.model(**ids).logits[0, -1].softmax(-1)
    assert loaded.tokenizer.decode(probabilities.argmax()) == " Seattle"
    assert probabilities.max().item() == pytest.approx(0.4722, abs=0.002)
    assert network == []


# --- progress ---


def convert_slowly(name, *, cache_dir, progress):
    if progress:
        progress("converting the weights", 0.5)
    raise EmbeddedModelError("far enough")


def test_bar_on_stderr(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models, "embedded_model_folder", convert_slowly)
    with pytest.raises(EmbeddedModelError):
        load_model("embedded")
    shown = capsys.readouterr()
    assert "Gemma 3 270M (Q4_K_M, dequantised): converting the weights" in shown.err
    assert shown.out == ""


def test_no_bar_where_none_is_wanted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(models, "embedded_model_folder", convert_slowly)
    with pytest.raises(EmbeddedModelError):
        load_model("embedded", progress=False)
    assert capsys.readouterr().err == ""


def test_own_progress_callback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "embedded_model_folder", convert_slowly)
    seen: list[tuple[str, float]] = []
    with pytest.raises(EmbeddedModelError):
        load_model("embedded", progress=lambda stage, fraction: seen.append((stage, fraction)))
    assert seen == [("converting the weights", 0.5)]


# --- errors ---


@pytest.mark.parametrize("name", ["no such model!!", "a/b/c/d", "../nowhere/model", "", "/nowhere/at/all"])
def test_invalid_name(name: str, network: list[object]) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load_model(name)
    for words in ("local folder", "embedded:gemma-3-270m", "hub id"):
        assert words in str(caught.value)
    assert network == []


def test_unknown_embedded_name(network: list[object]) -> None:
    with pytest.raises(EmbeddedModelError, match="smollm2-135m-instruct"):
        load_model("embedded:gemma-9")
    assert network == []


def test_empty_folder(tmp_path: Path, network: list[object]) -> None:
    with pytest.raises(ModelLoadError, match=r"no config\.json.*contains nothing"):
        load_model(tmp_path)
    assert network == []


def test_folder_with_other_files(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(ModelLoadError, match=r"no config\.json.*contains weights\.bin"):
        load_model(tmp_path)


def test_file_in_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(ModelLoadError, match="is a file"):
        load_model(tmp_path / "weights.bin")


def test_encoder_decoder(tmp_path: Path, network: list[object]) -> None:
    from transformers import T5Config

    T5Config().save_pretrained(tmp_path)
    with pytest.raises(ModelLoadError, match=r"encoder-decoder model \(t5\)"):
        load_model(tmp_path)
    assert network == []


def test_unknown_model_type(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "of_the_future"}')
    with pytest.raises(ModelLoadError, match=r"config of .* could not be loaded(.|\n)*of_the_future"):
        load_model(tmp_path)


def copy_without(saved: Path, target: Path, *left_out: str) -> Path:
    for path in saved.iterdir():
        if path.name not in left_out:
            (target / path.name).write_bytes(path.read_bytes())
    return target


def test_folder_without_tokenizer(saved: Path, tmp_path: Path, network: list[object]) -> None:
    folder = copy_without(saved, tmp_path, "tokenizer.json", "tokenizer_config.json")
    with pytest.raises(ModelLoadError, match="The tokenizer of"):
        load_model(folder)
    assert network == []


def test_folder_without_weights(saved: Path, tmp_path: Path, network: list[object]) -> None:
    folder = copy_without(saved, tmp_path, "model.safetensors")
    with pytest.raises(ModelLoadError, match="The weights of"):
        load_model(folder)
    assert network == []


def test_truncated_weights(saved: Path, tmp_path: Path) -> None:
    folder = copy_without(saved, tmp_path)
    (folder / "model.safetensors").write_bytes((saved / "model.safetensors").read_bytes()[:2000])
    with pytest.raises(ModelLoadError, match="The weights of"):
        load_model(folder)


def test_checkpoint_without_head(saved: Path, tmp_path: Path) -> None:
    from transformers import AutoModel

    folder = copy_without(saved, tmp_path, "model.safetensors", "config.json")
    AutoModel.from_pretrained(saved, local_files_only=True).save_pretrained(folder)
    with pytest.raises(ModelLoadError, match=r"lacks 1 weights of LlamaForCausalLM \(lm_head\.weight"):
        load_model(folder)


def test_misspelt_hub_id_offline(offline: None, network: list[object], tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as caught:
        load_model("openai-community/gtp2", revision="main", cache_dir=tmp_path)
    message = str(caught.value)
    for words in ("'openai-community/gtp2'", "no local folder", "'main'", "HF_HUB_OFFLINE is set", "'embedded'"):
        assert words in message
    assert network == []


def test_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    error = OSError("We couldn't connect to the hub")
    message = hub.loading_error_message("someone/gpt2", "someone/gpt2", "config", {"revision": "main"}, error)
    assert "Check the spelling and the connection" in message


@pytest.mark.parametrize(
    ("kind", "advice"),
    [
        ("GatedRepoError", "gated: accept its terms"),
        ("RevisionNotFoundError", "no such revision"),
        ("RepositoryNotFoundError", "check the spelling"),
    ],
)
def test_advice_for_what_the_hub_answers(kind: str, advice: str) -> None:
    from huggingface_hub import errors

    answer = getattr(errors, kind).__new__(getattr(errors, kind))
    error = OSError("wrapped by transformers")
    error.__cause__ = answer
    message = hub.loading_error_message("someone/gpt2", "someone/gpt2", "config", {"revision": "v9"}, error)
    assert advice in message
    assert "'v9'" in message


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "cpu", "device_map": "auto"}, "not both"),
        ({"dtype": "float7"}, "float7"),
        ({"dtype": torch.int8}, "int8"),
        ({"device": "toaster"}, "toaster"),
        ({"device": "cuda"}, "no cuda"),
        ({"revision": "v1"}, "no revision"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], words: str, saved: Path, no_accelerator: None) -> None:
    with pytest.raises(SettingsError, match=words):
        load_model(saved, **settings)


def test_embedded_models_have_one_revision() -> None:
    with pytest.raises(SettingsError, match="only one revision"):
        load_model("embedded", revision="main")
