"""How the C library hands memory back to the kernel: training on a CPU wants it kept."""

from __future__ import annotations

import ctypes
import logging
import os
import sys

logger = logging.getLogger(__name__)

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_OTHER_ALLOCATORS = ("jemalloc", "tcmalloc", "mimalloc", "hoard", "snmalloc")


def keep_memory() -> bool:
    """Let glibc keep freed memory for the next allocation, for the rest of this process.

    By default glibc maps every large block anew and unmaps it when it is freed, so each tensor of each training step is
    faulted in page by page again. Measured on 2 busy cores, 5 steps of a 2-layer BERT of width 384 on 16 x 128 tokens:
    191,000 page faults and 0.38 s in the kernel became 21,000 and 0.04 s, and 1.98 s in all became 1.76 s; the peak
    memory did not grow. Where faults cost more, as in some virtual machines, the gain may be larger.

    Returns:
        Whether it was set: not without glibc, and not over the user's own choice (`MALLOC_*`, `GLIBC_TUNABLES`, or
        another allocator in `LD_PRELOAD`).
    """
    if not sys.platform.startswith("linux") or _chosen_by_the_user():
        return False
    try:
        library = ctypes.CDLL(None)
        library.gnu_get_libc_version  # noqa: B018 - musl has no such symbol, and its mallopt does nothing
        mallopt = library.mallopt
    except (OSError, AttributeError):
        logger.debug("no glibc: the allocator is left as it is")
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))


def _chosen_by_the_user() -> bool:
    preloaded = os.environ.get("LD_PRELOAD", "").lower()
    return (
        any(name.startswith("MALLOC_") for name in os.environ)
        or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
        or any(name in preloaded for name in _OTHER_ALLOCATORS)
    )
