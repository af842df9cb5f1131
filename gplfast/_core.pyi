# Checked against the built extension by `make stubtest`.
from numpy import bool_, float16, float32, int64, uint8
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
def count_survivors(queries: object, docs: object, k: int, metric: str, threads: int) -> dict[str, int]: ...
def dedup(
    docs: object,
    threshold: float,
    metric: str,
    keep_last: bool,
    rule: str,
    threads: int,
    *,
    block_rows: int = 0,
    scan_depth: int = 0,
) -> tuple[NDArray[int64], int]: ...
def gram(
    docs: object,
    lists: object,
    metric: str,
    triangle: bool,
    dtype: str,
    threads: int,
    *,
    block_rows: int = 0,
) -> tuple[NDArray[float32] | NDArray[float16], NDArray[int64]]: ...
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
def measure_peak(kind: str, threads: int, seconds: float, *, n_bytes: int = 1073741824) -> float: ...
def current_isa() -> str: ...
def available_isas() -> list[str]: ...
def force_isa(name: str) -> None: ...
def available_threads() -> int: ...
def set_bound_scale_for_testing(scale: float) -> None: ...
def set_max_resident_bytes_for_testing(n_bytes: int) -> None: ...

class Index:
    def __init__(self, dim: int, metric: str, *, chunk_docs: int = 0) -> None: ...
    @staticmethod
    def open(rows: object, metric: str, packed: object, mean: object, chunk_docs: int, hashes: list[int]) -> Index: ...
    def add(self, docs: object, threads: int) -> None: ...
    def search(
        self,
        queries: object,
        k: int,
        exclude: object,
        threads: int,
        begin: int,
        end: int,
        *,
        block_queries: int = 0,
        block_docs: int = 0,
    ) -> tuple[NDArray[float32], NDArray[int64]]: ...
    def n_docs(self) -> int: ...
    def n_chunks(self) -> int: ...
    def chunk_docs(self) -> int: ...
    def mean(self) -> list[float]: ...
    def chunk(self, i: int) -> tuple[NDArray[uint8], int]: ...
    def pieces(self) -> list[NDArray[float32]]: ...
