"""Which errors mean that a batch did not fit into memory, whoever raised them."""

from __future__ import annotations

import re

# ONNX Runtime's CPU and CUDA arenas, CUDA and cuBLAS, OpenVINO and OpenCL, glibc: none has an error class of its own.
_WORDS = re.compile(
    r"out of memory|bad[_ ]alloc|failed to allocate memory|(cannot|can't|unable to) allocate|not enough memory"
    r"|smaller than requested bytes|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|OUT_OF_(HOST_)?MEMORY"
    r"|CL_MEM_OBJECT_ALLOCATION_FAILURE|exceed\w* max\w* (size of memory|memory) allocation",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may help.

    Python's MemoryError always; an exception of onnxruntime, or a RuntimeError, whose message says so.
    """
    if isinstance(error, MemoryError):
        return True
    of_runtime = isinstance(error, RuntimeError) or type(error).__module__.split(".")[0] == "onnxruntime"
    return of_runtime and _WORDS.search(str(error)) is not None
