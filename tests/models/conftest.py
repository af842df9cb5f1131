from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

WORDS = [
    "the", "a", "of", "in", "on", "and", "to", "is", "was", "who", "what", "when", "where", "which", "how", "why",
    "norman", "king", "france", "england", "river", "city", "house", "water", "light", "wave", "energy", "cell",
    "protein", "gene", "heart", "blood", "drug", "dose", "patient", "study", "model", "data", "network", "query",
    "passage", "word", "long", "short", "old", "new", "big", "small", "red", "green", "blue", "fast", "slow", "first",
    "last", "year", "day", "war", "peace", "law", "trade", "ship", "sea", "mountain", "forest",
]  # fmt: skip


def build_tokenizer(folder: Path, style: str) -> None:
    """A word-level tokenizer with BERT's, RoBERTa's or T5's special tokens and pair format."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

    special = {
        "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]"],
        "roberta": ["<s>", "<pad>", "</s>", "<unk>"],
        "t5": ["<pad>", "</s>", "<unk>"],
        "t5-no-end": ["<pad>", "</s>", "<unk>"],
    }[style]
    unknown = next(token for token in special if "unk" in token.lower())
    vocabulary = {token: i for i, token in enumerate([*special, *WORDS, "?", *"abcdefghijklmnopqrstuvwxyz"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    ids = {token: vocabulary[token] for token in special}
    if style == "bert":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]",
            pair="[CLS] $A [SEP] $B:1 [SEP]:1",
            special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])],
        )
    elif style == "roberta":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> </s> $B </s>",
            special_tokens=[("<s>", ids["<s>"]), ("</s>", ids["</s>"])],
        )
    elif style == "t5":
        tokenizer.post_processor = processors.TemplateProcessing(
            single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", ids["</s>"])]
        )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"bert": ("[PAD]", "[UNK]", "[CLS]", "[SEP]"), "roberta": ("<pad>", "<unk>", "<s>", "</s>")}
    config: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 64}
    if style in names:
        config |= dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), names[style], strict=True))
    else:
        config |= {"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"}
    if style == "bert":  # as BertTokenizer says; the plain class of transformers 5 leaves the types out
        config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def randomize(model: Any, seed: int) -> None:
    """Weights large enough that biases, norms and attention all matter in a parity test."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * noise if "orm.weight" in name.lower() else 0.3 * noise)


def build_encoder(folder: Path, name: str, *, n_labels: int = 0, seed: int = 0, vocabulary: int = 128) -> Path:
    """A tiny random checkpoint of a real architecture; `n_labels` adds its classification head."""
    transformers = pytest.importorskip(
        "transformers", reason="checkpoints of the parity tests are made by transformers"
    )
    sizes = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80}
    sizes |= {"vocab_size": vocabulary, "max_position_embeddings": 80}
    if n_labels:
        sizes["num_labels"] = n_labels
    kinds = {
        "bert": ("Bert", {}),
        "minilm": ("Bert", {"num_attention_heads": 12, "num_hidden_layers": 3}),
        "distilbert": ("DistilBert", {}),
        "mpnet": ("MPNet", {"pad_token_id": 1, "max_position_embeddings": 82}),
        "roberta": ("Roberta", {"pad_token_id": 1, "type_vocab_size": 1}),
        "xlm-roberta": ("XLMRoberta", {"pad_token_id": 1, "type_vocab_size": 1, "layer_norm_eps": 1e-5}),
    }
    prefix, extra = kinds[name]
    if name == "distilbert":
        sizes = {"dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80, "vocab_size": vocabulary}
        sizes |= {"max_position_embeddings": 80} | ({"num_labels": n_labels} if n_labels else {})
    config = getattr(transformers, f"{prefix}Config")(**(sizes | extra))
    model = getattr(transformers, prefix + ("ForSequenceClassification" if n_labels else "Model"))(config).eval()
    randomize(model, seed)
    model.save_pretrained(folder)
    build_tokenizer(folder, "roberta" if name in {"mpnet", "roberta", "xlm-roberta"} else "bert")
    return folder


T5_KINDS: dict[str, dict[str, Any]] = {
    "v1.0": {"num_layers": 3, "num_decoder_layers": 2},
    "v1.1": {"num_layers": 2, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


def build_t5(folder: Path, kind: str, *, style: str = "t5", seed: int = 0) -> Path:
    """A tiny random T5; v1.1 gets an output layer of its own, as the real ones have."""
    transformers = pytest.importorskip(
        "transformers", reason="checkpoints of the parity tests are made by transformers"
    )
    from safetensors.numpy import load_file, save_file

    config = transformers.T5Config(
        vocab_size=128, d_model=48, d_kv=12, d_ff=96, num_heads=4, decoder_start_token_id=0, **T5_KINDS[kind]
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    randomize(model, seed)
    model.save_pretrained(folder)
    if kind == "v1.1":
        tensors = load_file(folder / "model.safetensors")
        noise = np.random.Generator(np.random.Philox(seed)).standard_normal(tensors["shared.weight"].shape)
        tensors["lm_head.weight"] = (0.3 * noise).astype(np.float32)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        settings = json.loads((folder / "config.json").read_text())
        settings["tie_word_embeddings"] = False
        (folder / "config.json").write_text(json.dumps(settings))
    build_tokenizer(folder, style)
    return folder


@pytest.fixture(scope="session")
def model_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def encoders(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """encoders(name, n_labels) -> directory; each made once per run."""
    made: dict[tuple[str, int], Path] = {}

    def make(name: str, n_labels: int = 0) -> Path:
        if (name, n_labels) not in made:
            made[name, n_labels] = build_encoder(tmp_path_factory.mktemp(name), name, n_labels=n_labels)
        return made[name, n_labels]

    return make


@pytest.fixture(scope="session")
def t5s(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: build_t5(tmp_path_factory.mktemp("t5"), kind) for kind in T5_KINDS}


@pytest.fixture
def copied(tmp_path: Path) -> Any:
    """copied(directory) -> a copy that a test may damage."""

    def copy(source: Path) -> Path:
        return Path(shutil.copytree(source, tmp_path / "copy"))

    return copy


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any attempt to open a connection fails the test."""
    import socket

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError(f"a connection was opened: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
