"""From flags to vectors: what the flags ask for, whether it fits the memory, and then the vectors themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gplfast.bench import memory, workloads
from gplfast.errors import ConfigError, DataError

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from gplfast.bench.harness import Peer

ALLOWANCE_BYTES = 256 << 20  # tiles of ours, libraries, small arrays
DEFAULT_DIM = 384


def documents(
    arguments: argparse.Namespace, peers: Sequence[Peer], *, n_queries: int = 0, working_bytes: int = 0
) -> tuple[NDArray[np.float32], str]:
    """The documents and where they come from.

    Args:
        arguments: Flags of `search` or `dedup`.
        peers: Whose copies of the documents need memory too.
        n_queries: That will be drawn.
        working_bytes: That a peer needs for scores.

    Raises:
        ConfigError: A flag that has no effect, or more memory than there is.
        DataError, DTypeError, ShapeError: An .npy file that does not fit.
    """
    rows = None
    if arguments.embeddings is not None:
        if arguments.dim is not None:
            raise ConfigError("bench: --dim has no effect: the vectors are those of --embeddings; leave it out")
        rows = workloads.read_rows(arguments.embeddings)
    n_docs = arguments.docs or (arguments.default_docs if rows is None else len(rows))
    dim = (arguments.dim or DEFAULT_DIM) if rows is None else rows.shape[1]
    _refuse_impossible(arguments, n_docs)
    in_place = rows is not None and n_docs <= len(rows)
    copies = sum(peer.copies for peer in peers) + (1.0 if peers and arguments.metric == "cosine" else 0.0)
    copies += 0.0 if in_place else 1.0
    copies += 0.3  # an index, or what dedup scans
    needed = int(copies * n_docs * dim * 4) + 12 * n_queries * dim + 64 * n_queries * getattr(arguments, "k", 0)
    memory.refuse_too_large(
        f"{n_docs} documents x {dim}" + (" and what peers make of them" if peers else ""),
        needed + ALLOWANCE_BYTES + (working_bytes if peers else 0),
        "ask for fewer with --docs" + (", or leave peers out with --peers" if peers else ""),
    )
    if rows is None:
        return workloads.clustered(n_docs, dim, arguments.seed), "drawn around 2,000 centres"
    refuse_not_finite(arguments.embeddings, rows[:n_docs])
    if in_place:
        return rows[:n_docs], arguments.embeddings.name
    return workloads.tiled(rows, n_docs, arguments.seed), f"{arguments.embeddings.name}, drawn again with noise"


def queries(arguments: argparse.Namespace, docs: NDArray[np.float32], n_queries: int) -> NDArray[np.float32]:
    """Queries near documents, or the first rows of --query-embeddings.

    Raises:
        ConfigError: Another dimension, or fewer rows than --queries asks for.
        DataError, DTypeError, ShapeError: An .npy file that does not fit.
    """
    file = arguments.query_embeddings
    if file is None:
        return workloads.queries_near(docs, n_queries, arguments.seed)
    rows = workloads.read_rows(file)
    if rows.shape[1] != docs.shape[1]:
        raise ConfigError(f"bench: {file} has dim={rows.shape[1]} but the documents have dim={docs.shape[1]}")
    if len(rows) < n_queries:
        raise ConfigError(f"bench: --queries asks for {n_queries} but {file} has {len(rows)} rows; ask for fewer")
    refuse_not_finite(file, rows[:n_queries])
    return rows[:n_queries]


def _refuse_impossible(arguments: argparse.Namespace, n_docs: int) -> None:
    k = getattr(arguments, "k", 1)
    if k > n_docs:
        raise ConfigError(f"bench: --k is {k} but there are {n_docs} documents; ask for at most as many")
    if getattr(arguments, "query_embeddings", None) is not None and arguments.embeddings is None:
        raise ConfigError("bench: --query-embeddings is given but --embeddings is not; give the documents too")
    if arguments.operation == "dedup" and not 0 <= arguments.copies < 1:
        raise ConfigError(f"bench: --copies is {arguments.copies} but must be from 0 to below 1")


def refuse_not_finite(file: Path, rows: NDArray[np.float32]) -> None:
    """Libraries order NaN and infinities each in its own way: nothing could be compared.

    Raises:
        DataError: A row that has one.
    """
    for start in range(0, len(rows), workloads.ROWS_AT_ONCE):
        finite = np.isfinite(rows[start : start + workloads.ROWS_AT_ONCE]).all(axis=1)
        if not finite.all():
            row = start + int(finite.argmin())
            raise DataError(f"{file}: row {row} has NaN or infinity, which libraries order differently; leave it out")
