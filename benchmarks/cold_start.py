"""From the start of a Space's process to its first new map, with nothing cached and with a converted model.

    python benchmarks/cold_start.py --flavor cpu --repeat 2

The files are staged as `spaces/deploy.py` stages them, into an environment of their own that has what the Space's
builder installs; the app is started as a Space starts it, host and port from the environment, and traced by
`gradio_client`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
PROMPT, SUBJECT = "The Eiffel Tower is located in the city of", "The Eiffel Tower"
# What a Space's builder adds to requirements.txt; gradio comes at the card's sdk_version.
BUILDER = ("uvicorn>=0.14.0", "websockets>=10.4", "spaces")
_PATIENCE = 300.0


@dataclass(frozen=True)
class ColdStart:
    """Seconds since the process was started.

    Attributes:
        page: The page answers.
        model: The model is ready.
        first_cells: The first cells of a new map have come.
        whole_map: All of them have.
        cells: How many there are.
        processor: Processor time that the process has taken by then; it depends less on what else the machine does.
    """

    page: float
    model: float
    first_cells: float
    whole_map: float
    cells: int
    processor: float


@dataclass(frozen=True, eq=False)
class RunningSpace:
    """A Space's process: where it answers, and when it was started."""

    address: str
    begun: float
    process: subprocess.Popen[bytes]

    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.begun


def staged_requirements(staged: Path) -> list[list[str]]:
    """What the builder gives to pip, one installation after the other.

    PyTorch's own index is left to pip's configuration: a machine without the internet has that wheel elsewhere.
    """
    card = (staged / "README.md").read_text(encoding="utf-8")
    version = re.search(r"^sdk_version: (\S+)$", card, re.MULTILINE)
    if version is None:
        raise ValueError(f"The card in {staged} has no sdk_version.")
    lines = (staged / "requirements.txt").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if line and not line.startswith(("#", "--extra-index-url"))]
    first = staged / "pre-requirements.txt"
    before = [["-r", str(first)]] if first.is_file() else []
    return [*before, [*packages, f"gradio[oauth,mcp]=={version[1]}", *BUILDER]]


def make_environment(folder: Path, staged: Path) -> Path:
    """A fresh virtual environment with what the Space would have; its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    for arguments in staged_requirements(staged):
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)
    return python


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_space(python: Path, staged: Path, home: Path, **variables: str) -> Iterator[RunningSpace]:
    """The app as a Space runs it, with a home of its own."""
    port = free_port()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "SYSTEM": "spaces",
        "SPACE_ID": "ada/tracer",
        "SPACE_HOST": "ada-tracer.hf.space",
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_ANALYTICS_ENABLED": "False",
        "HF_HUB_OFFLINE": "1",
        **variables,
    }
    begun = time.monotonic()
    with (home / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [str(python), "app.py"], cwd=staged, env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield RunningSpace(f"http://127.0.0.1:{port}/", begun, process)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def measure(space: RunningSpace, **request: Any) -> tuple[ColdStart, dict[str, Any]]:
    """Wait for the page, ask for a map at once, and note when what comes."""
    from gradio_client import Client

    while not _answers(space.address):
        if space.seconds() > _PATIENCE or space.process.poll() is not None:
            raise TimeoutError(f"Nothing answers at {space.address} after {space.seconds():.0f} s.")
        time.sleep(0.1)
    page = space.seconds()
    client = Client(space.address, verbose=False)
    try:
        job = client.submit({"request": {"prompt": PROMPT, "subject": SUBJECT, **request}}, api_name="/trace")
        model = first = 0.0
        result: dict[str, Any] = {}
        for result in job:
            if "scores" not in result:  # it waits for the model
                continue
            known = [score for row in result["scores"] for score in row if score is not None]
            model = model or space.seconds()
            first = first or (space.seconds() if known else 0.0)
        whole = space.seconds()
        times = psutil.Process(space.process.pid).cpu_times()
    finally:
        client.close()
    rows = result["scores"]
    return ColdStart(page, model, first, whole, len(rows) * len(rows[0]), times.user + times.system), result


def _answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def stage_flavor(flavor: str, folder: Path) -> None:
    """Write a flavour's files into a folder, by the command that people use."""
    command = [sys.executable, str(ROOT / "spaces" / "deploy.py"), "ada/tracer", "--flavor", flavor]
    subprocess.run([*command, "--stage", str(folder)], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Measure, and print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flavor", default="cpu")
    parser.add_argument("--python", type=Path, help="an environment that was made before (default: a fresh one)")
    parser.add_argument("--staged", type=Path, help="files that were staged before (default: staged now)")
    parser.add_argument("--repeat", type=int, default=1, help="starts; all but the first find a converted model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        staged = options.staged or Path(temporary, "staged")
        if options.staged is None:
            stage_flavor(options.flavor, staged)
        python = options.python or make_environment(Path(temporary, "environment"), staged)
        home = Path(temporary, "home")
        home.mkdir()
        for _ in range(options.repeat):
            # Finished maps are not kept, or the second start would have nothing to compute.
            with running_space(python, staged, home, CAUSAL_TRACER_RESULTS_FOLDER="off") as space:
                figures, _result = measure(space)
            print(json.dumps({name: round(value, 2) for name, value in asdict(figures).items()}))


if __name__ == "__main__":
    main()
