"""One matrix on disk, written shard by shard, read as one array."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gplfast.errors import ArtifactError, DTypeError, ShapeError
from gplfast.store.embeddings import EmbeddingStore

VALUES = np.random.default_rng(3).standard_normal((23, 5)).astype(np.float32)

KILLED = """
import os, signal, sys
import numpy as np
from gplfast.store.embeddings import EmbeddingStore
store = EmbeddingStore(sys.argv[1], "f", 5, 23, shard_rows=4)
values = np.random.default_rng(3).standard_normal((23, 5)).astype(np.float32)
store.write(0, values[:4])
store.write(2, values[8:12])
pwrite = os.pwrite
def half(handle, content, offset):
    pwrite(handle, content[:7], offset)
    os.kill(os.getpid(), signal.SIGKILL)
os.pwrite = half
store.write(1, values[4:8])
"""


def fill(store: EmbeddingStore, values: np.ndarray) -> None:
    for shard in store.missing():
        rows = store.rows(shard)
        store.write(shard, np.ascontiguousarray(values[rows.start : rows.stop]))


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("shard_rows", [1, 4, 23, 100])
def test_what_was_written_is_read(tmp_path, dtype, shard_rows):
    store = EmbeddingStore(tmp_path, "f", 5, 23, dtype=dtype, shard_rows=shard_rows)
    values = VALUES.astype(dtype)
    fill(store, values)
    again = EmbeddingStore(tmp_path, "f", 5, 23, dtype=dtype, shard_rows=shard_rows)
    assert again.missing() == []
    array = again.array()
    assert array.dtype == dtype
    assert array.flags.c_contiguous
    assert not array.flags.writeable
    assert np.array_equal(array, values)
    assert np.array_equal(np.load(again.path), values)
    again.verify()


def test_kill_9_in_the_middle_of_a_shard(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    assert subprocess.run(command, env=environment, timeout=60, check=False).returncode == -signal.SIGKILL
    store = EmbeddingStore(tmp_path, "f", 5, 23, shard_rows=4)
    assert store.missing() == [1, 3, 4, 5]
    fill(store, VALUES)
    whole = EmbeddingStore(tmp_path / "whole", "f", 5, 23, shard_rows=4)
    fill(whole, VALUES)
    for name in ("embeddings.npy", "embeddings.json"):
        assert (tmp_path / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize(
    "change", [{"fingerprint": "g"}, {"dim": 6}, {"n_rows": 22}, {"dtype": "float16"}, {"shard_rows": 5}]
)
def test_anything_else_starts_anew(tmp_path, change):
    settings = {"fingerprint": "f", "dim": 5, "n_rows": 23, "dtype": "float32", "shard_rows": 4}
    fill(EmbeddingStore(tmp_path, **settings), VALUES)
    store = EmbeddingStore(tmp_path, **{**settings, **change})
    assert store.missing() == list(range(store.n_shards))


def test_rows_of_two_batch_sizes_are_never_mixed(tmp_path):
    """The last bits of an embedding depend on what else is in the batch."""
    store = EmbeddingStore(tmp_path, "f", 5, 23, shard_rows=10, batch_size=64)
    store.write(0, VALUES[:10])
    assert EmbeddingStore(tmp_path, "f", 5, 23, shard_rows=10, batch_size=64).missing() == [1, 2]
    again = EmbeddingStore(tmp_path, "f", 5, 23, shard_rows=10, batch_size=8)
    assert again.missing() == [0, 1, 2]
    fill(again, VALUES)
    before = (tmp_path / "embeddings.json").read_bytes()
    assert EmbeddingStore(tmp_path, "f", 5, 23, shard_rows=10, batch_size=64).missing() == []
    assert (tmp_path / "embeddings.json").read_bytes() == before


@pytest.mark.parametrize("damage", ["record", "length", "header", "gone"])
def test_damage_starts_anew(tmp_path, damage):
    store = EmbeddingStore(tmp_path, "f", 5, 23)
    fill(store, VALUES)
    content = store.path.read_bytes()
    if damage == "record":
        (tmp_path / "embeddings.json").write_text("{")
    elif damage == "gone":
        store.path.unlink()
    else:
        store.path.write_bytes(content[:-1] if damage == "length" else b"X" + content[1:])
    assert EmbeddingStore(tmp_path, "f", 5, 23).missing() == [0]


def test_a_flipped_bit_is_found(tmp_path):
    store = EmbeddingStore(tmp_path, "f", 5, 23, shard_rows=10)
    fill(store, VALUES)
    content = bytearray(store.path.read_bytes())
    content[-150] ^= 1
    store.path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"shard 1 \(rows 10 to 19\) changed since it was written"):
        store.verify()


def test_messages(tmp_path):
    store = EmbeddingStore(tmp_path, "f", 5, 23, shard_rows=10)
    with pytest.raises(ArtifactError, match="incomplete: 0 of 3 shards"):
        store.array()
    with pytest.raises(ShapeError, match=r"shard 2 has shape \(10, 5\) but needs \(3, 5\)"):
        store.write(2, np.zeros((10, 5), np.float32))
    with pytest.raises(DTypeError, match="is float64 but the store is float32, C-contiguous; use numpy"):
        store.write(0, np.zeros((10, 5)))
    with pytest.raises(DTypeError, match="not C-contiguous"):
        store.write(0, np.zeros((5, 10), np.float32).T)
    with pytest.raises(ShapeError, match="shard 3 but there are 3"):
        store.write(3, np.zeros((3, 5), np.float32))
    with pytest.raises(DTypeError, match="only float32 and float16"):
        EmbeddingStore(tmp_path, "f", 5, 23, dtype="int8")
    with pytest.raises(ShapeError, match="cannot be"):
        EmbeddingStore(tmp_path, "f", 0, 23)


def test_no_rows(tmp_path):
    store = EmbeddingStore(tmp_path, "f", 5, 0)
    assert store.missing() == []
    assert store.array().shape == (0, 5)
    store.verify()
