"""The runs that activations can be taken from, by name, and the mean over prompts."""

from __future__ import annotations

CLEAN = "clean"
"""The prompt's clean run."""

CORRUPTED = "corrupted"
"""The prompt's corrupted run."""

SECOND = "second"
"""Of two prompts, the run of the one that is not the base run's."""

PLACEBO = "placebo"
"""The clean run of another prompt."""

MEAN = "mean"
"""No run: the mean over prompts."""

SOURCE = "source"
"""The clean run of the prompt that a patched run takes activations from."""

BASE = "base"
"""The source that is the base run itself: what holds activations at the values that they have without restoration."""

SAME_PROMPT = (CLEAN, BASE, CORRUPTED)
"""Runs of the same prompt: all of them are equal before the first corrupted token."""
