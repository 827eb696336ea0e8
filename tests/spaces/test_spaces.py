"""The contents of a Space: files, cards and requirements of each flavour."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

from causal_tracer.loading.embedded import EMBEDDED_MODELS
from causal_tracer.web.service.settings import ServiceSettings, variable

ROOT = Path(__file__).resolve().parents[2]
FLAVORS = ("cpu", "zero-gpu", "gpu")
# The builder brings these: gradio at the card's version, and huggingface_hub with it.
BUILDERS = {"gradio", "huggingface_hub", "spaces"}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}


@pytest.fixture
def staging(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "spaces"))
    import staging

    return staging


@pytest.fixture
def repository(tmp_path):
    """A small checkout with all that is staged; nothing is committed yet."""
    root = tmp_path / "repository"
    shutil.copytree(ROOT / "spaces", root / "spaces")
    for name in ("app.py", "LICENSE", "model-packages.txt", ".gitignore", "docs/space_needle.png"):
        (root / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, root / name)
    (root / "causal_tracer" / "web").mkdir(parents=True)
    (root / "causal_tracer" / "__init__.py").write_text("")
    (root / "causal_tracer" / "web" / "page.css").write_text("")
    git(root, "init", "--quiet")
    return root


def git(root: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=root, check=True, capture_output=True)


def card(flavor: str) -> dict:
    _, front, _ = (ROOT / "spaces" / flavor / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    return yaml.safe_load(front)


def pins(path: Path) -> dict[str, str]:
    """Names and versions; an empty version where there is no pin."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line and not line.startswith(("#", "-", " ")):
            name, _, version = line.removesuffix(" \\").partition("==")
            found[name] = version
    return found


@pytest.mark.parametrize("flavor", FLAVORS)
class TestFlavor:
    def test_card(self, flavor):
        front = card(flavor)
        constraints = pins(ROOT / "constraints.txt")
        assert front["sdk"] == "gradio"
        assert front["sdk_version"] == constraints["gradio"]
        assert isinstance(front["python_version"], str)
        needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
        given = tuple(map(int, front["python_version"].split(".")))
        assert given >= tuple(map(int, needed.removeprefix(">=").split(".")))
        assert 0 < len(front["short_description"]) <= 60
        assert front["app_file"] == "app.py"
        assert front["license"] == "mit"
        assert {front["colorFrom"], front["colorTo"]} <= COLORS
        assert front["models"]
        assert "interpretability" in front["tags"]
        assert front["thumbnail"] == "https://huggingface.co/spaces/SPACE_ID/resolve/main/thumbnail.png"

    def test_hardware_of_the_card_is_that_of_the_flavor(self, flavor, staging):
        known = {"cpu-basic", "zero-a10g", "l4x1"}
        assert staging.read_flavor(flavor).hardware == card(flavor)["suggested_hardware"]
        assert card(flavor)["suggested_hardware"] in known

    def test_models_of_the_hub_are_fetched_when_the_space_is_built(self, flavor, staging):
        traced = staging.read_flavor(flavor).variables["CAUSAL_TRACER_MODELS"].split(",")
        fetched = [line.split(" ")[0] for line in card(flavor).get("preload_from_hub", [])]
        assert fetched == [name for name in traced if name != "embedded"]
        for line in card(flavor).get("preload_from_hub", []):
            files = line.split(" ")[1].split(",")
            assert "model.safetensors" in files
            assert not [name for name in files if name.endswith((".bin", ".pt", ".h5", ".msgpack"))]

    def test_requirements_are_the_tested_versions_of_what_the_package_needs(self, flavor):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        extras = project["optional-dependencies"]
        needed = {re.split(r"[<>=\[]", text)[0] for text in (*project["dependencies"], *extras["app"])}
        needed -= {*BUILDERS, "causal-tracer"}
        if flavor == "cpu":
            needed |= {re.split(r"[<>=]", text)[0] for text in extras["embedded"]}
        given = pins(ROOT / "spaces" / flavor / "requirements.txt")
        assert given.keys() == needed
        constraints = pins(ROOT / "constraints.txt")
        for name, version in given.items():
            if name == "torch":
                assert version == {"cpu": f"{constraints[name]}+cpu", "gpu": constraints[name], "zero-gpu": ""}[flavor]
            else:
                assert version == constraints[name], name

    def test_card_says_how_to_make_it_ones_own_and_what_to_set(self, flavor, staging):
        text = (ROOT / "spaces" / flavor / "README.md").read_text(encoding="utf-8")
        assert "Duplicate this Space" in text
        assert f"python spaces/deploy.py USER/NAME --flavor {flavor}" in text
        rows = dict(re.findall(r"^\| `(CAUSAL_TRACER_\w+)` \| (.*) \|$", text, re.MULTILINE))
        settings = {variable(name): value for name, value in vars(ServiceSettings()).items()}
        ours = staging.read_flavor(flavor).variables
        assert rows.keys() <= settings.keys()
        assert ours.keys() <= rows.keys()
        for name, words in rows.items():
            if type(settings[name]) is int:
                assert str(settings[name]) in words, name
                assert name not in ours or ours[name] in words, name

    def test_variables_are_settings_that_the_app_takes(self, flavor, staging):
        ServiceSettings.from_environment(staging.read_flavor(flavor).variables)

    def test_card_names_its_space_when_staged(self, flavor, staging, repository):
        files = {file.path: file for file in staging.stage("ada/tracer", staging.read_flavor(flavor), repository)}
        assert b"spaces/ada/tracer/resolve" in files["README.md"].content
        assert b"SPACE_ID" not in files["README.md"].content
        assert {"app.py", "requirements.txt", "LICENSE", "thumbnail.png", "causal_tracer/web/page.css"} <= files.keys()
        assert not [path for path in files if path.startswith(("tests", "spaces", "benchmarks"))]


def test_the_folder_does_not_hide_the_package_of_its_name():
    assert not list((ROOT / "spaces").rglob("__init__.py"))


def test_zero_gpu_has_its_own_app_and_says_that_it_was_not_run_there(staging, repository):
    files = {file.path: file for file in staging.stage("ada/tracer", staging.read_flavor("zero-gpu"), repository)}
    first = ast.parse(files["app.py"].content).body[1]
    assert isinstance(first, ast.Import), "spaces has to be imported before torch"
    assert first.names[0].name == "spaces"
    assert b"Not run on ZeroGPU" in files["README.md"].content


@pytest.mark.parametrize(
    ("path", "content", "reason"),
    [
        ("causal_tracer/.env", b"A=1", "that of a secret"),
        ("causal_tracer/web/id_rsa", b"", "that of a secret"),
        ("causal_tracer/server.pem", b"", "that of a secret"),
        ("causal_tracer/token.txt", b"", "that of a secret"),
        ("causal_tracer/web/notes.py", b"login('hf_" + b"a" * 34 + b"')", "token or a private key"),
        ("causal_tracer/web/key.txt", b"-----BEGIN OPENSSH PRIVATE KEY-----", "token or a private key"),
        ("causal_tracer/model.bin", b"", "weights"),
        ("causal_tracer/model.PT", b"", "weights"),
        ("causal_tracer/.cache/x.json", b"{}", "cache"),
        ("causal_tracer/web/large.json", b" " * 5_000_001, "MB"),
    ],
)
def test_what_must_not_be_staged_is_refused(staging, repository, path, content, reason):
    (repository / path).parent.mkdir(exist_ok=True)
    (repository / path).write_bytes(content)
    git(repository, "add", "--force", path)
    with pytest.raises(staging.StagingError, match=f"{re.escape(path)} is not staged.*{reason}|git ignores"):
        staging.stage("ada/tracer", staging.read_flavor("cpu"), repository)
    assert staging.refusal(path, content)


@pytest.mark.parametrize("path", ["causal_tracer/model.safetensors", "causal_tracer/__pycache__/a.cpython-311.pyc"])
def test_what_git_ignores_is_left_out_or_refused_where_it_was_added_by_force(staging, repository, path):
    (repository / path).parent.mkdir(exist_ok=True)
    (repository / path).write_bytes(b"")
    staged = staging.stage("ada/tracer", staging.read_flavor("cpu"), repository)
    assert path not in {file.path for file in staged}
    git(repository, "add", "--force", path)
    with pytest.raises(staging.StagingError, match="git ignores it"):
        staging.stage("ada/tracer", staging.read_flavor("cpu"), repository)


def test_links_are_refused(staging, repository, tmp_path):
    (tmp_path / "outside").write_text("private")
    (repository / "causal_tracer" / "inside.py").symlink_to(tmp_path / "outside")
    with pytest.raises(staging.StagingError, match=r"inside\.py is missing or is a symbolic link"):
        staging.stage("ada/tracer", staging.read_flavor("cpu"), repository)


def test_what_is_not_committed_is_said(staging, repository):
    git(repository, "add", ".")
    git(repository, "commit", "--quiet", "--message", "All")
    (repository / "app.py").write_text("changed")
    (repository / "causal_tracer" / "new.py").write_text("")
    (repository / "causal_tracer" / "web" / "page.css").unlink()
    staged = staging.stage("ada/tracer", staging.read_flavor("cpu"), repository)
    assert [file.path for file in staged if not file.committed] == ["app.py", "causal_tracer/new.py"]
    assert "causal_tracer/web/page.css" not in {file.path for file in staged}


def test_no_checkout_no_staging(staging, repository):
    shutil.rmtree(repository / ".git")
    with pytest.raises(staging.StagingError, match="Deploy from a git checkout"):
        staging.stage("ada/tracer", staging.read_flavor("cpu"), repository)


def test_a_folder_with_something_in_it_is_not_written_to(staging, repository, tmp_path):
    files = staging.stage("ada/tracer", staging.read_flavor("cpu"), repository)
    staging.write(files, tmp_path / "new")
    assert (tmp_path / "new" / "causal_tracer" / "__init__.py").is_file()
    with pytest.raises(staging.StagingError, match="is not empty"):
        staging.write(files, tmp_path / "new")


def test_every_package_that_carries_a_model_has_its_hash():
    text = (ROOT / "model-packages.txt").read_text(encoding="utf-8")
    entries = re.findall(r"^(\S+)==(\S+) \\\n    --hash=sha256:([0-9a-f]{64})$", text, re.MULTILINE)
    assert len(entries) == len(re.findall(r"^[^#\s]", text, re.MULTILINE))
    named = {name.replace("-", "_"): version for name, version, _ in entries}
    default = EMBEDDED_MODELS[0]
    assert {package for package, _ in default.parts} <= named.keys()
    assert default.pip_command.removeprefix("pip install ") in {f"{name}=={version}" for name, version, _ in entries}
    constraints = pins(ROOT / "constraints.txt")
    assert all(constraints[name] == version for name, version, _ in entries)
