"""Deploy the app to the Hugging Face hub as a Space: `python spaces/deploy.py USER/NAME --flavor cpu`.

The token is that of `hf auth login` or `HF_TOKEN`. It is not an argument, and is never printed or uploaded.
`--dry-run` prints every file and every operation, and changes nothing here or on the hub.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import httpx
from huggingface_hub import HfApi, SpaceHardware, get_token
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]
from staging import FLAVORS, Flavor, StagedFile, StagingError, read_flavor, stage, write

# If the hub does not report which commit runs, it may show the old one for this long.
_SETTLE_SECONDS = 30.0
_FAILED = ("BUILD_ERROR", "RUNTIME_ERROR", "CONFIG_ERROR", "NO_APP_FILE", "DELETING")
_IDLE = ("STOPPED", "PAUSED")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

Say = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class WaitTimes:
    """The longest wait for the Space, and the time between two looks at its state, in seconds."""

    seconds: float
    poll: float


class DeployError(Exception):
    """The Space could not be deployed; the message has the reason and what to do."""


@dataclass(frozen=True)
class Deployment:
    """One deployment.

    Attributes:
        space: The Space's id, USER/NAME.
        flavor: How the app runs there.
        files: The files to upload.
        variables: Environment variables, including the flavour's own; everybody can read them.
        secrets: Secrets, which nobody can read again.
        hardware: The hardware to request; None keeps the Space's own.
        public: Whether a newly created Space is public.
    """

    space: str
    flavor: Flavor
    files: tuple[StagedFile, ...]
    variables: dict[str, str]
    secrets: dict[str, str]
    hardware: SpaceHardware | None
    public: bool


def main(argv: Sequence[str] | None = None, say: Say = print) -> int:
    """Deploy as the command line says; return the exit status, 1 if it failed."""
    options = _parser().parse_args(argv)
    hidden: list[str] = []

    def report(line: str) -> None:
        for text in hidden:
            line = line.replace(text, "***")
        say(line)

    try:
        plan = _deployment(options)
        hidden.extend(sorted((value for value in plan.secrets.values() if value), key=len, reverse=True))
        if options.stage:
            write(plan.files, Path(options.stage))
            report(f"{len(plan.files)} files are in {options.stage}. Nothing was uploaded.")
        elif options.dry_run:
            _describe(plan, report, wait=not options.no_wait)
        else:
            token = get_token()
            if not token:
                raise DeployError("There is no token. Run `hf auth login`, or set HF_TOKEN, then try again.")
            hidden.append(token)
            _deploy(plan, token, report, None if options.no_wait else WaitTimes(options.timeout, options.poll))
    except (StagingError, DeployError) as error:
        report(f"Error: {error}")
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Deploy the app to the Hugging Face hub as a Space, or update it there.",
        epilog="The token is that of `hf auth login`, or the environment variable HF_TOKEN.",
    )
    parser.add_argument("space", metavar="USER/NAME", help="the Space: a user or an organisation, and a name")
    parser.add_argument("--flavor", choices=FLAVORS, default="cpu", help="how the app runs there (default: cpu)")
    parser.add_argument("--dry-run", action="store_true", help="print every file and operation, and change nothing")
    parser.add_argument("--stage", metavar="FOLDER", help="only write the files into a new folder")
    parser.add_argument("--public", action="store_true", help="create a public Space; an existing one is not changed")
    parser.add_argument("--hardware", help="hardware to request, such as cpu-basic, zero-a10g or l4x1; may cost money")
    parser.add_argument(
        "--variable", action="append", default=[], metavar="NAME=VALUE", help="an environment variable, public to all"
    )
    parser.add_argument(
        "--secret",
        action="append",
        default=[],
        metavar="NAME[=VALUE]",
        help="a secret; without a value, that of this shell's variable",
    )
    parser.add_argument("--no-wait", action="store_true", help="do not wait until the Space runs")
    parser.add_argument("--poll", type=float, default=3, help="seconds between two queries of its state (default: 3)")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds to wait until it runs (default: 1800)")
    return parser


def _deployment(options: argparse.Namespace) -> Deployment:
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", options.space, re.ASCII):
        raise DeployError(f"{options.space!r} is not a Space's id. Give USER/NAME, for example ada/causal-tracer.")
    flavor = read_flavor(options.flavor)
    variables = {**flavor.variables, **dict(_pair(text, "--variable") for text in options.variable)}
    secrets = dict(_pair(text, "--secret", os.environ) for text in options.secret)
    if both := sorted(variables.keys() & secrets.keys()):
        raise DeployError(f"{', '.join(both)} is given as a variable and as a secret. Choose one.")
    files = stage(options.space, flavor)
    # Not checked here: the hub may have hardware that this huggingface_hub does not know yet.
    hardware = cast(SpaceHardware | None, options.hardware)
    return Deployment(options.space, flavor, files, variables, secrets, hardware, options.public)


def _pair(text: str, option: str, environment: Mapping[str, str] | None = None) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not _VARIABLE.fullmatch(name):
        # The text itself may be a secret.
        raise DeployError(f"{option} takes NAME=VALUE, and NAME may have letters, digits and underscores only.")
    if equals:
        return name, value
    if environment is None:
        raise DeployError(f"{option} {name} has no value. Give {name}=VALUE.")
    if not environment.get(name):
        raise DeployError(f"{option} {name} has no value, and this shell has no variable {name}. Set it first.")
    return name, environment[name]


def _describe(plan: Deployment, say: Say, *, wait: bool) -> None:
    """Print every file and operation of a deployment."""
    say(f"Dry run of {plan.space}, flavor {plan.flavor.name}: nothing is changed.")
    say(f"{len(plan.files)} files, {sum(len(file.content) for file in plan.files) / 1e3:.0f} kB:")
    for file in plan.files:
        origin = "" if file.source == file.path else f"  from {file.source}"
        say(f"  {file.path}  {len(file.content)} bytes{origin}{'' if file.committed else '  (not committed)'}")
    say("Operations:")
    visibility = "public" if plan.public else "private"
    say(f"  create {plan.space} as a Gradio Space, {visibility}; an existing Space keeps its visibility")
    for name, value in plan.variables.items():
        say(f"  set variable {name}={value}")
    for name in plan.secrets:
        say(f"  set secret {name}")
    say(f"  {_hardware_words(plan)}")
    say("  upload the files above in one commit, and delete every other file of the Space")
    if wait:
        say("  wait until it runs, and print the link")


def _hardware_words(plan: Deployment) -> str:
    if plan.hardware:
        return f"request hardware {plan.hardware}"
    meant = plan.flavor.hardware
    return f"request no hardware; this flavor is meant for {meant}: --hardware {meant} requests it"


def _deploy(plan: Deployment, token: str, say: Say, wait_times: WaitTimes | None) -> None:
    disable_progress_bars()
    api = HfApi(token=token)
    link = f"{api.endpoint}/spaces/{plan.space}"
    commit = _asking(lambda: _upload(api, plan, say))
    if wait_times is None:
        say(f"Uploaded; not waiting until it runs. {link}")
        return
    _asking(lambda: _wait(api, plan.space, commit, say, wait_times, link))
    say(f"It runs: {link}")


def _asking(work: Callable[[], T]) -> T:
    try:
        return work()
    # A failed upload of a large file raises a bare RuntimeError with the cause attached.
    except (HfHubHTTPError, httpx.HTTPError, OSError, RuntimeError) as error:
        cause = f" ({error.__cause__})" if error.__cause__ else ""
        raise DeployError(f"The hub could not do this: {error}{cause}") from error


def _upload(api: HfApi, plan: Deployment, say: Say) -> str:
    """Create or update the Space; return the commit that it will run."""
    if api.repo_exists(plan.space, repo_type="space"):
        say(f"{plan.space} exists and is updated.")
        for name, value in plan.variables.items():
            api.add_space_variable(plan.space, name, value)
            say(f"Variable {name} is set.")
        for name, value in plan.secrets.items():
            api.add_space_secret(plan.space, name, value)
            say(f"Secret {name} is set.")
        if plan.hardware:
            api.request_space_hardware(plan.space, plan.hardware)
    else:
        api.create_repo(
            plan.space,
            repo_type="space",
            space_sdk="gradio",
            private=not plan.public,
            space_hardware=plan.hardware,
            space_variables=[{"key": name, "value": value} for name, value in plan.variables.items()] or None,
            space_secrets=[{"key": name, "value": value} for name, value in plan.secrets.items()] or None,
        )
        say(f"{plan.space} is created, {'public' if plan.public else 'private'}.")
    say(f"Hardware: {_hardware_words(plan)}.")
    with tempfile.TemporaryDirectory(prefix="space-") as folder:
        write(plan.files, Path(folder))
        uploaded = api.upload_folder(
            repo_id=plan.space,
            repo_type="space",
            folder_path=folder,
            delete_patterns="*",
            commit_message=f"Deploy causal_tracer, flavor {plan.flavor.name}",
        )
    say(f"{len(plan.files)} files are uploaded (commit {uploaded.oid[:12]}).")
    return str(uploaded.oid)


def _wait(api: HfApi, space: str, commit: str, say: Say, wait_times: WaitTimes, link: str) -> None:
    """Wait until the Space runs this commit."""
    waited, shown, built = 0.0, "", False
    while True:
        runtime = api.get_space_runtime(space)
        stage_name = str(getattr(runtime.stage, "value", runtime.stage))
        if stage_name != shown:
            say(f"The Space is {stage_name.lower().replace('_', ' ')}.")
            shown = stage_name
        running = runtime.raw.get("sha")
        built = built or stage_name.endswith(("BUILDING", "STARTING"))
        ours = running == commit if running else built or waited >= _SETTLE_SECONDS
        if stage_name == "RUNNING" and ours:
            return
        if stage_name in _IDLE:
            raise DeployError(f"The Space is {stage_name.lower()}. Start it in its settings: {link}/settings")
        if stage_name in _FAILED and ours:
            reason = runtime.raw.get("errorMessage") or "no reason given"
            raise DeployError(f"The Space does not run ({stage_name}: {reason}). Its logs: {link}?logs=build")
        if waited >= wait_times.seconds:
            raise DeployError(f"The Space is still {stage_name} after {waited:.0f} s. See {link}?logs=build")
        time.sleep(wait_times.poll)
        waited += wait_times.poll


if __name__ == "__main__":
    sys.exit(main())
