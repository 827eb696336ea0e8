"""The guide to changing the package: its patches apply, and its code runs on the result."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/guides/changing-the-package.md").read_text()
GUIDES = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
START = """
from tests.support.tiny_models import PROMPT as prompt, SUBJECT as subject, tiny_tracer
tracer = tiny_tracer("llama")
"""


@pytest.mark.parametrize(("guide", "most_files"), [("A setting of a request", 2), ("A figure", 1), ("A site", 3)])
def test_a_guide_s_patch_gives_what_its_code_says(guide: str, most_files: int, tmp_path: Path) -> None:
    """The patch changes at most `most_files` files, not counting the test that comes with the change."""
    (patch,) = re.findall(r"```diff\n(.*?)```", GUIDES[guide], re.DOTALL)
    assert len(re.findall(r"^\+\+\+ ", patch, re.MULTILINE)) <= most_files
    shutil.copytree(ROOT / "causal_tracer", tmp_path / "causal_tracer", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    subprocess.run(["git", "apply", "--recount", "-"], input=patch, text=True, cwd=tmp_path, check=True)
    code = START + "\n".join(re.findall(r"```python\n(.*?)```", GUIDES[guide], re.DOTALL))
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
