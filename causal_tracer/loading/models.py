"""Loading a model and its tokenizer: embedded, from a local folder or GGUF file, or from the Hugging Face hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from causal_tracer.arguments import flag, optional, shown, text
from causal_tracer.errors import ModelLoadError, SettingsError
from causal_tracer.loading.embedded import (
    EmbeddedModel,
    embedded_model_folder,
    find_embedded_model,
    is_embedded_name,
)
from causal_tracer.loading.gguf_conversion import Progress
from causal_tracer.loading.gguf_files import converted_gguf, local_gguf
from causal_tracer.loading.hub import check_hub_id, explanation, hub_gguf, split_hub_name
from causal_tracer.model.torch_state import in_standard_torch_state

_DTYPES: dict[str, torch.dtype | str] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in evaluation mode, with its tokenizer and where they came from."""

    model: Any
    tokenizer: Any
    name: str
    """The name it was loaded by: an embedded model's full name, a folder, a GGUF file, or a hub id."""
    title: str
    """The name for people."""
    revision: str | None
    """The hub's commit, or the start of a local GGUF file's SHA-256; None for a local folder."""
    license: str | None
    """Known for embedded models only."""

    @property
    def public_name(self) -> str:
        """The name in results: for a local folder or file, without its path."""
        return public_model_name(self.name)

    def __repr__(self) -> str:
        """Name the model, without its modules."""
        revision = "" if self.revision is None else f", revision={self.revision!r}"
        return f"LoadedModel({self.public_name!r}{revision}, {type(self.model).__name__}, {self.title!r})"


def public_model_name(name: Any) -> str:
    """Return a model's name without the path of a local folder or file."""
    text = str(name or "")
    path = Path(text).expanduser()
    return path.resolve().name if text and path.exists() else text


@in_standard_torch_state
def load_model(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    dtype: str | torch.dtype | None = None,
    device: str | torch.device | None = None,
    device_map: str | dict[str, Any] | None = None,
    trust_remote_code: bool = False,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: bool | Progress = True,
) -> LoadedModel:
    """Load a decoder-only language model and its tokenizer.

    An embedded model, a local folder or a GGUF file is loaded without any call to the hub. From the hub, only
    safetensors weights are loaded, or a GGUF file where there are none, and code from a repository runs only with
    `trust_remote_code`. A GGUF file is converted to fp32 once and cached in the folder of the embedded models.

    Args:
        name: "embedded" or another embedded name, a local folder, a .gguf file, or a hub id such as
            "openai-community/gpt2". A hub repository's GGUF file is "owner/repo:file.gguf", or "owner/repo:Q4_K_M"
            where only one file's name contains that, or "owner/repo" where there is only one.
        revision: A hub model's branch, tag or commit.
        dtype: "float32", "bfloat16", "float16", "auto" (the checkpoint's own) or a torch dtype. By default
            float32, or the checkpoint's own on CUDA.
        device: Where to put the whole model; by default CUDA, else MPS, else the CPU.
        device_map: Accelerate's device map, such as "auto", in place of `device`.
        trust_remote_code: Run the Python code of a repository or folder.
        cache_dir: Where converted models and hub downloads are cached; by default the usual folders.
        progress: Show a bar on stderr while a GGUF file is converted, or call this with the stage and a fraction from
            0 to 1.

    Raises:
        SettingsError: Arguments contradict each other or have unknown values.
        ModelLoadError: There is no such model, or it cannot be loaded or traced; an `EmbeddedModelError` where
            it is an embedded one.
    """
    optional(text)("revision", revision)
    flag("trust_remote_code", trust_remote_code)
    if device is not None and device_map is not None:
        raise SettingsError(f"Give device ({device}) or device_map ({device_map}), not both.")
    place = None if device_map is not None else _device(device)
    options = {"dtype": _dtype(dtype, place), "device_map": device_map, "trust_remote_code": trust_remote_code}
    try:
        name = os.fsdecode(name)
    except (TypeError, UnicodeError) as error:
        raise SettingsError(f"name must be a text or a path (given: {shown(name)}).") from error
    loader = _Loader(place, options, cache_dir, progress)
    if is_embedded_name(name):
        return loader.embedded(find_embedded_model(name), revision)
    path = Path(name).expanduser()
    if name and path.exists():
        return loader.local(name, path, revision)
    return loader.hub(name, revision)


@dataclass(frozen=True)
class _Loader:
    """Loads models from one kind of source each.

    Attributes:
        place: Where to move the whole model; None where a device map places it.
        options: Arguments of `from_pretrained` for every source.
        cache_dir: As for `load_model`.
        progress: As for `load_model`.
    """

    place: torch.device | None
    options: dict[str, Any]
    cache_dir: str | os.PathLike[str] | None
    progress: bool | Progress

    def embedded(self, model: EmbeddedModel, revision: str | None) -> LoadedModel:
        if revision is not None:
            raise SettingsError(f"{model.name} has one revision only (given: revision={revision!r}).")
        with _reporter(model.title, self.progress) as report:
            folder = embedded_model_folder(model.name, cache_dir=self.cache_dir, progress=report)
        return LoadedModel(
            *self._converted(model.name, folder), model.name, model.title, model.sha256[:12], model.license
        )

    def local(self, name: str, path: Path, revision: str | None) -> LoadedModel:
        gguf = local_gguf(name, path)
        if gguf is None and not (path / "config.json").is_file():
            found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
            raise ModelLoadError(
                f"The folder {name!r} holds no config.json and no GGUF file, so it is not a saved model; it holds "
                f"{found}. Give the folder that save_pretrained wrote, or rename it if you meant a hub id of this name."
            )
        if revision is not None:
            what = "folder" if path.is_dir() else "file"
            raise SettingsError(f"{name!r} is a local {what}, which has no revision {revision!r}.")
        if gguf is not None:
            return self.gguf(name, gguf, None)
        model, tokenizer = _load(name, str(path), self.place, self.options | {"local_files_only": True})
        return LoadedModel(model, tokenizer, name, path.resolve().name, None, None)

    def hub(self, name: str, revision: str | None) -> LoadedModel:
        repository, file = split_hub_name(name)
        check_hub_id(repository)
        if file is None:
            hub_options = {"revision": revision or "main", "cache_dir": self.cache_dir, "use_safetensors": True}
            try:
                model, tokenizer = _load(name, name, self.place, self.options | hub_options)
                return LoadedModel(model, tokenizer, name, name, getattr(model.config, "_commit_hash", None), None)
            except ModelLoadError:
                # Repositories of GGUF files have no weights that transformers finds, and often no config.
                found = hub_gguf(repository, None, revision, self.cache_dir)
                if found is None:
                    raise
        else:
            found = hub_gguf(repository, file, revision, self.cache_dir)
        return self.gguf(f"{repository}:{found.file}", found.path, found.commit)

    def gguf(self, name: str, path: Path, revision: str | None) -> LoadedModel:
        with _reporter(path.name, self.progress) as report:
            made = converted_gguf(path, self.cache_dir, report)
        model, tokenizer = self._converted(name, made.folder)
        # The dtype alone does not show it; results name it.
        model.config.gguf_quantisation = made.quantisation
        return LoadedModel(model, tokenizer, name, made.title, revision or made.sha256[:12], None)

    def _converted(self, name: str, folder: Path) -> tuple[Any, Any]:
        options = self.options | {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
        model, tokenizer = _load(name, str(folder), self.place, options)
        # Results record the model's name, not a folder of this machine.
        model.name_or_path = model.config.name_or_path = tokenizer.name_or_path = public_model_name(name)
        return model, tokenizer


@contextmanager
def _reporter(title: str, progress: bool | Progress) -> Iterator[Progress | None]:
    """Yield the caller's own callback, or a bar that appears at the first report, or None."""
    if not isinstance(progress, bool):
        yield progress
        return
    if not progress:
        yield None
        return
    from tqdm.auto import tqdm

    bar: Any = None

    def report(stage: str, fraction: float) -> None:
        nonlocal bar
        if bar is None:
            bar = tqdm(total=100, unit="%", bar_format="{desc}: {percentage:3.0f}%|{bar}| {elapsed}")
        bar.set_description(f"{title}: {stage}", refresh=False)
        bar.update(int(100 * fraction) - bar.n)

    try:
        yield report
    finally:
        if bar is not None:
            bar.close()


def _device(device: str | torch.device | None) -> torch.device:
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise SettingsError(f"device={shown(device)} must be a device of torch, such as 'cuda:0'.") from error
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(place.type, True):
        raise SettingsError(f"device={device!r} was asked for, but this torch or machine has no {place.type}.")
    return place


def _dtype(dtype: str | torch.dtype | None, place: torch.device | None) -> torch.dtype | str:
    if dtype is None:
        cuda = torch.cuda.is_available() if place is None else place.type == "cuda"
        return "auto" if cuda else torch.float32
    if isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point:
            raise SettingsError(f"dtype={dtype} is not a floating-point type.")
        return dtype
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise SettingsError(f"dtype={shown(dtype)} is unknown. Use one of {', '.join(_DTYPES)}, or a torch dtype.")
    return _DTYPES[dtype]


def _load(name: str, source: str, place: torch.device | None, options: dict[str, Any]) -> tuple[Any, Any]:
    """Load a model, checked to be whole and decoder-only, and its tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    both = {key: value for key, value in options.items() if key not in ("dtype", "device_map", "use_safetensors")}
    part = "config"
    try:
        config = AutoConfig.from_pretrained(source, **both)
        if getattr(config, "is_encoder_decoder", False):
            raise ModelLoadError(
                f"{name!r} is an encoder-decoder model ({config.model_type}). Give a decoder-only one, such as "
                "GPT-2, Llama or Gemma."
            )
        part = "tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(source, config=config, **both)
        part = "weights"
        model, info = AutoModelForCausalLM.from_pretrained(source, config=config, output_loading_info=True, **options)
        missing = sorted(info["missing_keys"])
        if missing:
            raise ModelLoadError(
                f"{name!r} lacks {len(missing)} weights of {type(model).__name__} ({', '.join(missing[:4])}, …), "
                "which would be random numbers. Give a checkpoint of the whole model with its language-model head."
            )
        if place is not None:
            part = f"weights, moving them to {place},"
            model.to(place)
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(explanation(name, source, part, options, error)) from error
    return model.eval(), tokenizer
