"""The processes that share a study: one, or those of `accelerate launch`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from causal_tracer.errors import SettingsError

T = TypeVar("T")

# A process that is done waits for the slowest, which may take days.
_TIMEOUT = timedelta(days=30)


@dataclass(frozen=True)
class Team:
    """This process among those that share a study.

    Attributes:
        rank: Its number; 0 writes the manifest and the Parquet files.
        size: How many there are.
    """

    rank: int = 0
    size: int = 1

    def share(self, value: T) -> T:
        """Return rank 0's value in every process."""
        if self.size == 1:
            return value
        from accelerate.utils import broadcast_object_list

        shared: list[T] = [value]
        broadcast_object_list(shared, from_process=0)
        return shared[0]

    def own(self, work: Sequence[T]) -> list[T]:
        """Return this process's part of the work, shared out in turn."""
        return list(work[self.rank :: self.size])

    def wait(self) -> None:
        """Wait until all processes are here."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def join_team() -> Team:
    """Join the team that `accelerate launch` (or torchrun) started this process in, or make a team of one.

    Only lists of facts go between processes, so they use gloo, whatever devices they compute on.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Team()
    from accelerate import PartialState

    state = PartialState(cpu=True, timeout=_TIMEOUT)
    return Team(state.process_index, state.num_processes)


def leave_team(team: Team) -> None:
    """End what `join_team` began."""
    if team.size > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()


def own_devices(environment: Mapping[str, str], gpus_per_replica: int) -> str:
    """Return the value of CUDA_VISIBLE_DEVICES that gives this process GPUs of its own.

    It must be set before CUDA is first used. Local process i takes the i-th `gpus_per_replica` visible ones; where all
    are hidden, they stay hidden.

    Raises:
        SettingsError: This host has fewer GPUs than its processes need.
    """
    if gpus_per_replica < 1:
        raise SettingsError(f"gpus_per_replica={gpus_per_replica} is too small. Give 1 or more.")
    first = int(environment.get("LOCAL_RANK", "0")) * gpus_per_replica
    wanted = range(first, first + gpus_per_replica)
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return ",".join(map(str, wanted))
    devices = [device.strip() for device in visible.split(",") if device.strip()]
    if not devices:
        return ""
    if wanted.stop > len(devices):
        raise SettingsError(
            f"gpus_per_replica={gpus_per_replica} needs {wanted.stop} GPUs for this process and "
            f"those before it on this host, and CUDA_VISIBLE_DEVICES={visible!r} has {len(devices)}. Start fewer."
        )
    return ",".join(devices[number] for number in wanted)
