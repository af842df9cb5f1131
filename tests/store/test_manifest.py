"""A stage is skipped only when what made the artifact is what is wanted, and the reason is said."""

from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from gplfast.errors import ArtifactError, ConfigError
from gplfast.store.atomic import write_json
from gplfast.store.manifest import Manifest, freshness, retract, verify
from gplfast.store.shards import ShardSet

MANIFEST = Manifest(
    "queries",
    inputs={"corpus": "abc"},
    config={"top_p": 0.95, "lengths": (1, 2), "deep": {"x": None}},
    models={"generator": "f00"},
)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"config": {**MANIFEST.config, "top_p": 0.9}}, "config.top_p is 0.9 but was 0.95"),
        ({"config": {**MANIFEST.config, "deep": {"x": 1}}}, "config.deep.x is 1 but was null"),
        ({"config": {**MANIFEST.config, "lengths": [1, 3]}}, "config.lengths is [1, 3] but was [1, 2]"),
        ({"config": {**MANIFEST.config, "top_k": 5}}, "config.top_k is new (5)"),
        ({"config": {"lengths": [1, 2], "deep": {"x": None}}}, "config.top_p is gone (was 0.95)"),
        ({"inputs": {"corpus": "abd"}}, "inputs.corpus changed"),
        ({"inputs": {"corpus": "abd"}, "models": {}}, "inputs.corpus changed, models.generator changed"),
        ({"schema_version": 2}, "schema_version is 2 but was 1"),
        ({"artifact": "negatives"}, "artifact is negatives but was queries"),
    ],
)
def test_the_reason_names_what_differs(tmp_path, change, reason):
    MANIFEST.write(tmp_path)
    wanted = replace(MANIFEST, **change)
    assert freshness(tmp_path, wanted) == (False, reason)
    assert wanted.key != MANIFEST.key


def test_counts_and_files_are_not_part_of_the_key(tmp_path):
    (tmp_path / "data").write_bytes(b"12345")
    done = MANIFEST.with_counts({"queries": 3}).with_files(tmp_path, ["data"])
    done.write(tmp_path)
    assert Manifest.read(tmp_path) == done
    assert done.key == MANIFEST.key
    assert freshness(tmp_path, MANIFEST) == (True, "fresh")


def test_a_retracted_manifest_is_gone_and_twice_is_fine(tmp_path):
    MANIFEST.write(tmp_path)
    for _ in range(2):
        retract(tmp_path)
        assert freshness(tmp_path, MANIFEST) == (False, "missing")
    retract(tmp_path / "never made")


def test_missing_truncated_and_changed_files(tmp_path):
    assert freshness(tmp_path, MANIFEST) == (False, "missing")
    (tmp_path / "data").write_bytes(b"12345")
    MANIFEST.with_files(tmp_path, ["data"]).write(tmp_path)
    verify(tmp_path)
    (tmp_path / "data").write_bytes(b"1234X")
    with pytest.raises(ArtifactError, match="data is missing or changed since it was written"):
        verify(tmp_path)
    (tmp_path / "data").write_bytes(b"123")
    assert freshness(tmp_path, MANIFEST).reason == "data has 3 bytes but was written with 5"
    (tmp_path / "data").unlink()
    assert freshness(tmp_path, MANIFEST).reason == "data is missing"


def test_incomplete_shards_are_counted(tmp_path):
    shards = ShardSet(tmp_path, MANIFEST)
    for shard in shards.missing(10)[:3]:
        shards.write(shard, pa.table({"a": [shard]}))
    assert freshness(tmp_path, MANIFEST) == (False, "incomplete: 3 of 10 shards")
    other = replace(MANIFEST, inputs={})
    assert freshness(tmp_path, other) == (False, "incomplete, and inputs.corpus changed")


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"artifact": 3}'])
def test_a_damaged_manifest_is_not_fresh(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    fresh, reason = freshness(tmp_path, MANIFEST)
    assert not fresh
    assert "manifest.json" in reason
    with pytest.raises(ArtifactError, match=r"manifest\.json"):
        Manifest.read(tmp_path)


def test_a_manifest_changed_by_hand_is_not_trusted(tmp_path):
    MANIFEST.write(tmp_path)
    text = (tmp_path / "manifest.json").read_text()
    (tmp_path / "manifest.json").write_text(text.replace("0.95", "0.9"))
    with pytest.raises(ArtifactError, match="its key does not fit its content"):
        Manifest.read(tmp_path)


def test_files_stay_inside(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "secret").write_bytes(b"x")
    value = MANIFEST.as_json()
    value["files"] = {"../secret": "1:00"}
    write_json(tmp_path / "in" / "manifest.json", value)
    with pytest.raises(ArtifactError, match="leads outside of"):
        freshness(tmp_path / "in", MANIFEST)
    with pytest.raises(ArtifactError, match="leads outside of"):
        MANIFEST.with_files(tmp_path / "in", ["/etc/hostname"])


def test_a_configuration_that_json_cannot_hold():
    with pytest.raises(ConfigError, match="manifest of queries: config is not JSON"):
        Manifest("queries", config={"x": float("nan")})
    with pytest.raises(ConfigError, match="not JSON"):
        Manifest("queries", config={"x": object()})
