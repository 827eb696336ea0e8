"""The modes in which a resumed sweep runs a model, from the fastest to the least demanding one."""

from __future__ import annotations

from dataclasses import dataclass


class CannotResume(Exception):
    """A model does not support a resume mode. It never leaves the sweep: the next mode is tried."""


@dataclass(frozen=True, slots=True)
class ResumeMode:
    """How a model is resumed.

    Attributes:
        name: Its name in results.
        use_cache: Leave out the tokens before the restored one; else resume in depth only.
        broadcast: Call the model with one row, whose mask and positions broadcast to the rows inside its blocks.
        positions: Pass the tokens' positions, which some models do not take from their cache.
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
