"""Models on the Hugging Face hub: parsing names, downloading GGUF files, and the messages of loading errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

from causal_tracer.errors import ModelLoadError
from causal_tracer.loading.embedded import EMBEDDED_MODELS
from causal_tracer.loading.gguf_files import choose_gguf


def split_hub_name(name: str) -> tuple[str, str | None]:
    """Split "owner/repo:file.gguf" into the hub id and the file, or None if there is no file."""
    repository, colon, file = name.partition(":")
    return repository, file if colon else None


def check_hub_id(name: str) -> None:
    """Check that a name has the form of a hub id.

    Raises:
        ModelLoadError: The name is not a valid hub id.
    """
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        embedded = ", ".join(repr(known.name) for known in EMBEDDED_MODELS)
        raise ModelLoadError(
            f"{name!r} is not a local folder or file (in {Path.cwd()}), not an embedded model ('embedded', "
            f"{embedded}), and not a valid hub id ({error}). Check the spelling. A GGUF file on the hub is "
            "'owner/repo:file.gguf'."
        ) from error


@dataclass(frozen=True)
class HubGguf:
    """A downloaded GGUF file: its name in the hub repository, its local path, and the repository's commit."""

    file: str
    path: Path
    commit: str | None


@overload
def download_gguf(repository: str, file: str, revision: str | None, cache_dir: Any) -> HubGguf: ...


@overload
def download_gguf(repository: str, file: None, revision: str | None, cache_dir: Any) -> HubGguf | None: ...


def download_gguf(repository: str, file: str | None, revision: str | None, cache_dir: Any) -> HubGguf | None:
    """Download a GGUF file of a hub repository, or take it from the hub's cache.

    Args:
        repository: The hub id.
        file: The file's name, or a part of the name that only one file has, such as "Q4_K_M". None means the
            repository's only GGUF file.
        revision: A branch, tag or commit.
        cache_dir: The hub's cache; None for the default one.

    Returns:
        The file. None if `file` is None and the repository has no GGUF file, has safetensors, or cannot be listed.

    Raises:
        ModelLoadError: The download failed, there is no such file, or several match.
    """
    from huggingface_hub import hf_hub_download

    name = repository if file is None else f"{repository}:{file}"
    options = {"revision": revision or "main"}
    try:
        files = _repository_files(repository, options["revision"], cache_dir)
    except Exception as error:
        if file is None:
            return None
        raise ModelLoadError(loading_error_message(name, repository, "list of files", options, error)) from error
    if file is None and any(path.endswith(".safetensors") for path in files):
        return None
    advice = f"Name one of them, such as {repository}:FILE."
    if (chosen := choose_gguf(files, file, name, advice)) is None:
        return None
    try:
        path = Path(hf_hub_download(repository, chosen, revision=options["revision"], cache_dir=cache_dir))
    except Exception as error:
        raise ModelLoadError(loading_error_message(name, repository, "GGUF file", options, error)) from error
    parts = path.parts
    return HubGguf(chosen, path, parts[parts.index("snapshots") + 1] if "snapshots" in parts else None)


def _repository_files(repository: str, revision: str, cache_dir: Any) -> Sequence[str]:
    """Return the names of a repository's files. In offline mode, return only those in the hub's cache."""
    from huggingface_hub import constants, list_repo_files, snapshot_download

    if not constants.HF_HUB_OFFLINE:
        return list_repo_files(repository, revision=revision)
    folder = Path(snapshot_download(repository, revision=revision, cache_dir=cache_dir, local_files_only=True))
    return [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]


def loading_error_message(name: str, source: str, part: str, options: Mapping[str, Any], error: Exception) -> str:
    """Return the message for a model part that could not be loaded: what was tried, the cause, and what to do.

    Args:
        name: The model's name, as the user gave it.
        source: The folder or hub id that was loaded from.
        part: The part that failed, such as "tokenizer".
        options: The arguments of `from_pretrained`. Only hub models have a "revision".
        error: The exception.
    """
    from huggingface_hub import constants, errors

    chain: list[BaseException] = []
    link: BaseException | None = error
    while link is not None and link not in chain:
        chain.append(link)
        link = link.__cause__ or link.__context__
    cause = f"{type(error).__name__}: {str(error).strip() or 'no message'}"
    if "revision" not in options:
        advice = "Check that the folder is complete and that this version of transformers supports the model."
        return f"The {part} of {name!r} could not be loaded from the folder {source}. {cause}\n{advice}"
    advices = {
        errors.GatedRepoError: "The model is gated: accept its terms on its page, then run 'hf auth login'.",
        errors.RevisionNotFoundError: "The model has no such revision: check its branches and tags.",
        errors.RepositoryNotFoundError: (
            "The model does not exist or is private: check the spelling, or run 'hf auth login'."
        ),
    }
    advice = "Check the spelling and the connection. If trust_remote_code is needed, read that code first."
    if constants.HF_HUB_OFFLINE:
        advice = "HF_HUB_OFFLINE is set and the model is not in the local cache: unset it, or give a folder."
    advice = next((advices[kind] for kind in advices if any(isinstance(link, kind) for link in chain)), advice)
    return (
        f"The {part} of {name!r} could not be loaded. There is no local folder or file of this name, so the hub was "
        f"asked for revision {options['revision']!r}. {cause}\n{advice} To load without the hub, give a local folder, "
        "a .gguf file or 'embedded'."
    )
