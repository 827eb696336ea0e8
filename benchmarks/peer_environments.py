"""The tools that `peers.py` compares: their environments, and their processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
THIS = "this project"
ANSWER = "map: "


@dataclass(frozen=True)
class Tool:
    """One of the tools.

    Attributes:
        script: Its script in `peer_tools/`.
        batch_rows: Batch rows of a forward pass, the fastest number of those tried; 0 lets the tool choose.
        installs: The arguments of each `pip install`, in order; empty for a tool that runs in this environment.
    """

    script: str
    batch_rows: int
    installs: tuple[tuple[str, ...], ...] = ()


_COMMON = ("torch==2.13.0", "transformers==5.24.0", "numpy==2.4.6")
_NNSIGHT = ((*_COMMON, "nnsight==0.8.1"),)
TOOLS: Mapping[str, Tool] = {
    THIS: Tool("by_this_project.py", 0),
    "causal-tracer 1.1.0": Tool(
        "by_version_one.py",
        32,
        # --no-deps: it requires older libraries, but runs with these.
        ((*_COMMON, "accelerate", "matplotlib", "tqdm"), ("--no-deps", "causal-tracer==1.1.0")),
    ),
    "nnsight 0.8.1": Tool("by_nnsight.py", 180, _NNSIGHT),
    "nnsight 0.8.1, skipping": Tool("by_nnsight_skipping.py", 180, _NNSIGHT),
    "TransformerLens 4.3.0": Tool("by_transformer_lens.py", 180, ((*_COMMON, "transformer-lens==4.3.0"),)),
    "pyvene 0.1.8": Tool("by_pyvene.py", 100, ((*_COMMON, "pyvene==0.1.8"),)),
}
"""The tools by name, in the order of a round. Tools with equal `installs` share an environment."""


def environment(tool: Tool, folder: Path) -> Path:
    """Return the folder of a tool's environment, named after the package that is installed last."""
    return folder / tool.installs[-1][-1]


def installations(tool: Tool, folder: Path) -> list[list[str]]:
    """Return the commands that make a tool's environment."""
    place = environment(tool, folder)
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    return [[sys.executable, "-m", "venv", "--clear", str(place)], *([*pip, *packages] for packages in tool.installs)]


def install(tool: Tool, folder: Path) -> str:
    """Make a tool's environment unless it exists with the pinned versions, and return its Python."""
    if not tool.installs:
        return sys.executable
    place, pinned = environment(tool, folder), json.dumps(tool.installs)
    made = place / "made-by-peers.json"
    if not made.is_file() or made.read_text(encoding="utf-8") != pinned:
        for command in installations(tool, folder):
            print(" ".join(command), file=sys.stderr, flush=True)
            subprocess.run(command, check=True)
        made.write_text(pinned, encoding="utf-8")
    return str(place / "bin" / "python")


class ToolError(Exception):
    """A tool could not make a map."""


class Worker:
    """A tool's process, which traces on request.

    Args:
        python: The environment's Python.
        tool: The tool.
        model_folder: The folder of the model.
        threads: Number of threads.
        log: The file for the process's standard error.
    """

    def __init__(self, python: str, tool: Tool, model_folder: str, threads: int, log: Path) -> None:
        variables = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        variables |= {"TOKENIZERS_PARALLELISM": "false"}
        variables.pop("PYTHONPATH", None)
        if not tool.installs:
            variables["PYTHONPATH"] = str(ROOT)
        self._log, self._batch_rows = log, tool.batch_rows
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w", encoding="utf-8") as errors:
            self._process = subprocess.Popen(
                [python, str(ROOT / "benchmarks" / "peer_tools" / tool.script), model_folder, str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=variables,
            )

    def ask(self, task: Mapping[str, Any]) -> dict[str, Any]:
        """Return a map with its time and memory.

        Raises:
            ToolError: The process ended. The message is the last line of its log.
        """
        stdin, stdout = self._process.stdin, self._process.stdout
        if stdin is None or stdout is None:
            raise ToolError("The process has no pipes.")
        try:
            stdin.write(json.dumps({"batch_rows": self._batch_rows, **task}) + "\n")
            stdin.flush()
        except BrokenPipeError as error:
            raise ToolError(self._last_line()) from error
        for line in stdout:
            # Other lines are the tool's own output.
            if line.startswith(ANSWER):
                answer: dict[str, Any] = json.loads(line.removeprefix(ANSWER))
                return answer
        raise ToolError(self._last_line())

    def _last_line(self) -> str:
        lines = self._log.read_text(encoding="utf-8").strip().splitlines()
        return lines[-1] if lines else "The process ended without a message."

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait()
