"""What is said when a checkpoint, a name or a call is not what it should be."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from gplfast.errors import (
    ConfigError,
    HubError,
    MissingExtraError,
    ModelError,
    ShapeError,
)
from gplfast.models import BiEncoder, CrossEncoder, QueryGenerator, resolve

pytest.importorskip("onnxruntime", reason="graphs run on onnxruntime")
TEXTS = ["the norman king", "dose of the drug"]


def edit(path: Path, **changes) -> None:
    settings = json.loads(path.read_text())
    for name, value in changes.items():
        if value is None:
            settings.pop(name, None)
        else:
            settings[name] = value
    path.write_text(json.dumps(settings))


# --- names ---


def test_a_directory_is_itself(encoders, no_network):
    assert resolve(encoders("bert")) == encoders("bert")
    assert resolve(str(encoders("bert"))) == encoders("bert")


@pytest.mark.parametrize("name", ["./nothing/here", "/nowhere/model", "a/b/c", "~nobody/x", "nano/"])
def test_a_path_that_is_not_there_opens_no_connection(name, no_network):
    with pytest.raises(ModelError, match=r"is not a directory, and not a hub name"):
        resolve(name)


def test_a_missing_path_object_is_never_a_hub_name(no_network):
    with pytest.raises(ModelError, match=r"is not a directory"):
        resolve(Path("runs/student"))


def test_a_file_is_not_a_model(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"is a file; give the model's directory"):
        resolve(tmp_path / "model.safetensors")


def test_unknown_bundled_model(no_network):
    with pytest.raises(
        ModelError, match=r"nano:reader is not a bundled model but nano:generator, nano:teacher, nano:student"
    ):
        resolve("nano:reader")


def test_hub_that_cannot_be_reached(monkeypatch):
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="hub names need it")
    calls = []

    def fail(name, **kwargs):
        calls.append((name, kwargs))
        raise ConnectionError("no route")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        HubError, match=r"some/model is no directory here and the model hub cannot be reached .* --preset nano"
    ):
        resolve("some/model")
    assert not any(pattern.endswith((".bin", ".pt")) for pattern in calls[0][1]["allow_patterns"])


def test_hub_for_real_without_a_connection(monkeypatch, tmp_path):
    """What the library itself raises without a network, whichever HTTP client its version uses."""
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="hub names need it")
    original = huggingface_hub.snapshot_download
    monkeypatch.setattr(
        huggingface_hub,
        "snapshot_download",
        lambda name, **kwargs: original(name, **kwargs, endpoint="http://127.0.0.1:9", cache_dir=tmp_path),
    )
    with pytest.raises(HubError, match=r"the model hub cannot be reached"):
        resolve("some/model")


def test_hub_name_without_the_library(monkeypatch):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingExtraError, match=r"pip install huggingface_hub"):
        resolve("some/model")


# --- weights ---


def test_pickles_are_refused_with_the_way_to_convert(encoders, model_cache, copied):
    folder = copied(encoders("bert", 1))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"only as pytorch_model.bin, a pickle, which gplfast never loads; convert it"
    ) as error:
        CrossEncoder.open(folder, cache_dir=model_cache)
    assert "AutoModelForSequenceClassification" in str(error.value)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(ModelError, match=r"has no model.safetensors; convert it"):
        CrossEncoder.open(folder, cache_dir=model_cache)


def test_t5_pickle_names_the_right_class(t5s, model_cache, copied):
    folder = copied(t5s["v1.0"])
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"AutoModelForSeq2SeqLM"):
        QueryGenerator.open(folder, cache_dir=model_cache)


@pytest.mark.parametrize(
    "damage", [lambda data: data[: len(data) // 2], lambda data: b"not a tensor file", lambda data: b""]
)
def test_damaged_weights(damage, encoders, model_cache, copied):
    folder = copied(encoders("bert"))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(damage(data))
    with pytest.raises(ModelError, match=r"is not a whole safetensors file"):
        BiEncoder.open(folder, cache_dir=model_cache)


def test_missing_tensor(encoders, model_cache, copied):
    from safetensors.numpy import load_file, save_file

    folder = copied(encoders("bert"))
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("encoder.layer.1.output.dense.weight")
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ModelError, match=r"weight encoder.layer.1.output.dense.weight is missing"):
        BiEncoder.open(folder, cache_dir=model_cache)


def test_index_naming_a_file_that_is_not_there_or_outside(encoders, model_cache, copied):
    folder = copied(encoders("bert"))
    for name in ("b.safetensors", "../other/model.safetensors"):
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(ModelError, match=r"model.safetensors.index.json names .*, not there"):
            BiEncoder.open(folder, cache_dir=model_cache)


# --- configuration ---


def test_not_a_model_directory(tmp_path, model_cache):
    with pytest.raises(ModelError, match=r"has no config.json; give the directory of a saved model"):
        BiEncoder.open(tmp_path, cache_dir=model_cache)
    (tmp_path / "config.json").write_text("{broken")
    with pytest.raises(ModelError, match=r"config.json cannot be read as JSON"):
        BiEncoder.open(tmp_path, cache_dir=model_cache)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(ModelError, match=r"holds a list but must hold an object"):
        BiEncoder.open(tmp_path, cache_dir=model_cache)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model_type": "deberta-v2"},
            "model_type is 'deberta-v2' but an encoder must be one of bert, distilbert, mpnet",
        ),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'"),
        ({"hidden_act": "mish"}, "activation is 'mish' but only"),
        ({"num_hidden_layers": None}, "config.json has no 'num_hidden_layers'"),
    ],
)
def test_unsupported_encoder(changes, message, encoders, model_cache, copied):
    folder = copied(encoders("bert"))
    edit(folder / "config.json", **changes)
    with pytest.raises(ModelError, match=message):
        BiEncoder.open(folder, cache_dir=model_cache)


def test_not_a_t5(encoders, model_cache):
    with pytest.raises(ModelError, match=r"model_type is 'bert' but must be 't5'"):
        QueryGenerator.open(encoders("bert"), cache_dir=model_cache)


def test_cross_encoder_without_a_head(encoders, model_cache):
    with pytest.raises(ModelError, match=r"has no classifier.weight but a cross-encoder needs a classification head"):
        CrossEncoder.open(encoders("bert"), cache_dir=model_cache)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        (["Transformer", "LSTM"], "has a module LSTM but only Transformer, Pooling"),
        (["Transformer"], "has no Pooling module in modules.json"),
    ],
)
def test_modules_that_are_not_supported(modules, message, encoders, model_cache, copied):
    folder = copied(encoders("bert"))
    entries = [{"idx": i, "path": "", "type": f"sentence_transformers.models.{name}"} for i, name in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(entries))
    with pytest.raises(ModelError, match=message):
        BiEncoder.open(folder, cache_dir=model_cache)


def test_modules_stay_inside(encoders, model_cache, copied):
    folder = copied(encoders("bert"))
    (folder / "modules.json").write_text('[{"path": "../../elsewhere", "type": "x.Transformer"}]')
    with pytest.raises(ModelError, match=r"must stay inside the model's folder"):
        BiEncoder.open(folder, cache_dir=model_cache)


@pytest.mark.parametrize(
    ("config", "message"),
    [({"pooling_mode": "median"}, "pooling_mode is 'median'"), (None, r"1_Pooling/config.json cannot be read")],
)
def test_pooling_that_is_not_known(config, message, encoders, model_cache, copied):
    folder = copied(encoders("bert"))
    (folder / "modules.json").write_text(
        '[{"path": "", "type": "Transformer"}, {"path": "1_Pooling", "type": "Pooling"}]'
    )
    if config is not None:
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=message):
        BiEncoder.open(folder, cache_dir=model_cache)


def test_similarity_that_is_not_known(encoders, model_cache, copied):
    folder = copied(encoders("bert"))
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "manhattan"}')
    with pytest.raises(ModelError, match=r"similarity_fn_name 'manhattan' but must have cosine or dot"):
        BiEncoder.open(folder, cache_dir=model_cache)


# --- tokenizer ---


def test_no_tokenizer(encoders, model_cache, copied):
    folder = copied(encoders("bert"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"has no tokenizer.json; make one where transformers is installed: python -c"):
        BiEncoder.open(folder, cache_dir=model_cache)


def test_damaged_tokenizer(encoders, model_cache, copied):
    folder = copied(encoders("bert"))
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tokenizer.json cannot be read"):
        BiEncoder.open(folder, cache_dir=model_cache)


def test_tokenizer_that_does_not_fit(encoders, model_cache, copied):
    folder = copied(encoders("bert"))
    settings = json.loads((folder / "tokenizer.json").read_text())
    settings["model"]["vocab"]["toolarge"] = 500
    (folder / "tokenizer.json").write_text(json.dumps(settings))
    with pytest.raises(ModelError, match=r"has ids up to 500 but the embedding of .* has 128 rows"):
        BiEncoder.open(folder, cache_dir=model_cache)


@pytest.mark.parametrize("limits", [(24, 64, 24), (None, 32, 32), (500, 64, 80), (None, 10**30, 80)])
def test_length_is_found_as_sentence_transformers_does(limits, encoders, model_cache, copied):
    sentence_bert, tokenizer, expected = limits
    folder = copied(encoders("bert"))
    edit(folder / "tokenizer_config.json", model_max_length=tokenizer)
    if sentence_bert:
        (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": sentence_bert}))
    encoder = BiEncoder.open(folder, cache_dir=model_cache)
    assert encoder.max_tokens == expected
    assert np.isfinite(encoder.encode(["the king " * 300])).all()


def test_roberta_positions_begin_after_the_padding_id(encoders, model_cache, copied):
    folder = copied(encoders("xlm-roberta"))
    edit(folder / "tokenizer_config.json", model_max_length=512)
    encoder = BiEncoder.open(folder, cache_dir=model_cache)
    assert encoder.max_tokens == 78
    assert np.isfinite(encoder.encode(["the king " * 300])).all()


# --- calls ---


def test_calls_that_do_not_fit(encoders, model_cache):
    teacher = CrossEncoder.open(encoders("bert", 1), cache_dir=model_cache)
    with pytest.raises(ShapeError, match=r"queries has 2 texts but docs has 1"):
        teacher.score(TEXTS, TEXTS[:1])
    with pytest.raises(
        ConfigError, match=r"activation is 'tanh' but must be one of identity, sigmoid, softmax, default"
    ):
        teacher.score(TEXTS, TEXTS, activation="tanh")
    with pytest.raises(ConfigError, match=r"batch_size is -1"):
        teacher.score(TEXTS, TEXTS, batch_size=-1)
    with pytest.raises(ConfigError, match=r"kind is 'passage' but must be one of query, document"):
        BiEncoder.open(encoders("bert"), cache_dir=model_cache).encode(TEXTS, kind="passage")  # type: ignore[arg-type]


def test_cut_keeps_the_spelling(encoders, model_cache):
    teacher = CrossEncoder.open(encoders("bert", 1), cache_dir=model_cache)
    texts = ["The  Norman KING of England", "king", "", "a,b,c,d,e"]
    assert teacher.cut(texts, 5) == ["The  Norman KING", "king", "", "a,b"]  # [CLS] and [SEP] count, as in GPL
    assert teacher.cut(texts, 2) == ["", "", "", ""]
    assert teacher.cut(texts, 100) == texts
