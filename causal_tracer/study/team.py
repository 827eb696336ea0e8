"""The team of processes that share a study: a single one, or those that `accelerate launch` started."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from causal_tracer.errors import SettingsError

T = TypeVar("T")

# A process that is done waits for the slowest one, which can take days.
_TIMEOUT = timedelta(days=30)


@dataclass(frozen=True)
class Team:
    """The team of processes that share a study, as one of them sees it.

    Attributes:
        rank: The number of this process. Rank 0 writes the manifest and the Parquet files.
        size: Number of processes.
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
        """Return this process's share of the work: every `size`-th item, from item `rank` on."""
        return list(work[self.rank :: self.size])

    def wait(self) -> None:
        """Wait until all processes have called `wait`."""
        if self.size > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


def join_team() -> Team:
    """Join the processes that `accelerate launch` (or torchrun) started, or return a team of one process.

    The processes exchange only lists of facts, so they use the gloo backend on all devices.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Team()
    from accelerate import PartialState

    state = PartialState(cpu=True, timeout=_TIMEOUT)
    return Team(state.process_index, state.num_processes)


def leave_team(team: Team) -> None:
    """Destroy the process group that `join_team` made."""
    if team.size > 1:
        from accelerate import PartialState

        PartialState().destroy_process_group()


def own_devices(environment: Mapping[str, str], gpus_per_replica: int) -> str:
    """Return the value of CUDA_VISIBLE_DEVICES with which this process sees only its own GPUs.

    It must be set before CUDA is first used. Local process i takes the i-th group of `gpus_per_replica` visible GPUs.

    Args:
        environment: The environment variables.
        gpus_per_replica: Number of GPUs for each process.

    Returns:
        GPU numbers or ids, separated by commas; empty if all GPUs are hidden.

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
            f"gpus_per_replica={gpus_per_replica} needs {wanted.stop} GPUs for this process and those before it on "
            f"this host, and CUDA_VISIBLE_DEVICES={visible!r} has {len(devices)}. Start fewer processes on this host."
        )
    return ",".join(devices[number] for number in wanted)
