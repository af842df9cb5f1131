"""The teacher: a score for each query-document pair."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import ConfigError, ModelError, ShapeError
from gplfast.models import calibration
from gplfast.models.batching import Progress, chunks, length_sorted, mask_of, pad
from gplfast.models.cache import cache_root, cached_folder
from gplfast.models.checkpoint import Checkpoint
from gplfast.models.export.encoder import cross_encoder_graph, max_positions, n_labels, padding_id
from gplfast.models.resolve import resolve
from gplfast.models.runtime import AUTO, REFERENCE, AnySession, Runtime, candidates, open_session
from gplfast.models.session import default_threads
from gplfast.models.tokenization import Encoded, Tokenizer, max_length

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

_GRAPH_VERSION = 2  # goes up when the graph of the same weights changes, so that cached ones are not used
ACTIVATIONS = ("identity", "sigmoid")


class CrossEncoder:
    """A cross-encoder with one output, served by ONNX Runtime."""

    choice: calibration.Choice  # what it runs on, and why

    def __init__(self, checkpoint: Checkpoint, session: AnySession, tokenizer: Tokenizer, fingerprint: str) -> None:
        """Use `open`, which makes the parts."""
        self.fingerprint = fingerprint
        self.max_tokens = max_length(checkpoint, max_positions(checkpoint.config)) or max_positions(checkpoint.config)
        self._session = session
        self._tokenizer = tokenizer
        self._padding_id = padding_id(checkpoint.config)

    @classmethod
    def open(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        provider: str = AUTO,
        precision: str = AUTO,
    ) -> CrossEncoder:
        """Open a cross-encoder, exporting it to ONNX at first use.

        Args:
            name_or_path: a directory, "nano:teacher", or a hub name.
            threads: None takes every CPU this process may use.
            cache_dir: where exported graphs are kept; None: $GPLFAST_CACHE or ~/.cache/gplfast.
            provider: "cpu", "openvino", "cuda", or "auto": the fastest here, found by a trial that is made once.
            precision: "fp32", "bf16", "int8", or "auto": lower than fp32 only where the trial ranked pairs the same
                (see `calibration.MIN_SPEARMAN`). The fingerprint says which it was.

        Raises:
            ModelError: not a cross-encoder that can be served, or not one with a single label; the message says why.
            HubError, MissingExtraError: see `resolve`.
        """
        checkpoint = Checkpoint(resolve(name_or_path, cache_dir=cache_dir))
        labels = n_labels(checkpoint)
        if labels != 1:
            message = (
                f"cross-encoder: {checkpoint.directory} has {labels} labels but a teacher must have 1, the relevance; "
                "choose a model trained for ranking"
            )
            raise ModelError(message)
        rows = vocabulary_rows(checkpoint)
        tokenizer = Tokenizer(checkpoint, vocabulary_rows=rows)
        root = cache_root(cache_dir) / checkpoint.fingerprint

        def start(runtime: Runtime) -> CrossEncoder:
            int8 = runtime.precision == "int8"
            target = root / f"cross-encoder-v{_GRAPH_VERSION}{'-int8' * int8}"
            folder = cached_folder(target, lambda work: _export(checkpoint, work, int8=int8))
            session = open_session(folder / "model.onnx", runtime, threads)
            return cls(checkpoint, session, tokenizer, checkpoint.fingerprint + runtime.suffix)

        trial = calibration.Calibration("cross-encoder", start, _score_items, calibration.rank_gate)
        found = candidates(provider, precision)
        n_threads = threads or default_threads()
        model, choice = trial.choose(found, REFERENCE, root, n_threads, gated=precision == AUTO)
        model.choice = choice
        return model

    def score(
        self,
        queries: Sequence[str],
        docs: Sequence[str],
        *,
        batch_size: int = 32,
        activation: str = "identity",
        progress: Progress | None = None,
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Score pairs.

        Args:
            queries: n texts.
            docs: n texts; a pair longer than the model takes loses tokens from the longer side first.
            batch_size: pairs at a time; changes results by rounding only.
            activation: "identity" gives the raw logits (GPL's labels are their differences), "sigmoid" maps to (0, 1).
            progress: called with (done, total) after each batch.

        Returns:
            (n,) float32, in input order.

        Raises:
            ShapeError: not as many queries as docs.
            ConfigError: an unknown activation.
        """
        if len(queries) != len(docs):
            message = (
                f"score: queries has {len(queries)} texts but docs has {len(docs)}; give one query for each document"
            )
            raise ShapeError(message)
        if activation not in ACTIVATIONS:
            message = f"score: activation is {activation!r} but must be one of {', '.join(ACTIVATIONS)}"
            raise ConfigError(message)
        scores = np.empty(len(queries), np.float32)
        done = 0
        for part in chunks(len(queries)):
            encoded = self._tokenizer.encode_pairs(queries[part], docs[part], self.max_tokens)
            for batch in length_sorted(encoded.lengths, batch_size):
                scores[part.start + batch] = self._session.run(self._feed(encoded, batch))[0][:, 0]
                done += len(batch)
                if progress is not None:
                    progress(done, len(queries))
        if activation == "sigmoid":  # in float64, where exp of a large negative logit does not overflow
            return (1 / (1 + np.exp(-scores.astype(np.float64)))).astype(np.float32)
        return scores

    def cut(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Cut texts to `max_tokens` of this model's tokens.

        As GPL counts: with the special tokens the tokenizer puts around a single text. Unlike GPL, which decodes token
        ids, the text keeps its spelling: it ends where its last token ends.
        """
        return self._tokenizer.cut(texts, max_tokens)

    def _feed(self, encoded: Encoded, batch: np.ndarray[Any, Any]) -> dict[str, np.ndarray[Any, Any]]:
        return encoder_feed(self._session, encoded, batch, self._padding_id)


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


def _export(checkpoint: Checkpoint, folder: Path, *, int8: bool) -> None:
    cross_encoder_graph(checkpoint, int8=int8).save(folder / "model.onnx")
