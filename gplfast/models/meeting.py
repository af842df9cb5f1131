"""Processes of a training on several devices wait for each other: torch's process group, opened when first needed."""

from __future__ import annotations

import atexit
import datetime as dt
import os
from typing import TYPE_CHECKING, TypeVar

from gplfast import ranks

if TYPE_CHECKING:
    from collections.abc import Callable

Found = TypeVar("Found")

# While the first process generates, mines or labels the others wait: hours to days at MSMARCO's scale. One that died is
# noticed by torchrun, not by this.
_PATIENCE = dt.timedelta(days=30)


def meet() -> None:
    """Wait until every process is here; nothing when there is one."""
    if ranks.world_size() == 1:
        return
    import torch

    _join()
    torch.distributed.all_reduce(torch.zeros(1))


def in_turn(work: Callable[[], Found]) -> Found:
    """Call in the first process, then in the others, which find done what the first one did and wrote."""
    if not ranks.first():
        meet()
        return work()
    found = work()
    meet()
    return found


def of_first(work: Callable[[], Found]) -> Found:
    """What the first process's call returns, in every process."""
    if ranks.world_size() == 1:
        return work()
    import torch

    _join()
    found: list[Found | None] = [work() if ranks.first() else None]
    torch.distributed.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[return-value]


def leave() -> None:
    """End what `meet` opened: left to the end of the process, its threads abort it now and then.

    Over NCCL the processes end it together, so not after an error in one of them.
    """
    if ranks.world_size() == 1:
        return
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _join() -> None:
    import torch

    if torch.distributed.is_initialized():
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        # gloo waits without a kernel on the device, nccl averages gradients.
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl", timeout=_PATIENCE)
    else:
        torch.distributed.init_process_group("gloo", timeout=_PATIENCE)
        atexit.register(leave)  # gloo's is ended by each process alone
