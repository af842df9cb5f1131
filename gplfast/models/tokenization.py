"""Text to ids with tokenizer.json alone; lengths and padding set here, never taken from the file."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import MissingExtraError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from gplfast.models.checkpoint import Checkpoint

Ids = np.ndarray[Any, np.dtype[np.int32]]
_MAX_SENSIBLE_LENGTH = 1_000_000  # transformers writes 1e30 for "no limit"


@dataclass(frozen=True)
class Encoded:
    """Token ids and token type ids of each text or pair, unpadded."""

    ids: list[Ids]
    type_ids: list[Ids]

    @property
    def lengths(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Tokens of each, (n,) int64."""
        return np.fromiter((len(row) for row in self.ids), np.int64, len(self.ids))


class Tokenizer:
    """The tokenizer of a checkpoint."""

    def __init__(self, checkpoint: Checkpoint, *, vocabulary_rows: int, end_id: int | None = None) -> None:
        """Read tokenizer.json.

        Args:
            checkpoint: where it is.
            vocabulary_rows: rows of the embedding table; no id may lie beyond.
            end_id: appended to single texts whose post-processor does not end with it (T5's </s>).

        Raises:
            ModelError: no tokenizer.json, a damaged one, or one with more ids than the embedding has rows.
            MissingExtraError: tokenizers is not installed.
        """
        try:
            import tokenizers
        except ImportError as error:
            message = "models: tokenizers is not installed; run: pip install 'gplfast[cpu]'"
            raise MissingExtraError(message) from error
        path = _tokenizer_file(checkpoint)
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises bare Exception
            message = f"tokenizer: {path} cannot be read: {error}; save the tokenizer again with transformers"
            raise ModelError(message) from error
        highest = max(self._tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
        if highest >= vocabulary_rows:
            message = (
                f"tokenizer: {path} has ids up to {highest} but the embedding of {checkpoint.directory} has "
                f"{vocabulary_rows} rows; use the tokenizer that belongs to this model"
            )
            raise ModelError(message)
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._lock = threading.Lock()  # truncation is a state of the library's object, and encoding releases the GIL
        self._lower = bool(checkpoint.optional("sentence_bert_config.json", network=True).get("do_lower_case"))
        inputs = checkpoint.optional("tokenizer_config.json", network=True).get("model_input_names")
        self._types = inputs is None or "token_type_ids" in inputs  # else the model was trained with type 0 alone
        self._end_id = end_id
        if end_id is not None and self._tokenizer.encode("a").ids[-1:] == [end_id]:
            self._end_id = None

    def encode(self, texts: Sequence[str], max_tokens: int) -> Encoded:
        """Encode single texts, each cut to `max_tokens` with its special tokens."""
        own_end = self._end_id is not None
        with self._lock:
            self._tokenizer.enable_truncation(max_tokens - own_end)
            encoded = self._encode_batch(self._prepared(texts))
        if own_end:
            end = np.array([self._end_id], np.int32)
            ids = [np.concatenate([row, end]) for row in encoded.ids]
            return Encoded(ids, [np.zeros_like(row) for row in ids])
        return encoded

    def encode_pairs(self, first: Sequence[str], second: Sequence[str], max_tokens: int) -> Encoded:
        """Encode pairs, the longer of the two cut first until both fit into `max_tokens`."""
        pairs = list(zip(self._prepared(first), self._prepared(second), strict=True))
        with self._lock:
            self._tokenizer.enable_truncation(max_tokens, strategy="longest_first")
            return self._encode_batch(pairs)

    def prompt_tokens(self, prompt: str, max_tokens: int) -> int:
        """Leading tokens of a text that are the prompt's, as sentence-transformers counts them.

        Those of the prompt alone, less the special token that the tokenizer puts at the end of a text, if it does.
        """
        with self._lock:
            self._tokenizer.enable_truncation(max_tokens)
            encoding = self._tokenizer.encode(self._prepared([prompt])[0])
        return len(encoding) - (encoding.special_tokens_mask[-1:] == [1])

    def cut(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Each text up to the end of its last token that fits into `max_tokens` with the special tokens of a text."""
        room = max(max_tokens - self.n_special, 0)
        with self._lock:
            self._tokenizer.no_truncation()
            encodings = self._tokenizer.encode_batch(self._prepared(texts), add_special_tokens=False)
        # offsets are read only where something is cut: they are a list of tuples per text
        return [
            text if len(e) <= room else text[: e.offsets[room - 1][1] if room else 0]
            for text, e in zip(texts, encodings, strict=True)
        ]

    @property
    def n_special(self) -> int:
        """Special tokens around a single text."""
        return int(self._tokenizer.num_special_tokens_to_add(False)) + (self._end_id is not None)

    def decode(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """Ids to stripped text without special tokens."""
        return [
            text.strip() for text in self._tokenizer.decode_batch([list(row) for row in rows], skip_special_tokens=True)
        ]

    def _prepared(self, texts: Sequence[str]) -> list[str]:
        return [text.lower() for text in texts] if self._lower else list(texts)

    def _encode_batch(self, texts: list[Any]) -> Encoded:
        encodings = self._tokenizer.encode_batch(texts)
        ids = [np.array(e.ids, np.int32) for e in encodings]
        if not self._types:
            return Encoded(ids, [np.zeros_like(row) for row in ids])
        return Encoded(ids, [np.array(e.type_ids, np.int32) for e in encodings])


def max_length(checkpoint: Checkpoint, positions: int | None) -> int | None:
    """Tokens a text is cut to, as sentence-transformers finds it.

    max_seq_length of sentence_bert_config.json, else model_max_length of tokenizer_config.json, else none; never more
    than `positions`, what the network can take.
    """
    found = checkpoint.optional("sentence_bert_config.json", network=True).get("max_seq_length")
    if found is None:
        found = checkpoint.optional("tokenizer_config.json", network=True).get("model_max_length")
    limits = [int(value) for value in (found, positions) if value is not None and value < _MAX_SENSIBLE_LENGTH]
    return min(limits) if limits else None


def _tokenizer_file(checkpoint: Checkpoint) -> Path:
    for folder in (checkpoint.transformer, checkpoint.directory):
        if (folder / "tokenizer.json").is_file():
            return folder / "tokenizer.json"
    message = (
        f"tokenizer: {checkpoint.transformer} has no tokenizer.json; make one where transformers is installed: "
        f"python -c \"from transformers import AutoTokenizer as T; d='{checkpoint.transformer}'; "
        'T.from_pretrained(d).save_pretrained(d)"'
    )
    raise ModelError(message)
