"""`load_model`: loading a model and its tokenizer from an embedded model, a folder, a GGUF file or the hub."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from causal_tracer.arguments import flag, optional, quoted, text
from causal_tracer.errors import ModelLoadError, SettingsError
from causal_tracer.loading.embedded import (
    EmbeddedModel,
    embedded_model_folder,
    find_embedded_model,
    is_embedded_name,
)
from causal_tracer.loading.gguf_conversion import Progress
from causal_tracer.loading.gguf_files import converted_gguf, find_local_gguf
from causal_tracer.loading.hub import check_hub_id, download_gguf, loading_error_message, split_hub_name
from causal_tracer.model.torch_state import in_standard_torch_state

_DTYPES: dict[str, torch.dtype | str] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "auto": "auto",
}


@dataclass(frozen=True)
class LoadedModel:
    """A causal language model in evaluation mode, with its tokenizer, name and revision."""

    model: Any
    tokenizer: Any
    name: str
    """The name it was loaded by: an embedded model's full name, a folder, a GGUF file, or a hub id."""
    title: str
    """The name to show to people."""
    revision: str | None
    """The hub's commit, or the start of the GGUF file's SHA-256; None for a local folder."""
    license: str | None
    """The licence of an embedded model; None for other models."""

    @property
    def public_name(self) -> str:
        """The name written in results: a local folder or file has no path."""
        return public_model_name(self.name)

    def __repr__(self) -> str:
        """Return the names of the model and its class, without its modules."""
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

    Embedded models, local folders and local GGUF files are loaded without any call to the hub. From the hub, only
    safetensors weights are loaded, or a GGUF file if there are none. Code from a repository runs only with
    `trust_remote_code`. A GGUF file is converted to fp32 once and cached in the folder of the embedded models.

    Args:
        name: "embedded" or another embedded name, a local folder, a .gguf file, or a hub id such as
            "openai-community/gpt2". A GGUF file on the hub is "owner/repo:file.gguf"; "owner/repo:Q4_K_M" if only one
            file's name contains that; or "owner/repo" if the repository has only one GGUF file.
        revision: A hub model's branch, tag or commit.
        dtype: "float32", "bfloat16", "float16", "auto" (the checkpoint's dtype) or a torch dtype. By default
            "auto" on CUDA, else float32.
        device: Where to put the whole model. By default CUDA if there is one, else MPS, else the CPU.
        device_map: Accelerate's device map, such as "auto", instead of `device`.
        trust_remote_code: Whether to run the Python code of a repository or folder.
        cache_dir: Where converted models and hub downloads are cached; by default the usual folders.
        progress: Whether to show a bar on stderr while a GGUF file is converted; or a function to call with the stage
            and a fraction from 0 to 1.

    Raises:
        SettingsError: Arguments contradict each other or have unknown values.
        ModelLoadError: There is no such model, or it cannot be loaded or traced. For embedded models it is an
            `EmbeddedModelError`.
    """
    optional(text)("revision", revision)
    flag("trust_remote_code", trust_remote_code)
    if device is not None and device_map is not None:
        raise SettingsError(f"Give either device ({device}) or device_map ({device_map}), not both.")
    target_device = None if device_map is not None else _checked_device(device)
    options = {
        "dtype": _checked_dtype(dtype, target_device),
        "device_map": device_map,
        "trust_remote_code": trust_remote_code,
    }
    try:
        name = os.fsdecode(name)
    except (TypeError, UnicodeError) as error:
        raise SettingsError(f"name must be a text or a path (given: {quoted(name)}).") from error
    loader = _Loader(target_device, options, cache_dir, progress)
    if is_embedded_name(name):
        return loader.embedded(find_embedded_model(name), revision)
    path = Path(name).expanduser()
    if name and path.exists():
        return loader.local(name, path, revision)
    return loader.hub(name, revision)


@dataclass(frozen=True)
class _Loader:
    """Loads models, with one method for each kind of source.

    Attributes:
        target_device: The device to move the whole model to; None if a device map is given.
        options: Arguments of `from_pretrained` for all sources.
        cache_dir: As for `load_model`.
        progress: As for `load_model`.
    """

    target_device: torch.device | None
    options: dict[str, Any]
    cache_dir: str | os.PathLike[str] | None
    progress: bool | Progress

    def embedded(self, model: EmbeddedModel, revision: str | None) -> LoadedModel:
        if revision is not None:
            raise SettingsError(f"{model.name} has only one revision (given: revision={revision!r}). Leave it out.")
        with _reporter(model.title, self.progress) as report:
            folder = embedded_model_folder(model.name, cache_dir=self.cache_dir, progress=report)
        return LoadedModel(
            *self._converted(model.name, folder), model.name, model.title, model.sha256[:12], model.license
        )

    def local(self, name: str, path: Path, revision: str | None) -> LoadedModel:
        gguf = find_local_gguf(name, path)
        if gguf is None and not (path / "config.json").is_file():
            found = ", ".join(sorted(entry.name for entry in path.iterdir())[:8]) or "nothing"
            raise ModelLoadError(
                f"The folder {name!r} has no config.json and no GGUF file, so it is not a saved model. It contains "
                f"{found}. Give the folder that save_pretrained wrote. If you meant a hub id, rename the folder."
            )
        if revision is not None:
            what = "folder" if path.is_dir() else "file"
            raise SettingsError(
                f"{name!r} is a local {what} and has no revisions (given: revision={revision!r}). Leave it out."
            )
        if gguf is not None:
            return self.gguf(name, gguf, None)
        model, tokenizer = _load(name, str(path), self.target_device, self.options | {"local_files_only": True})
        return LoadedModel(model, tokenizer, name, path.resolve().name, None, None)

    def hub(self, name: str, revision: str | None) -> LoadedModel:
        repository, file = split_hub_name(name)
        check_hub_id(repository)
        if file is None:
            hub_options = {"revision": revision or "main", "cache_dir": self.cache_dir, "use_safetensors": True}
            try:
                model, tokenizer = _load(name, name, self.target_device, self.options | hub_options)
                return LoadedModel(model, tokenizer, name, name, getattr(model.config, "_commit_hash", None), None)
            except ModelLoadError:
                # transformers finds no weights in a repository of GGUF files, and often no config.
                found = download_gguf(repository, None, revision, self.cache_dir)
                if found is None:
                    raise
        else:
            found = download_gguf(repository, file, revision, self.cache_dir)
        return self.gguf(f"{repository}:{found.file}", found.path, found.commit)

    def gguf(self, name: str, path: Path, revision: str | None) -> LoadedModel:
        with _reporter(path.name, self.progress) as report:
            made = converted_gguf(path, self.cache_dir, report)
        model, tokenizer = self._converted(name, made.folder)
        # Results show the quantisation, which the dtype does not tell.
        model.config.gguf_quantisation = made.quantisation
        return LoadedModel(model, tokenizer, name, made.title, revision or made.sha256[:12], None)

    def _converted(self, name: str, folder: Path) -> tuple[Any, Any]:
        options = self.options | {"local_files_only": True, "use_safetensors": True, "trust_remote_code": False}
        model, tokenizer = _load(name, str(folder), self.target_device, options)
        # Results must record the model's name, not a folder of this machine.
        model.name_or_path = model.config.name_or_path = tokenizer.name_or_path = public_model_name(name)
        return model, tokenizer


@contextmanager
def _reporter(title: str, progress: bool | Progress) -> Iterator[Progress | None]:
    """Yield the function that progress is reported to: the caller's, one that shows a bar, or None."""
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


def _checked_device(device: str | torch.device | None) -> torch.device:
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        target_device = torch.device(device)
    except (RuntimeError, TypeError, ValueError, OverflowError) as error:
        raise SettingsError(f"device must be a torch device such as 'cuda:0' (given: {quoted(device)}).") from error
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not available.get(target_device.type, True):
        raise SettingsError(
            f"device={device!r} is not available: this machine or its torch has no {target_device.type}. Use 'cpu', or "
            "leave device out."
        )
    return target_device


def _checked_dtype(dtype: str | torch.dtype | None, target_device: torch.device | None) -> torch.dtype | str:
    if dtype is None:
        cuda = torch.cuda.is_available() if target_device is None else target_device.type == "cuda"
        return "auto" if cuda else torch.float32
    if isinstance(dtype, torch.dtype):
        if not dtype.is_floating_point:
            raise SettingsError(f"dtype must be a floating-point type (given: {dtype}).")
        return dtype
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise SettingsError(f"dtype={quoted(dtype)} is not known. Use one of {', '.join(_DTYPES)}, or a torch dtype.")
    return _DTYPES[dtype]


def _load(name: str, source: str, target_device: torch.device | None, options: dict[str, Any]) -> tuple[Any, Any]:
    """Load a model and its tokenizer, and check that the model is complete and decoder-only."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    both = {key: value for key, value in options.items() if key not in ("dtype", "device_map", "use_safetensors")}
    part = "config"
    try:
        config = AutoConfig.from_pretrained(source, **both)
        if getattr(config, "is_encoder_decoder", False):
            raise ModelLoadError(
                f"{name!r} is an encoder-decoder model ({config.model_type}). Give a decoder-only model, such as "
                "GPT-2, Llama or Gemma."
            )
        part = "tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(source, config=config, **both)
        part = "weights"
        model, info = AutoModelForCausalLM.from_pretrained(source, config=config, output_loading_info=True, **options)
        missing = sorted(info["missing_keys"])
        if missing:
            raise ModelLoadError(
                f"{name!r} lacks {len(missing)} weights of {type(model).__name__} ({', '.join(missing[:4])}, …). "
                "These would be random numbers. Give a checkpoint of the whole model, with its language-model head."
            )
        if target_device is not None:
            part = f"weights, moving them to {target_device},"
            model.to(target_device)
    except ModelLoadError:
        raise
    except Exception as error:
        raise ModelLoadError(loading_error_message(name, source, part, options, error)) from error
    return model.eval(), tokenizer
