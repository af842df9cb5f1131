"""Packing checkpoints for bundling, and using them packed."""

from __future__ import annotations

import numpy as np
import pytest

from gplfast.errors import ModelError
from gplfast.models import BiEncoder, QueryGenerator, resolve
from gplfast.models.bundle import is_bundle, pack, unpack
from gplfast.models.checkpoint import Checkpoint

pytest.importorskip("safetensors", reason="weights are safetensors")


def test_pack_and_unpack(t5s, tmp_path):
    source = t5s["v1.0"]
    pack(source, tmp_path / "packed")
    assert not (tmp_path / "packed" / "model.safetensors").exists()
    assert is_bundle(tmp_path / "packed")
    assert not is_bundle(source)
    assert (tmp_path / "packed" / "config.json").read_bytes() == (source / "config.json").read_bytes()
    unpack(tmp_path / "packed", tmp_path / "plain")
    before, after = Checkpoint(source).weights, Checkpoint(tmp_path / "plain").weights
    assert before.names() == after.names()
    for name in before.names():
        old, new = before[name], after[name]
        assert after.raw(name).dtype == np.float32
        if old.ndim == 2:
            step = np.abs(old).max(axis=1, keepdims=True) / 127
            assert (np.abs(old - new) <= step * 0.5001).all()
        else:
            np.testing.assert_allclose(new, old, rtol=1e-3)


def test_bytes_are_reproducible(t5s, tmp_path):
    for name in ("a", "b"):
        pack(t5s["v1.0"], tmp_path / name)
    assert (tmp_path / "a" / "model.int8.safetensors").read_bytes() == (
        tmp_path / "b" / "model.int8.safetensors"
    ).read_bytes()


def test_awkward_tensors(tmp_path):
    from safetensors.numpy import save_file

    (tmp_path / "s").mkdir()
    tensors = {
        "zero_row": np.array([[0, 0], [1, -3]], np.float32),
        "large": np.array([1e6, 1], np.float32),
        "scalar": np.array(2.5, np.float32),
        "cube": np.full((2, 2, 2), 0.5, np.float32),
    }
    save_file(tensors, tmp_path / "s" / "model.safetensors")
    pack(tmp_path / "s", tmp_path / "p")
    unpack(tmp_path / "p", tmp_path / "u")
    from safetensors.numpy import load_file

    found = load_file(tmp_path / "u" / "model.safetensors")
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert found[name].shape == value.shape
        np.testing.assert_allclose(found[name], value, atol=3 / 254)


def test_a_bundle_opens_like_any_model(t5s, tmp_path, no_network):
    pack(t5s["v1.1"], tmp_path / "packed")
    unpack(tmp_path / "packed", tmp_path / "plain")
    cache = tmp_path / "cache"
    packed = QueryGenerator.open(tmp_path / "packed", cache_dir=cache)
    plain = QueryGenerator.open(tmp_path / "plain", cache_dir=cache)
    assert packed.fingerprint == plain.fingerprint
    arguments = {"seed": 0, "items": [0], "n_samples": 3}
    assert packed.generate(["the king of france"], **arguments) == plain.generate(["the king of france"], **arguments)
    first = resolve(tmp_path / "packed", cache_dir=cache)
    assert first == resolve(tmp_path / "packed", cache_dir=cache)
    assert first.parent == cache / "models"


def test_unpacked_directories_load_in_transformers(encoders, tmp_path):
    transformers = pytest.importorskip("transformers", reason="loads what was unpacked")
    pack(encoders("bert"), tmp_path / "packed")
    folder = resolve(tmp_path / "packed", cache_dir=tmp_path / "cache")
    model = transformers.AutoModel.from_pretrained(folder)
    found = model.embeddings.word_embeddings.weight.detach().numpy()
    np.testing.assert_array_equal(found, Checkpoint(folder).weights["embeddings.word_embeddings.weight"])


def test_int8_embeddings_stay_close(encoders, tmp_path):
    pack(encoders("minilm"), tmp_path / "packed")
    texts = ["the norman king of england", "the dose of the drug"]
    exact = BiEncoder.open(encoders("minilm"), cache_dir=tmp_path).encode(texts)
    close = BiEncoder.open(tmp_path / "packed", cache_dir=tmp_path).encode(texts)
    cosine = (exact * close).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(close, axis=1)
    assert cosine.min() > 0.999


def test_refusals(t5s, tmp_path):
    from safetensors.numpy import load_file, save_file

    with pytest.raises(ModelError, match=r"has no model.safetensors"):
        pack(tmp_path, tmp_path / "x")
    pack(t5s["v1.0"], tmp_path / "packed")
    with pytest.raises(ModelError, match="is not empty; give a new directory"):
        pack(t5s["v1.0"], tmp_path / "packed")
    path = tmp_path / "packed" / "model.int8.safetensors"
    tensors = load_file(path)
    tensors.pop("shared.weight.scale")
    save_file(tensors, path)
    with pytest.raises(ModelError, match=r"weight shared.weight has 128 rows but no scale for each; pack it again"):
        resolve(tmp_path / "packed", cache_dir=tmp_path / "cache")
