# Checked against the built extension by `make stubtest`.
from numpy import bool_, float32, int64
from numpy.typing import NDArray

def search(
    queries: object,
    docs: object,
    k: int,
    metric: str,
    exclude: object,
    threads: int,
    *,
    block_queries: int = 0,
    block_docs: int = 0,
) -> tuple[NDArray[float32], NDArray[int64]]: ...
def dedup(
    docs: object,
    threshold: float,
    metric: str,
    keep_last: bool,
    rule: str,
    threads: int,
    *,
    block_rows: int = 0,
) -> tuple[NDArray[int64], int]: ...
def margins(
    positive_scores: object,
    positive_indptr: object,
    negative_scores: object,
    negative_indptr: object,
    reference: str,
    positive_groups: object,
    negative_groups: object,
    filters: dict[str, float | int | str],
    threads: int,
) -> tuple[NDArray[float32], NDArray[bool_], dict[str, int]]: ...
def current_isa() -> str: ...
def available_isas() -> list[str]: ...
def force_isa(name: str) -> None: ...
def available_threads() -> int: ...
def set_bound_scale_for_testing(scale: float) -> None: ...
