"""kill -9 at any point, start again: the same bytes as without."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest

from gplfast.errors import ArtifactError
from gplfast.store.manifest import Manifest, freshness
from gplfast.store.shards import ShardSet

MANIFEST = Manifest("numbers", inputs={"seed": "7"}, config={"shard_rows": 1000})
N_SHARDS = 4

STAGE = """
import os, pathlib, signal, sys
import numpy as np, pyarrow as pa
from gplfast.store.manifest import Manifest
from gplfast.store.shards import ShardSet

folder, victim, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
calls = 0

def deadly(function):
    def wrapped(*arguments, **named):
        global calls
        calls += 1
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return wrapped

if victim == "fsync":
    os.fsync = deadly(os.fsync)
elif victim == "replace":
    pathlib.Path.replace = deadly(pathlib.Path.replace)
elif victim == "write":
    import pyarrow.parquet as pq
    class Deadly(pq.ParquetWriter):
        def write_table(self, table, **named):  # dies with the rows written and the footer not
            super().write_table(table, **named)
            deadly(lambda: None)()
    pq.ParquetWriter = Deadly

shards = ShardSet(folder, Manifest("numbers", inputs={"seed": "7"}, config={"shard_rows": 1000}))
for shard in shards.missing(4):
    shards.write(shard, pa.table({"x": np.random.Generator(np.random.Philox([7, shard])).random(1000)}))
shards.finish({"rows": 4000})
"""


def start(folder: Path, victim: str = "none", kill_at: int = 0) -> int:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", STAGE, str(folder), victim, str(kill_at)]
    return subprocess.run(command, env=environment, timeout=60, check=False).returncode


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if not path.name.startswith(".")}


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert start(folder) == 0
    return content(folder)


@pytest.mark.parametrize(("victim", "kill_at"), [("fsync", 1), ("fsync", 6), ("replace", 6), ("write", 3)])
def test_kill_9_and_resume(tmp_path, uninterrupted, victim, kill_at):
    assert start(tmp_path, victim, kill_at) == -signal.SIGKILL
    fresh, reason = freshness(tmp_path, MANIFEST)
    assert not fresh
    assert reason == "missing" if (victim, kill_at) == ("fsync", 1) else reason.startswith("incomplete: ")
    before = {path.name: path.stat().st_ino for path in tmp_path.glob("shard-*")}
    assert start(tmp_path) == 0
    assert content(tmp_path) == uninterrupted
    assert freshness(tmp_path, MANIFEST).fresh
    after = {path.name: path.stat().st_ino for path in tmp_path.glob("shard-*")}
    assert before.items() <= after.items()  # what was done was kept, not made again


def make(folder: Path, manifest: Manifest = MANIFEST) -> ShardSet:
    shards = ShardSet(folder, manifest)
    for shard in shards.missing(N_SHARDS):
        shards.write(shard, pa.table({"x": [shard, shard]}))
    return shards


def test_finished_shards_are_kept_and_read_in_order(tmp_path):
    done = make(tmp_path).finish({"rows": 8})
    assert done.counts == {"rows": 8}
    assert sorted(done.files) == [f"shard-{i:05d}.parquet" for i in range(N_SHARDS)]
    again = ShardSet(tmp_path, MANIFEST)
    assert again.missing(N_SHARDS) == []
    assert again.table()["x"].to_pylist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert [table["x"][0].as_py() for table in again.tables()] == [0, 1, 2, 3]


def test_another_configuration_drops_them(tmp_path, caplog):
    make(tmp_path).finish({})
    with caplog.at_level("INFO"):
        assert ShardSet(tmp_path, replace(MANIFEST, config={"shard_rows": 10})).missing(2) == [0, 1]
    assert "dropping 4 shards: config.shard_rows is 10 but was 1000" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["shards.json"]


def test_opening_and_reading_change_nothing(tmp_path):
    """Reading takes no lock, so it must not delete what another process made or is making."""
    make(tmp_path / "a").finish({})
    before = content(tmp_path / "a")
    assert ShardSet(tmp_path / "a", MANIFEST).table().num_rows == 2 * N_SHARDS
    other = ShardSet(tmp_path / "a", replace(MANIFEST, config={"shard_rows": 10}))
    with pytest.raises(ArtifactError, match=r"cannot be used: config\.shard_rows is 10 but was 1000; run its step"):
        other.table()
    with pytest.raises(ArtifactError, match="cannot be used: no record of what made its shards"):
        ShardSet(tmp_path / "b", MANIFEST).table()
    assert content(tmp_path / "a") == before
    assert not (tmp_path / "b").exists()


def test_no_manifest_stays_beside_a_shard_that_is_made_again(tmp_path):
    make(tmp_path).finish({})
    (tmp_path / "shard-00001.parquet").unlink()
    assert ShardSet(tmp_path, MANIFEST).missing(N_SHARDS) == [1]
    assert not (tmp_path / "manifest.json").exists()


def test_another_number_of_shards_drops_them(tmp_path):
    make(tmp_path).finish({})
    assert ShardSet(tmp_path, MANIFEST).missing(N_SHARDS + 1) == list(range(N_SHARDS + 1))
    assert not (tmp_path / "manifest.json").exists()


def test_shards_of_unknown_origin_are_dropped(tmp_path):
    make(tmp_path)
    (tmp_path / "shards.json").write_text("{")
    assert ShardSet(tmp_path, MANIFEST).missing(N_SHARDS) == list(range(N_SHARDS))


def test_a_truncated_shard_is_made_again(tmp_path, caplog):
    make(tmp_path).finish({})
    path = tmp_path / "shard-00002.parquet"
    path.write_bytes(path.read_bytes()[:-7])
    assert "bytes but was written with" in freshness(tmp_path, MANIFEST).reason
    shards = ShardSet(tmp_path, MANIFEST)
    with pytest.raises(ArtifactError, match=r"shard-00002.parquet: truncated or damaged"):
        shards.table()
    assert shards.missing(N_SHARDS) == [2]
    assert "shard-00002.parquet is damaged and will be made again" in caplog.text


def test_use_in_the_wrong_order(tmp_path):
    shards = ShardSet(tmp_path, MANIFEST)
    with pytest.raises(ArtifactError, match=r"call missing\(\) first"):
        shards.write(0, pa.table({}))
    with pytest.raises(ArtifactError, match="cannot be used: no record of what made its shards"):
        shards.finish({})
    shards.missing(2)
    with pytest.raises(ArtifactError, match=r"shard 2 of .* is not below 2"):
        shards.write(2, pa.table({}))
    shards.write(0, pa.table({"x": [1]}))
    with pytest.raises(ArtifactError, match="misses 1 of 2 shards"):
        shards.finish({})
    with pytest.raises(ArtifactError, match=r"shard-00001\.parquet is missing; run the stage again"):
        list(shards.tables())
