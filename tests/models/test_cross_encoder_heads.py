"""Labels, activations and prompts of cross-encoders against sentence-transformers' CrossEncoder.predict."""

from __future__ import annotations

import json

import numpy as np
import pytest

from gplfast.errors import ConfigError, ModelError
from gplfast.models import CrossEncoder

pytest.importorskip("onnxruntime", reason="graphs run on onnxruntime")
library = pytest.importorskip("sentence_transformers", reason="parity is measured against sentence-transformers")
QUERIES = ["who was the king", "dose of the drug", "", "the old city on the sea", "who was the king"]
DOCS = ["the norman king of england", "light " * 90, "river city house", "", "the norman king of england"]
NAMES = {"0": "contradiction", "1": "entailment", "2": "neutral"}
SIGMOID, IDENTITY = "torch.nn.modules.activation.Sigmoid", "torch.nn.modules.linear.Identity"
TANH, SOFTMAX = "torch.nn.modules.activation.Tanh", "torch.nn.modules.activation.Softmax"


def edit(path, **changes):
    settings = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**settings, **changes}))


def predicted(folder, **options):
    model = library.CrossEncoder(str(folder), device="cpu")
    return model.predict(list(zip(QUERIES, DOCS, strict=True)), **options)


def saved_by_the_library(source, folder, **changes):
    """A copy as sentence-transformers writes it, whose config_sentence_transformers.json is then changed."""
    library.CrossEncoder(str(source), device="cpu").save_pretrained(str(folder))
    edit(folder / "config_sentence_transformers.json", **changes)
    return folder


CONFIGURATIONS = {
    "nothing said": ({}, {}),
    "identity, since version 5": ({}, {"activation_fn": IDENTITY}),
    "identity, version 4": ({"sentence_transformers": {"activation_fn": IDENTITY, "version": "4.0.1"}}, {}),
    "identity, before": ({"sbert_ce_default_activation_function": IDENTITY}, {}),
    "tanh": ({}, {"activation_fn": TANH}),
    "the newest one holds": (
        {"sentence_transformers": {"activation_fn": IDENTITY}, "sbert_ce_default_activation_function": SIGMOID},
        {"activation_fn": TANH},
    ),
    "version 4 before the oldest": (
        {"sentence_transformers": {"activation_fn": TANH}, "sbert_ce_default_activation_function": IDENTITY},
        {},
    ),
}


@pytest.mark.parametrize("n_labels", [1, 3])
@pytest.mark.parametrize("settings", CONFIGURATIONS.values(), ids=CONFIGURATIONS)
def test_default_activation_equals_predict(settings, n_labels, encoders, model_cache, copied):
    config, saved = settings
    folder = copied(encoders("bert", n_labels))
    if saved:
        saved_by_the_library(encoders("bert", n_labels), folder, **saved)
    edit(folder / "config.json", **config)
    expected = predicted(folder)
    for label in range(n_labels):
        teacher = CrossEncoder.open(folder, cache_dir=model_cache, label=label)
        found = teacher.score(QUERIES, DOCS, activation="default")
        assert found.shape == (len(QUERIES),)
        assert found.flags.c_contiguous
        np.testing.assert_allclose(found, expected if n_labels == 1 else expected[:, label], atol=1e-5, rtol=0)


def test_other_activations_do_not_depend_on_the_configuration(encoders, model_cache, tmp_path):
    folder = saved_by_the_library(encoders("bert", 1), tmp_path)
    logits = CrossEncoder.open(folder, cache_dir=model_cache).score(QUERIES, DOCS)
    edit(folder / "config_sentence_transformers.json", activation_fn=SIGMOID)
    teacher = CrossEncoder.open(folder, cache_dir=model_cache)
    np.testing.assert_array_equal(teacher.score(QUERIES, DOCS, activation="identity"), logits)
    found = teacher.score(QUERIES, DOCS, activation="sigmoid")
    np.testing.assert_allclose(found, 1 / (1 + np.exp(-logits.astype(np.float64))), rtol=1e-6)


@pytest.mark.parametrize("function", ["torch.nn.modules.activation.Mish", "my_models.Squash", "Sigmoid"])
def test_activation_that_is_not_known_is_named(function, encoders, model_cache, tmp_path):
    folder = saved_by_the_library(encoders("bert", 1), tmp_path, activation_fn=function)
    teacher = CrossEncoder.open(folder, cache_dir=model_cache)
    assert np.isfinite(teacher.score(QUERIES, DOCS)).all(), "who asks for logits need not know it"
    with pytest.raises(ModelError, match=rf"names the activation '{function}' but only torch's identity, sigmoid"):
        teacher.score(QUERIES, DOCS, activation="default")


def test_softmax_over_the_labels_equals_predict(encoders, model_cache, tmp_path):
    folder = saved_by_the_library(encoders("minilm", 3), tmp_path)
    teacher = CrossEncoder.open(folder, cache_dir=model_cache, label=2)
    expected = predicted(folder, apply_softmax=True)
    np.testing.assert_allclose(teacher.score(QUERIES, DOCS, activation="softmax"), expected[:, 2], atol=1e-6)
    edit(folder / "config_sentence_transformers.json", activation_fn=SOFTMAX)
    again = CrossEncoder.open(folder, cache_dir=model_cache, label=2)
    np.testing.assert_allclose(again.score(QUERIES, DOCS, activation="default"), expected[:, 2], atol=1e-6)
    one = CrossEncoder.open(encoders("bert", 1), cache_dir=model_cache)
    with pytest.raises(ConfigError, match=r"softmax' but this model has 1 label, whose softmax is always 1; use 'sigm"):
        one.score(QUERIES, DOCS, activation="softmax")


def test_labels_by_name_and_number(encoders, model_cache, copied):
    folder = copied(encoders("bert", 3))
    edit(folder / "config.json", id2label=NAMES)
    expected = predicted(folder)
    for label in ("entailment", 1, "1"):
        found = CrossEncoder.open(folder, cache_dir=model_cache, label=label).score(QUERIES, DOCS)
        np.testing.assert_allclose(found, expected[:, 1], atol=1e-5, rtol=0)
    with pytest.raises(ModelError, match=r"3 labels \(contradiction, entailment, neutral\) but a teacher must have 1"):
        CrossEncoder.open(folder, cache_dir=model_cache)
    for label in ("relevant", 3, -1, "-1", "³", ""):
        with pytest.raises(ConfigError, match=r"label is .* has contradiction, entailment, neutral; give a"):
            CrossEncoder.open(folder, cache_dir=model_cache, label=label)


def test_a_single_label_may_be_named(encoders, model_cache):
    expected = CrossEncoder.open(encoders("bert", 1), cache_dir=model_cache).score(QUERIES, DOCS)
    for label in (0, "LABEL_0"):
        named = CrossEncoder.open(encoders("bert", 1), cache_dir=model_cache, label=label)
        np.testing.assert_array_equal(named.score(QUERIES, DOCS), expected)
    with pytest.raises(ConfigError, match=r"label is 1 but .* has LABEL_0"):
        CrossEncoder.open(encoders("bert", 1), cache_dir=model_cache, label=1)


def test_default_prompt_goes_before_the_query(encoders, model_cache, tmp_path):
    prompts = {"prompts": {"web": "what is the "}, "default_prompt_name": "web"}
    folder = saved_by_the_library(encoders("bert", 1), tmp_path, **prompts)
    plain = CrossEncoder.open(encoders("bert", 1), cache_dir=model_cache).score(QUERIES, DOCS)
    found = CrossEncoder.open(folder, cache_dir=model_cache).score(QUERIES, DOCS, activation="default")
    np.testing.assert_allclose(found, predicted(folder), atol=1e-5, rtol=0)
    assert np.abs(CrossEncoder.open(folder, cache_dir=model_cache).score(QUERIES, DOCS) - plain).max() > 1e-2


def test_a_model_saved_by_the_library(encoders, model_cache, tmp_path):
    model = library.CrossEncoder(str(encoders("minilm", 1)), device="cpu", max_length=32)
    model.save_pretrained(str(tmp_path))
    teacher = CrossEncoder.open(tmp_path, cache_dir=model_cache)
    assert teacher.max_tokens == 32
    expected = model.predict(list(zip(QUERIES, DOCS, strict=True)))
    np.testing.assert_allclose(teacher.score(QUERIES, DOCS, activation="default"), expected, atol=1e-5, rtol=0)


def test_token_types_only_where_the_tokenizer_gives_them(encoders, model_cache, copied):
    folder = copied(encoders("bert", 1))
    edit(folder / "tokenizer_config.json", model_input_names=["input_ids", "attention_mask"])
    found = CrossEncoder.open(folder, cache_dir=model_cache).score(QUERIES, DOCS, activation="default")
    np.testing.assert_allclose(found, predicted(folder), atol=1e-5, rtol=0)
    with_types = CrossEncoder.open(encoders("bert", 1), cache_dir=model_cache)
    assert np.abs(found - with_types.score(QUERIES, DOCS, activation="default")).max() > 1e-2
