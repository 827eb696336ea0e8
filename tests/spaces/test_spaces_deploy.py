"""`spaces/deploy.py` from end to end, against a stand-in for the hub on this machine."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.hub_stand_in import TOKEN, Hub, HubSpace, running_hub

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
SPACE = "ada/tracer"
SECRET = "a secret that nobody may read"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


def deploy(hub: Hub, *arguments: str, token: str = TOKEN, home: Path | None = None, **variables: str):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub.address,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HOME": str(home or "/nonexistent"),
        **({"HF_TOKEN": token} if token else {}),
        **variables,
    }
    return subprocess.run(
        [sys.executable, str(ROOT / "spaces" / "deploy.py"), SPACE, "--poll", "0.01", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )


def test_a_space_is_made_private_and_waited_for(hub):
    done = deploy(
        hub,
        *("--flavor", "cpu", "--hardware", "cpu-upgrade", "--variable", "CAUSAL_TRACER_MAX_QUEUE=5"),
        *("--secret", f"GIVEN={SECRET}", "--secret", "FROM_SHELL"),
        FROM_SHELL="another one",
    )
    assert done.returncode == 0, done.stdout
    space = hub.spaces[SPACE]
    assert (space.visibility, space.sdk, space.hardware) == ("private", "gradio", "cpu-upgrade")
    assert space.secrets == {"GIVEN": SECRET, "FROM_SHELL": "another one"}
    assert space.variables["CAUSAL_TRACER_MAX_QUEUE"] == "5"
    assert space.variables["CAUSAL_TRACER_MODELS"] == "embedded"
    assert space.files["app.py"] == (ROOT / "app.py").read_bytes()
    assert space.files["thumbnail.png"] == (ROOT / "docs" / "space_needle.png").read_bytes()
    assert {"README.md", "requirements.txt", "pre-requirements.txt", "LICENSE", "causal_tracer/web/launch.py"} <= set(
        space.files
    )
    assert "https://huggingface.co/spaces/ada/tracer/" in hub.yaml[0]
    assert len(space.commits) == 2
    shown = re.findall(r"The Space is (.*)\.", done.stdout)
    assert shown == ["building", "app starting", "running"]
    assert done.stdout.rstrip().endswith(f"It runs: {hub.address}/spaces/{SPACE}")
    for hidden in (TOKEN, SECRET, "another one"):
        assert hidden not in done.stdout


def test_a_space_that_is_there_is_updated_and_keeps_its_visibility(hub):
    hub.spaces[SPACE] = HubSpace("public", "gradio", files={".gitattributes": b"x", "old.py": b"", "app.py": b"old"})
    done = deploy(hub, "--variable", "A=1", "--secret", f"B={SECRET}", "--hardware", "cpu-basic")
    assert done.returncode == 0, done.stdout
    space = hub.spaces[SPACE]
    assert "old.py" not in space.files
    assert space.files["app.py"] == (ROOT / "app.py").read_bytes()
    assert (space.visibility, space.hardware, space.secrets) == ("public", "cpu-basic", {"B": SECRET})
    assert space.variables["A"] == "1"
    assert not any(path == "/api/repos/create" for _, path, _ in hub.asked)
    again = deploy(hub, "--no-wait")
    assert again.returncode == 0, again.stdout
    assert hub.spaces[SPACE].files == space.files


def test_public_is_a_choice(hub):
    assert deploy(hub, "--public", "--no-wait").returncode == 0
    assert hub.spaces[SPACE].visibility == "public"


def test_a_dry_run_touches_nothing(hub, tmp_path):
    done = deploy(
        hub, "--dry-run", "--flavor", "zero-gpu", "--secret", f"GIVEN={SECRET}", token="", home=tmp_path / "home"
    )
    assert done.returncode == 0, done.stdout
    assert hub.asked == []
    assert not (tmp_path / "home").exists()
    assert f"create {SPACE} as a Gradio Space, private" in done.stdout
    assert "set variable CAUSAL_TRACER_MODELS=openai-community/gpt2-xl" in done.stdout
    assert "set secret GIVEN" in done.stdout
    assert SECRET not in done.stdout
    assert "--hardware zero-a10g requests it" in done.stdout
    listed = set(re.findall(r"^  (\S+)  \d+ bytes", done.stdout, re.MULTILINE))
    wet = deploy(hub, "--flavor", "zero-gpu", "--no-wait")
    assert wet.returncode == 0, wet.stdout
    assert listed == set(hub.spaces[SPACE].files) - {".gitattributes"}


def test_the_old_commit_that_still_runs_is_not_taken_for_the_new_one(hub):
    hub.spaces[SPACE] = HubSpace("private", "gradio")
    hub.stages = ("OLD", "OLD", "BUILDING", "BUILD_ERROR")
    hub.error = "No matching distribution found"
    done = deploy(hub)
    assert done.returncode == 1
    assert "BUILD_ERROR: No matching distribution found" in done.stdout
    assert "It runs" not in done.stdout


def test_a_hub_that_does_not_say_which_commit_runs(hub):
    hub.known_sha = False
    hub.stages = ("OLD", "BUILDING", "RUNNING")
    done = deploy(hub)
    assert done.returncode == 0, done.stdout
    assert re.findall(r"The Space is (.*)\.", done.stdout) == ["running", "building", "running"]


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        (("BUILDING", "RUNTIME_ERROR"), "does not run (RUNTIME_ERROR"),
        (("BUILDING", "PAUSED"), "is paused. Start it in its settings"),
        (("BUILDING",), "is still BUILDING after"),
    ],
)
def test_a_space_that_does_not_come_up(hub, stages, words):
    hub.stages = stages
    done = deploy(hub, "--timeout", "0.05")
    assert done.returncode == 1
    assert words in done.stdout


@pytest.mark.parametrize(
    ("path", "status"), [("repos/create", 500), ("commit/main", 400), ("^/lfs/", 403), ("runtime", 404)]
)
def test_an_error_that_repeats_what_was_sent_shows_no_secret(hub, path, status):
    hub.refuse, hub.refuse_with = path, status
    done = deploy(hub, "--secret", f"GIVEN={SECRET}", "--timeout", "0.05")
    assert done.returncode == 1, done.stdout
    assert "The hub could not do this" in done.stdout
    assert TOKEN not in done.stdout
    assert SECRET not in done.stdout
    assert "Traceback" not in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--variable", "A"), "--variable A has no value"),
        (("--variable", "A-B=1"), "takes NAME=VALUE"),
        (("--secret", "NOT_IN_THIS_SHELL"), "this shell has no variable NOT_IN_THIS_SHELL"),
        (("--variable", "A=1", "--secret", "A=2"), "A is given as a variable and as a secret"),
    ],
)
def test_wrong_arguments(hub, arguments, words):
    done = deploy(hub, *arguments)
    assert done.returncode == 1
    assert words in done.stdout
    assert hub.asked == []


def test_no_token_and_a_wrong_one(hub, tmp_path):
    none = deploy(hub, token="", home=tmp_path)
    assert none.returncode == 1
    assert "hf auth login" in none.stdout
    assert hub.asked == []
    wrong = "hf_" + "w" * 34
    refused = deploy(hub, token=wrong)
    assert refused.returncode == 1
    assert wrong not in refused.stdout
    assert hub.spaces == {}
