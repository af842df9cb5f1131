"""The teacher: a score for each query-document pair."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import ModelError, ShapeError
from gplfast.models import calibration
from gplfast.models.activation import activate, chosen_activation, configured_activation, label_index, saved_settings
from gplfast.models.batching import Progress, Rows, Values, Work, map_unique, mask_of, pad
from gplfast.models.cache import cache_root
from gplfast.models.checkpoint import Checkpoint
from gplfast.models.export.encoder import cross_encoder_graph, max_positions, n_labels, padding_id
from gplfast.models.resolve import resolve
from gplfast.models.runtime import AUTO, REFERENCE, AnySession, Runtime, candidates, is_open, open_exported
from gplfast.models.tokenization import Encoded, Tokenizer, max_length

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

_GRAPH_VERSION = 2  # goes up when the graph of the same weights changes, so that cached ones are not used


class CrossEncoder:
    """A cross-encoder served by ONNX Runtime; of several outputs one is the relevance."""

    choice: calibration.Choice  # what it runs on, and why

    def __init__(
        self, checkpoint: Checkpoint, session: AnySession, tokenizer: Tokenizer, fingerprint: str, label: int = 0
    ) -> None:
        """Use `open`, which makes the parts."""
        self.fingerprint = fingerprint
        self.max_tokens = max_length(checkpoint, max_positions(checkpoint.config)) or max_positions(checkpoint.config)
        self._session = session
        self._tokenizer = tokenizer
        self._padding_id = padding_id(checkpoint.config)
        self._n_labels, self._label = n_labels(checkpoint), label
        self._configured = functools.partial(configured_activation, checkpoint, self._n_labels)
        settings = saved_settings(checkpoint)
        # as CrossEncoder.predict: the default prompt goes before the first text of a pair
        self._prompt = str((settings.get("prompts") or {}).get(settings.get("default_prompt_name")) or "")

    @classmethod
    def open(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        label: int | str | None = None,
        provider: str = AUTO,
        precision: str = AUTO,
    ) -> CrossEncoder:
        """Open a cross-encoder, exporting it to ONNX at first use.

        Args:
            name_or_path: a directory, "nano:teacher", or a hub name.
            threads: None takes every CPU this process may use.
            cache_dir: where exported graphs are kept; None: $GPLFAST_CACHE or ~/.cache/gplfast.
            label: which output of a model with several is the relevance: its name in id2label, or its number.
            provider: "cpu", "openvino", "cuda", or "auto": the fastest here, found by a trial that is made once.
            precision: "fp32", "fp16", "bf16", "int8", or "auto": lower than fp32 only where the trial ranked pairs the
                same (see `calibration.MIN_SPEARMAN`). The fingerprint says which it was.

        Raises:
            ModelError: not a cross-encoder that can be served, or one with several labels and none chosen; the message
                says why.
            ConfigError: no such label.
            HubError, MissingExtraError: see `resolve`.
        """
        checkpoint = Checkpoint(resolve(name_or_path, cache_dir=cache_dir))
        index = label_index(checkpoint, label, n_labels(checkpoint))
        rows = vocabulary_rows(checkpoint)
        tokenizer = Tokenizer(checkpoint, vocabulary_rows=rows)
        root = cache_root(cache_dir) / checkpoint.fingerprint

        def start(runtime: Runtime) -> CrossEncoder:
            graphs = root / f"cross-encoder-v{_GRAPH_VERSION}"
            export = functools.partial(_export, checkpoint)
            session = open_exported(graphs, "model.onnx", export, runtime, threads, streams=True)
            return cls(checkpoint, session, tokenizer, checkpoint.fingerprint + runtime.suffix, index)

        trial = calibration.Calibration("cross-encoder", start, _score_items, calibration.rank_gate)
        found = candidates(provider, precision)
        return trial.open(found, REFERENCE, root, threads, gated=is_open(precision))

    def score(
        self,
        queries: Sequence[str],
        docs: Sequence[str],
        *,
        batch_size: int = 0,
        activation: str = "identity",
        progress: Progress | None = None,
    ) -> Values:
        """Score pairs; equal pairs are scored once.

        Args:
            queries: n texts.
            docs: n texts; a pair longer than the model takes loses tokens from the longer side first.
            batch_size: pairs at a time at most; 0: as many as the tokens of a batch allow. Changes results by rounding
                only.
            activation: "identity" gives the raw logits (GPL's labels are their differences), "sigmoid" maps to (0, 1),
                "softmax" over the labels of a model with several, "default" is what the model's configuration says,
                which sentence-transformers' CrossEncoder.predict applies.
            progress: called with (done, n) after each batch.

        Returns:
            (n,) float32, in input order.

        Raises:
            ShapeError: not as many queries as docs.
            ConfigError: an unknown activation, or batch_size below 0.
            ModelError: the activation of the model's configuration is not known.
            ResourceError: one pair alone does not fit into memory; larger batches are halved until they fit.
        """
        if len(queries) != len(docs):
            message = (
                f"score: queries has {len(queries)} texts but docs has {len(docs)}; give one query for each document"
            )
            raise ShapeError(message)
        chosen = chosen_activation(activation, self._configured, self._n_labels)
        streams, tokens = self._session.streams, self._session.batch_tokens
        work = Work("score", _characters, self._encode, self._logits, self._n_labels, streams, tokens)
        logits = map_unique(zip(queries, docs, strict=True), work, batch_size=batch_size, progress=progress)
        return np.ascontiguousarray(activate(logits, chosen)[:, self._label])

    def cut(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Cut texts to `max_tokens` of this model's tokens.

        As GPL counts: with the special tokens the tokenizer puts around a single text. Unlike GPL, which decodes token
        ids, the text keeps its spelling: it ends where its last token ends.
        """
        return self._tokenizer.cut(texts, max_tokens)

    def _encode(self, pairs: list[tuple[str, str]]) -> Encoded:
        queries = [self._prompt + query for query, _ in pairs]
        return self._tokenizer.encode_pairs(queries, [doc for _, doc in pairs], self.max_tokens)

    def _logits(self, encoded: Encoded, batch: Rows) -> Values:
        logits: Values = self._session.run(encoder_feed(self._session, encoded, batch, self._padding_id))[0]
        return logits


def _characters(pair: tuple[str, str]) -> int:
    return len(pair[0]) + len(pair[1])


def encoder_feed(
    session: AnySession, encoded: Encoded, batch: np.ndarray[Any, Any], padding: int
) -> dict[str, np.ndarray[Any, Any]]:
    """The inputs of an encoder graph for some rows."""
    ids = [encoded.ids[row] for row in batch]
    feed = {"input_ids": pad(ids, padding), "attention_mask": mask_of(ids)}
    if "token_type_ids" in session.inputs:
        feed["token_type_ids"] = pad([encoded.type_ids[row] for row in batch], 0)
    return feed


def vocabulary_rows(checkpoint: Checkpoint) -> int:
    """Rows of the word embedding."""
    suffix = "embeddings.word_embeddings.weight"
    names = [name for name in checkpoint.weights.names() if name.endswith(suffix)]
    if not names:
        message = f"checkpoint: {checkpoint.directory} has no weight {suffix} but a BERT-type encoder must have one"
        raise ModelError(message)
    return checkpoint.weights.shape(names[0])[0]


def _score_items(model: CrossEncoder, items: Sequence[calibration.Item]) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Each question with its own passage and with the next one's."""
    queries = [item.query for item in items]
    passages = [item.passage for item in items]
    return model.score(queries + queries, passages + passages[1:] + passages[:1])


def _export(checkpoint: Checkpoint, folder: Path, *, precision: str) -> None:
    cross_encoder_graph(checkpoint, precision).save(folder / "model.onnx")
