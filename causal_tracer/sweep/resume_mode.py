"""The modes in which a resumed sweep runs a model, from the fastest to the one that most models support."""

from __future__ import annotations

from dataclasses import dataclass


class CannotResume(Exception):
    """A model does not support a resume mode. It is caught by the first-use check, which tries the next mode."""


@dataclass(frozen=True, slots=True)
class ResumeMode:
    """One way to resume a model.

    Attributes:
        name: The mode's name in results.
        use_cache: Whether to take the tokens before the restored one from a cache. Otherwise all tokens are run, and
            only blocks are skipped.
        broadcast: Whether to call the model with one row, whose mask and positions broadcast to the rows inside the
            blocks.
        positions: Whether to pass `position_ids`, which some models do not derive from their cache.
    """

    name: str
    use_cache: bool
    broadcast: bool
    positions: bool = False


RESUME_MODES = (
    ResumeMode("resumed", use_cache=True, broadcast=True),
    ResumeMode("resumed, all rows", use_cache=True, broadcast=False),
    ResumeMode("resumed in depth", use_cache=False, broadcast=False),
)
