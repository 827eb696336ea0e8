"""The names of the sources that activations can be taken from: runs, and the mean over prompts."""

from __future__ import annotations

CLEAN = "clean"
"""The prompt's clean run."""

CORRUPTED = "corrupted"
"""The prompt's corrupted run."""

SECOND = "second"
"""With a second prompt: of the two prompts' runs, the one that is not the base run."""

PLACEBO = "placebo"
"""The clean run of another prompt."""

MEAN = "mean"
"""The mean over prompts, which is not a run."""

SOURCE = "source"
"""The clean run of the prompt that a patched run takes activations from."""

BASE = "base"
"""The base run itself, used to keep activations at the values that they have without restoration."""

SAME_PROMPT = (CLEAN, BASE, CORRUPTED)
"""The sources that are runs of the base run's prompt. They are equal before the first corrupted token."""
