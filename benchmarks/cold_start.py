"""Measure the time from the start of a Space's process to its first new map, without and with a converted model.

    python benchmarks/cold_start.py --flavor cpu --repeat 2

`spaces/deploy.py` stages the files. A new virtual environment gets the packages that the Space's builder installs. The
app starts as in a Space, with host and port from environment variables, and `gradio_client` requests the map.
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
# Packages that a Space's builder adds to requirements.txt, besides gradio in the card's sdk_version.
BUILDER = ("uvicorn>=0.14.0", "websockets>=10.4", "spaces")
_PATIENCE = 300.0


@dataclass(frozen=True)
class ColdStart:
    """The times of one start, in seconds since the process was started.

    Attributes:
        page: When the page answers.
        model: When the model is ready.
        first_cells: When the first cells of a new map arrive.
        whole_map: When the map is complete.
        cells: The number of cells of the map.
        processor: The CPU time of the process until then, which depends less on other load of the machine.
    """

    page: float
    model: float
    first_cells: float
    whole_map: float
    cells: int
    processor: float


@dataclass(frozen=True, eq=False)
class RunningSpace:
    """A Space's process, with its address and its start time."""

    address: str
    begun: float
    process: subprocess.Popen[bytes]

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self.begun


def staged_requirements(staged: Path) -> list[list[str]]:
    """Return the arguments of each `pip install` of the Space's builder, in order.

    PyTorch's index URL is left out, so that pip's configuration decides where the wheel comes from.
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
    """Make a new virtual environment with the Space's packages, and return its Python."""
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    for arguments in staged_requirements(staged):
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", *arguments], check=True)
    return python


def free_port() -> int:
    """Return a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running_space(python: Path, staged: Path, home: Path, **variables: str) -> Iterator[RunningSpace]:
    """Run the app as a Space does, with its own home folder."""
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
    """Wait for the page, request a map at once, and return the times and the result."""
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
            if "scores" not in result:  # still waiting for the model
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
    """Write the files of a flavor into a folder, by `spaces/deploy.py`."""
    command = [sys.executable, str(ROOT / "spaces" / "deploy.py"), "ada/tracer", "--flavor", flavor]
    subprocess.run([*command, "--stage", str(folder)], check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Measure, and print the times as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flavor", default="cpu")
    parser.add_argument("--python", type=Path, help="Python of an existing environment (default: a new one)")
    parser.add_argument("--staged", type=Path, help="folder of staged files (default: staged now)")
    parser.add_argument("--repeat", type=int, default=1, help="number of starts; the first one converts the model")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        staged = options.staged or Path(temporary, "staged")
        if options.staged is None:
            stage_flavor(options.flavor, staged)
        python = options.python or make_environment(Path(temporary, "environment"), staged)
        home = Path(temporary, "home")
        home.mkdir()
        for _ in range(options.repeat):
            # Stored results are off, since the second start would find the first one's map.
            with running_space(python, staged, home, CAUSAL_TRACER_RESULTS_FOLDER="off") as space:
                figures, _result = measure(space)
            print(json.dumps({name: round(value, 2) for name, value in asdict(figures).items()}))


if __name__ == "__main__":
    main()
