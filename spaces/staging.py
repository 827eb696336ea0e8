"""The files of a Space: which files, from where, and which are refused.

Only files that git has or would add are read, so that ignored files are left out. Each file's name and content is
checked as well, since somebody may have added a secret or weights by force.
"""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
FLAVORS = ("cpu", "zero-gpu", "gpu")
SPACE_PLACEHOLDER = "SPACE_ID"

_PACKAGE = "causal_tracer"
_THUMBNAIL = "docs/space_needle.png"
_FLAVOR_FILES = ("README.md", "requirements.txt")
_LARGEST = 5_000_000

_WEIGHTS = (".safetensors", ".gguf", ".bin", ".pt", ".pth", ".ckpt", ".onnx", ".h5", ".npz", ".npy", ".pkl", ".msgpack")
_CACHES = ("__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".gradio", ".cache", ".venv", "venv", ".git")
_SECRET_NAMES = re.compile(
    r"(^|/)(\.env($|\.)|\.netrc$|\.pypirc$|\.npmrc$|id_(rsa|dsa|ecdsa|ed25519)|credentials|secrets?($|\.)|token($|\.))"
    r"|\.(pem|key|p12|pfx|keystore)$",
    re.IGNORECASE,
)
_SECRET_TEXTS = re.compile(
    rb"hf_[A-Za-z0-9]{30,}|api_org_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----|\bAKIA[0-9A-Z]{16}\b"
    rb"|\bgh[pousr]_[A-Za-z0-9]{36}|\bgithub_pat_\w{22,}|\bsk-[A-Za-z0-9_-]{32,}|\bpypi-[A-Za-z0-9_-]{50,}"
)


class StagingError(Exception):
    """A file may not go into a Space, or cannot be found; the message names the file and the reason."""


@dataclass(frozen=True)
class StagedFile:
    """One file of a Space.

    Attributes:
        path: Its path in the Space.
        content: Its bytes.
        source: Its path in the repository.
        committed: Whether it is unchanged since the last commit; False for changed and new files.
    """

    path: str
    content: bytes
    source: str
    committed: bool


@dataclass(frozen=True)
class Flavor:
    """One way of running the app as a Space: a folder beside this file.

    Attributes:
        name: The folder's name.
        hardware: The hardware that it is meant for, as the hub names it.
        variables: The environment variables that the app needs there.
        files: The sources of further files of the Space, by their path in it; every flavour has the others.
    """

    name: str
    hardware: str
    variables: Mapping[str, str]
    files: Mapping[str, str]


def read_flavor(name: str, root: Path = ROOT) -> Flavor:
    """Return a flavour's settings, from its `space.toml`.

    Raises:
        StagingError: There is no such flavour.
    """
    if name not in FLAVORS:
        raise StagingError(f"There is no flavor {name!r}. Choose one of {', '.join(FLAVORS)}.")
    settings = tomllib.loads((root / "spaces" / name / "space.toml").read_text(encoding="utf-8"))
    return Flavor(name, settings["hardware"], settings.get("variables", {}), settings.get("files", {}))


def stage(space: str, flavor: Flavor, root: Path = ROOT) -> tuple[StagedFile, ...]:
    """Return the files of a Space in the order of their paths: card, requirements, app, package, licence, thumbnail.

    Args:
        space: The Space's id, which is written into the card.
        flavor: How the app runs there.
        root: The repository.

    Raises:
        StagingError: A file is missing, ignored by git, or looks like a secret, a cache or weights.
    """
    folder = f"spaces/{flavor.name}"
    wanted = {path: path for path in _known_to_git(root, _PACKAGE)}
    wanted |= {"app.py": "app.py", "LICENSE": "LICENSE", "thumbnail.png": _THUMBNAIL}
    wanted |= {name: f"{folder}/{name}" for name in _FLAVOR_FILES}
    wanted |= flavor.files
    sources = sorted(set(wanted.values()))
    _refuse_ignored(root, sources)
    changed = set(_git(root, "ls-files", "-z", "--others", "--modified", "--", *sources))
    staged = []
    for path, source in sorted(wanted.items()):
        content = _read(root, source)
        if path == "README.md":
            content = content.replace(SPACE_PLACEHOLDER.encode(), space.encode())
        staged.append(StagedFile(path, content, source, source not in changed))
    return tuple(staged)


def write(files: tuple[StagedFile, ...], folder: Path) -> None:
    """Write staged files into an empty folder.

    Raises:
        StagingError: The folder is not empty.
    """
    if folder.exists() and any(folder.iterdir()):
        raise StagingError(f"{folder} is not empty. Name a new folder, so that no other files get into the Space.")
    for file in files:
        target = folder / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.content)


def _read(root: Path, source: str) -> bytes:
    path = root / source
    if path.is_symlink() or not path.is_file():
        raise StagingError(f"{source} is missing or is a symbolic link. Restore it from git.")
    content = path.read_bytes()
    if reason := refusal(source, content):
        raise StagingError(f"{source} is not staged: {reason}. Remove it from the repository, or from the package.")
    return content


def refusal(source: str, content: bytes) -> str | None:
    """Return the reason why a file may not go into a Space; None if it may."""
    path = PurePosixPath(source)
    if set(path.parts) & set(_CACHES) or path.suffix in (".pyc", ".pyo"):
        return "it belongs to a cache"
    if path.suffix.lower() in _WEIGHTS:
        return "it looks like weights"
    if _SECRET_NAMES.search(source):
        return "its name looks like that of a secret"
    if _SECRET_TEXTS.search(content):
        return "it holds something that looks like a token or a private key"
    if len(content) > _LARGEST:
        return f"it has {len(content) / 1e6:.1f} MB, and files of the app have at most {_LARGEST / 1e6:.0f}"
    return None


def _known_to_git(root: Path, folder: str) -> Iterator[str]:
    """Yield the files of a folder that git has or would add, except those that are deleted here."""
    for path in _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", folder):
        if (root / path).exists():
            yield path


def _refuse_ignored(root: Path, sources: list[str]) -> None:
    # --no-index: a file added by force counts as ignored too.
    ignored = _git(root, "check-ignore", "-z", "--no-index", "--stdin", given="\0".join(sources))
    if ignored:
        raise StagingError(f"{', '.join(ignored)} is not staged: git ignores it. See .gitignore.")


def _git(root: Path, *arguments: str, given: str = "") -> list[str]:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, input=given.encode(), capture_output=True, check=False, timeout=60
        )
    except OSError as error:
        raise StagingError(f"git is needed to list the repository's files ({error}). Install it.") from error
    # check-ignore exits with 1 if nothing is ignored.
    if done.returncode not in (0, 1) or (done.returncode == 1 and arguments[0] != "check-ignore"):
        words = done.stderr.decode(errors="replace").strip()
        raise StagingError(f"git could not list the files of {root} ({words}). Deploy from a git checkout.")
    return list(dict.fromkeys(part for part in done.stdout.decode().split("\0") if part))
