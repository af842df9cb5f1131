"""Which process of a training on several devices this one is: what `torchrun` puts into the environment.

Every process runs the same command. The first one does all there is to do; the others take part in trainings.
"""

from __future__ import annotations

import os

from gplfast.errors import ConfigError

# Without LOCAL_RANK accelerate takes a process on a GPU for the only one: each would train on batches of its own.
_SET = {"RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"}


def rank() -> int:
    """The number of this process, 0 for the first one or the only one."""
    return _number("RANK", 0) if world_size() > 1 else 0


def world_size() -> int:
    """How many processes there are; one without all that `torchrun` sets, of which a cluster may leave a part."""
    return _number("WORLD_SIZE", 1) if _SET.issubset(os.environ) else 1


def check_alone() -> None:
    """Refuse what accelerate takes for several processes on a processor, where this one takes itself for the only one.

    Raises:
        ConfigError: WORLD_SIZE is of something else.
    """
    if world_size() == 1 and _number("WORLD_SIZE", 1) > 1:
        missing = ", ".join(sorted(_SET.difference(os.environ)))
        raise ConfigError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']} but {missing} not set: training would wait for other processes; "
            "start it with torchrun, or unset WORLD_SIZE"
        )


def first() -> bool:
    """Whether this is the process that writes."""
    return rank() == 0


def share(batch_size: int, section: str = "") -> int:
    """The rows of a batch that each process computes; `section` of the settings is for the message.

    Raises:
        ConfigError: The processes cannot share it equally.
    """
    if batch_size % world_size():
        name = f"{section} batch_size".strip()
        raise ConfigError(f"{name} is {batch_size} but {world_size()} processes share it; give a multiple of that")
    return batch_size // world_size()


def _number(name: str, otherwise: int) -> int:
    given = os.environ.get(name, "")
    return int(given) if given.isdigit() else otherwise
