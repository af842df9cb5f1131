"""A file is there whole or not at all, whatever happens to the writer."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from gplfast.errors import ArtifactError
from gplfast.store import atomic

REPO = Path(__file__).parents[2]


def run(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(REPO)}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=False)


def test_json_bytes_do_not_depend_on_key_order(tmp_path):
    atomic.write_json(tmp_path / "a.json", {"b": 1, "a": ["é", None, 0.1]})
    atomic.write_json(tmp_path / "b.json", {"a": ["é", None, 0.1], "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert atomic.read_json(tmp_path / "a.json") == {"a": ["é", None, 0.1], "b": 1}
    with pytest.raises(ValueError, match="JSON"):
        atomic.write_json(tmp_path / "c.json", float("nan"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "b.json"]


def test_parquet_bytes_do_not_depend_on_chunks_or_time(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "PARQUET_ROW_GROUP_ROWS", 100)
    rng = np.random.default_rng(0)
    lists = [rng.integers(0, 9, n).tolist() for n in rng.integers(0, 5, 350)]
    table = pa.table({"text": [f"text {i % 17}" for i in range(350)], "list": pa.array(lists, pa.list_(pa.int64()))})
    pieces = pa.concat_tables([table.slice(0, 3), table.slice(3, 0), table.slice(3, 222), table.slice(225)])
    files = []
    for i, one in enumerate((table, pieces, pa.concat_tables([table, table]).slice(350))):
        atomic.write_parquet(tmp_path / f"{i}.parquet", one)
        files.append((tmp_path / f"{i}.parquet").read_bytes())
    assert files[0] == files[1] == files[2]
    assert atomic.read_parquet(tmp_path / "0.parquet").equals(table)
    atomic.write_parquet(tmp_path / "none.parquet", table.slice(0, 0))
    assert atomic.read_parquet(tmp_path / "none.parquet").schema == table.schema


def test_an_error_in_the_body_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "file"
    with atomic.atomic_write(path) as file:
        file.write(b"old")

    def interrupted():
        with atomic.atomic_write(path) as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_bytes() == b"old"
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_fsync_of_a_full_disk_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    atomic.write_json(path, "old")

    def full(_handle):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        atomic.write_json(path, "new")
    with pytest.raises(OSError, match="No space left"):
        atomic.write_parquet(path, pa.table({"a": [1]}))
    assert atomic.read_json(path) == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["file"]


NO_ROOM = """
import resource, sys
import numpy as np, pyarrow as pa
from gplfast.store import atomic
from gplfast.store.embeddings import EmbeddingStore
folder = sys.argv[1]
small = pa.table({"a": [1, 2, 3]})
big = pa.table({"a": np.random.default_rng(0).integers(0, 1 << 60, 100_000)})
atomic.write_parquet(folder + "/table.parquet", small)
atomic.write_json(folder + "/value.json", "old")
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
def refused(call):
    try:
        call()
    except OSError as error:
        assert folder in str(error), error
        return True
    return False
assert refused(lambda: atomic.write_parquet(folder + "/table.parquet", big))
assert refused(lambda: atomic.write_json(folder + "/value.json", "x" * 100_000))
assert refused(lambda: EmbeddingStore(folder + "/embeddings", "f", 64, 1000))
assert atomic.read_parquet(folder + "/table.parquet").equals(small)
assert atomic.read_json(folder + "/value.json") == "old"
print("whole")
"""


def test_no_room_for_a_larger_file_leaves_the_old_one(tmp_path):
    result = run(NO_ROOM, tmp_path)
    assert result.stdout == "whole\n", result.stderr
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["embeddings", "table.parquet", "value.json"]


def test_damage_is_noticed_and_named(tmp_path):
    path = tmp_path / "t.parquet"
    atomic.write_parquet(path, pa.table({"a": np.arange(10_000)}))
    content = path.read_bytes()
    path.write_bytes(content[:-20])
    with pytest.raises(ArtifactError, match=r"t.parquet: truncated or damaged .* delete it to make it again"):
        atomic.read_parquet(path)
    flipped = bytearray(content)
    flipped[len(content) // 3] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(ArtifactError, match=r"t.parquet: truncated or damaged"):
        atomic.read_parquet(path)
    with pytest.raises(FileNotFoundError):
        atomic.read_parquet(tmp_path / "none.parquet")
    (tmp_path / "x.json").write_text('{"a": ')
    with pytest.raises(ArtifactError, match=r"x.json: not JSON .* delete the file"):
        atomic.read_json(tmp_path / "x.json")


def test_leftovers_are_cleared(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / ".file.0123.tmp").write_bytes(b"half")
    (tmp_path / "a" / "file.tmp").write_bytes(b"not ours")
    assert atomic.remove_leftovers(tmp_path) == 1
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["file.tmp"]
