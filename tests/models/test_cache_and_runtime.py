"""The cache of exported graphs, and the runtime: damage, what is missing, what is loaded."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gplfast.errors import (
    ArtifactError,
    MissingExtraError,
    ModelError,
    UnavailableError,
)
from gplfast.models import BiEncoder, session
from gplfast.models.cache import cache_root, cached_folder
from gplfast.models.checkpoint import fingerprint, hash_file

pytest.importorskip("onnxruntime", reason="graphs run on onnxruntime")
TEXTS = ["the norman king", "dose of the drug"]


# --- cache ---


def test_a_damaged_cache_is_built_again(encoders, tmp_path, caplog):
    folder = encoders("bert")
    expected = BiEncoder.open(folder, cache_dir=tmp_path).encode(TEXTS)
    (graph,) = tmp_path.rglob("model.onnx")
    assert fingerprint(folder) in str(graph)
    before = graph.stat().st_mtime_ns
    BiEncoder.open(folder, cache_dir=tmp_path)
    assert graph.stat().st_mtime_ns == before
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    for damage in (bytes(data), bytes(data[:100]), None):
        graph.write_bytes(damage) if damage is not None else graph.unlink()
        with caplog.at_level(logging.WARNING):
            found = BiEncoder.open(folder, cache_dir=tmp_path).encode(TEXTS)
        assert "is damaged" in caplog.text
        caplog.clear()
        np.testing.assert_array_equal(found, expected)
    (graph.parent / "files.json").write_text("{")
    BiEncoder.open(folder, cache_dir=tmp_path)
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")], "no temporary folders stay behind"


def test_a_failed_export_leaves_nothing(tmp_path):
    def fail(work: Path) -> None:
        (work / "half").write_text("x")
        raise ModelError("half-way")

    with pytest.raises(ModelError, match=r"half-way"):
        cached_folder(tmp_path / "a" / "b", fail)
    assert list((tmp_path / "a").iterdir()) == []


def test_two_builders_of_one_folder(tmp_path):
    def build(work: Path) -> None:
        if not (tmp_path / "x").exists():  # another process finishes while this one still builds
            cached_folder(tmp_path / "x", lambda other: (other / "file").write_text("same") and None)
        (work / "file").write_text("same")

    assert (cached_folder(tmp_path / "x", build) / "file").read_text() == "same"
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_cache_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ArtifactError, match=r"set GPLFAST_CACHE to a folder that can"):
        cached_folder(tmp_path / "a" / "b", lambda work: None)


def test_cache_that_is_a_file(tmp_path):
    (tmp_path / "cache").write_text("")
    with pytest.raises(ArtifactError, match=r"set GPLFAST_CACHE to a folder that can"):
        cached_folder(tmp_path / "cache" / "b", lambda work: None)


def test_where_the_cache_is(monkeypatch, tmp_path):
    monkeypatch.setenv("GPLFAST_CACHE", str(tmp_path / "env"))
    assert cache_root() == tmp_path / "env" / "models"
    assert cache_root(tmp_path) == tmp_path / "models"
    monkeypatch.delenv("GPLFAST_CACHE")
    assert cache_root() == Path.home() / ".cache" / "gplfast" / "models"


def test_fingerprint_follows_content_only(encoders, copied):
    folder = copied(encoders("bert"))
    assert fingerprint(folder) == fingerprint(encoders("bert"))
    (folder / "README.md").write_text("words")
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "config.json").write_text("{}")
    assert fingerprint(folder) == fingerprint(encoders("bert"))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 63}))
    assert fingerprint(folder) != fingerprint(encoders("bert"))


# --- the runtime ---


def test_corrupt_graph(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"\x08\x01 not a graph")
    with pytest.raises(ModelError, match=r"model.onnx cannot be loaded by onnxruntime .* exported again"):
        session.Session(tmp_path / "model.onnx")


def test_corrupt_graph_whose_seal_fits(encoders, tmp_path):
    """Damage that is older than the seal cannot be noticed by it: the runtime's message says what to delete."""
    folder = encoders("bert")
    BiEncoder.open(folder, cache_dir=tmp_path)
    (graph,) = tmp_path.rglob("model.onnx")
    graph.write_bytes(graph.read_bytes()[:1000])
    seal = {"bytes": 1000, "sha256": hash_file(graph)}
    (graph.parent / "files.json").write_text(json.dumps({"model.onnx": seal}))
    with pytest.raises(ModelError, match=r"model.onnx cannot be loaded by onnxruntime .*; delete that folder"):
        BiEncoder.open(folder, cache_dir=tmp_path)


def test_provider_that_is_not_there(tmp_path):
    with pytest.raises(UnavailableError, match=r"provider is 'tpu' but must be one of cpu, cuda"):
        session.Session(tmp_path / "model.onnx", provider="tpu")
    if "CUDAExecutionProvider" not in session.info()["providers"]:
        with pytest.raises(UnavailableError, match=r"needs CUDAExecutionProvider but this onnxruntime has"):
            session.Session(tmp_path / "model.onnx", provider="cuda")


@pytest.mark.parametrize("missing", ["onnxruntime", "onnx", "tokenizers", "safetensors"])
def test_missing_extras_name_the_command(missing, encoders, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'gplfast\[cpu\]'"):
        BiEncoder.open(encoders("bert"), cache_dir=tmp_path)


def test_info(monkeypatch):
    found = session.info()
    assert "CPUExecutionProvider" in found["providers"]
    assert found["threads"] >= 1
    assert found["conflict"] is None or len(found["installed"]) == 2
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0")
    assert "both installed and overwrite each other" in session.info()["conflict"]


def run_python(code: str) -> None:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path})


def test_importing_models_loads_nothing_heavy():
    heavy = "torch transformers onnx onnxruntime tokenizers safetensors huggingface_hub pyarrow"
    run_python(
        f"import sys, gplfast.models; found = set('{heavy}'.split()) & set(sys.modules); assert not found, found"
    )


def test_export_and_serving_need_no_torch(encoders, t5s, tmp_path):
    run_python(
        "import sys\n"
        "for name in ('torch', 'transformers', 'sentence_transformers', 'huggingface_hub'): sys.modules[name] = None\n"
        "from gplfast.models import BiEncoder, CrossEncoder, QueryGenerator\n"
        f"BiEncoder.open({str(encoders('mpnet'))!r}, cache_dir={str(tmp_path)!r}).encode(['the king'])\n"
        f"CrossEncoder.open({str(encoders('bert', 1))!r}, cache_dir={str(tmp_path)!r}).score(['king'], ['the king'])\n"
        f"generator = QueryGenerator.open({str(t5s['v1.1'])!r}, cache_dir={str(tmp_path)!r})\n"
        "generator.generate(['the king'], 1, seed=0, items=[0])\n"
    )


def test_large_weights_go_beside_the_graph(encoders, tmp_path, monkeypatch):
    expected = BiEncoder.open(encoders("bert"), cache_dir=tmp_path / "one").encode(TEXTS)
    monkeypatch.setattr("gplfast.models.export.graph.EXTERNAL_DATA_BYTES", 1000)
    encoder = BiEncoder.open(encoders("bert"), cache_dir=tmp_path / "two")
    assert len(list((tmp_path / "two").rglob("model.onnx.data"))) == 1
    np.testing.assert_array_equal(encoder.encode(TEXTS), expected)
