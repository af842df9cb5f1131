"""Which errors come from what runs a graph, and which of them mean that a batch did not fit into memory."""

from __future__ import annotations

import re

# ONNX Runtime's CPU and CUDA arenas, CUDA, cuBLAS and cuDNN, OpenVINO and OpenCL, glibc: none has an error class of its
# own.
_WORDS = re.compile(
    r"out of memory|bad[_ ]alloc|failed to allocate memory|(cannot|can't|unable to) allocate|not enough memory"
    r"|smaller than requested bytes|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|OUT_OF_(HOST_)?MEMORY"
    r"|cudaErrorMemoryAllocation|STATUS_INTERNAL_ERROR_(DEVICE|HOST)_ALLOCATION_FAILED|cudaMalloc\w* failed"
    r"|CL_MEM_OBJECT_ALLOCATION_FAILURE|exceed\w* max\w* (size of memory|memory) allocation",
    re.IGNORECASE,
)


def is_of_runtime(error: BaseException) -> bool:
    """Whether what runs a graph raised it: an exception of onnxruntime, or a RuntimeError, as OpenVINO's are."""
    return isinstance(error, RuntimeError) or type(error).__module__.split(".")[0] == "onnxruntime"


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may help.

    Python's MemoryError always; an error of a runtime whose message says so.
    """
    return isinstance(error, MemoryError) or (is_of_runtime(error) and _WORDS.search(str(error)) is not None)
