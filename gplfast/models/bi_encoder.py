"""The retriever: texts to vectors, with sentence-transformers' modules and prompts."""

from __future__ import annotations

import copy
import functools
import json
from typing import TYPE_CHECKING, Any, Literal

from gplfast.errors import ConfigError, ModelError
from gplfast.models import calibration
from gplfast.models.batching import Progress, Rows, Values, Work, map_unique
from gplfast.models.cache import cache_root
from gplfast.models.checkpoint import DOCUMENTS, Checkpoint
from gplfast.models.cross_encoder import encoder_feed, vocabulary_rows
from gplfast.models.export.encoder import architecture, max_positions, padding_id
from gplfast.models.export.sentence import bi_encoder_graph
from gplfast.models.resolve import resolve
from gplfast.models.runtime import AUTO, REFERENCE, AnySession, Runtime, candidates, is_open, open_exported
from gplfast.models.tokenization import Encoded, Tokenizer, max_length

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

_GRAPH_VERSION = 2  # goes up when the graph of the same weights changes, so that cached ones are not used
_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
Similarity = Literal["cosine", "dot"]


class BiEncoder:
    """A bi-encoder served by ONNX Runtime; pooling, Dense and Normalize run in the graph.

    A model that was trained for queries alone (ADORE) has the one that encodes documents in its folder `documents`,
    and `encode` uses that for them.
    """

    choice: calibration.Choice  # what it runs on, and why
    documents: BiEncoder | None = None  # what encodes documents, where this one was trained for queries alone

    def __init__(
        self, checkpoint: Checkpoint, session: AnySession, tokenizer: Tokenizer, dim: int, fingerprint: str
    ) -> None:
        """Use `open`, which makes the parts."""
        self.fingerprint = fingerprint
        self.dim = dim
        self.max_tokens = max_length(checkpoint, max_positions(checkpoint.config)) or max_positions(checkpoint.config)
        settings = checkpoint.optional("config_sentence_transformers.json")
        self.similarity: Similarity = _similarity(settings, checkpoint)
        self.prompts: dict[str, str] = {kind: _prompt(settings, kind) for kind in _PROMPT_NAMES}
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
        pooling: str = "mean",
        truncate_dim: int | None = None,
        provider: str = AUTO,
        precision: str = AUTO,
    ) -> BiEncoder:
        """Open a bi-encoder, exporting it to ONNX at first use.

        Args:
            name_or_path: a sentence-transformers directory, a plain one of transformers, "nano:student", or a hub name.
            threads: None takes every CPU this process may use.
            cache_dir: where exported graphs are kept; None: $GPLFAST_CACHE or ~/.cache/gplfast.
            pooling: for a plain directory only; sentence-transformers' say theirs themselves.
            truncate_dim: keep this many leading columns of the embeddings (Matryoshka; Kusupati et al. 2022) instead of
                what the model's configuration says. Cut after all modules and not normalised again, as
                sentence-transformers does.
            provider: "cpu", "openvino", "cuda", or "auto": the fastest here, found by a trial that is made once.
            precision: "fp32", "fp16", "bf16", "int8", or "auto": lower than fp32 only where the trial found the same
                passages (see `calibration.MIN_OVERLAP`). The fingerprint of the embeddings says which it was.

        Raises:
            ConfigError: truncate_dim below 1.
            ModelError: an architecture or module that is not supported, or damaged files; the message says which.
            HubError, MissingExtraError: see `resolve`.
        """
        checkpoint = Checkpoint(resolve(name_or_path, cache_dir=cache_dir))
        architecture(checkpoint.config)
        tokenizer = Tokenizer(checkpoint, vocabulary_rows=vocabulary_rows(checkpoint))
        # Other pooling, other vectors: the graph's folder and the embeddings' fingerprint say so.
        suffix = "" if checkpoint.modules or pooling == "mean" else f"-{pooling}"
        root = cache_root(cache_dir) / checkpoint.fingerprint

        def start(runtime: Runtime) -> BiEncoder:
            graphs = root / f"bi-encoder-v{_GRAPH_VERSION}{suffix}"
            export = functools.partial(_export, checkpoint, pooling)
            session = open_exported(graphs, "model.onnx", export, runtime, threads, streams=True)
            dim, cut = _kept_columns(truncate_dim, session.output_dim("embedding"), checkpoint)
            return cls(checkpoint, session, tokenizer, dim, checkpoint.fingerprint + suffix + cut + runtime.suffix)

        trial = calibration.Calibration("bi-encoder", start, _embed_items, calibration.overlap_gate)
        found = candidates(provider, precision)
        model = trial.open(found, REFERENCE, root, threads, gated=is_open(precision))
        if (checkpoint.directory / DOCUMENTS).is_dir():
            options: dict[str, Any] = {"truncate_dim": truncate_dim, "provider": provider, "precision": precision}
            own = cls.open(checkpoint.directory / DOCUMENTS, threads=threads, cache_dir=cache_dir, **options)
            model.documents, model.fingerprint = own, f"{model.fingerprint} documents={own.fingerprint}"
        return model

    def reading(self, *, query_prompt: str = "", doc_prompt: str = "", max_tokens: int = 0) -> BiEncoder:
        """The same model with other prompts or a shorter window; its fingerprint says so.

        Args:
            query_prompt: In place of the model's own; "" keeps that.
            doc_prompt: Likewise, before documents.
            max_tokens: Of a text with its prompt; 0, or more than the model reads: as it is.
        """
        given = {kind: text for kind, text in (("query", query_prompt), ("document", doc_prompt)) if text}
        shorter = max_tokens if 0 < max_tokens < self.max_tokens else 0
        if not given and not shorter:
            return self
        other = copy.copy(self)
        other.prompts = {**self.prompts, **given}
        other.max_tokens = shorter or self.max_tokens
        other.fingerprint = f"{self.fingerprint} {json.dumps([sorted(given.items()), shorter])}"
        return other

    def encode(
        self,
        texts: Sequence[str],
        *,
        kind: Literal["query", "document"] = "document",
        batch_size: int = 0,
        progress: Progress | None = None,
    ) -> Values:
        """Embed texts; equal texts are embedded once.

        Args:
            texts: n texts, cut to `max_tokens`.
            kind: whose prompt goes before each text; models without prompts make no difference.
            batch_size: texts at a time at most; 0: as many as the tokens of a batch allow. Changes results by rounding
                only.
            progress: called with (done, n) after each batch.

        Returns:
            (n, dim) float32, C-contiguous, in input order.

        Raises:
            ConfigError: an unknown kind, or batch_size below 0.
            ResourceError: one text alone does not fit into memory; larger batches are halved until they fit.
        """
        if kind not in self.prompts:
            message = f"encode: kind is {kind!r} but must be one of {', '.join(self.prompts)}"
            raise ConfigError(message)
        if kind == "document" and self.documents is not None:
            return self.documents.encode(texts, kind=kind, batch_size=batch_size, progress=progress)
        prompt = self.prompts[kind]
        n_prompt_tokens = self._tokenizer.prompt_tokens(prompt, self.max_tokens) if prompt else 0

        def encode(part: list[str]) -> Encoded:
            return self._tokenizer.encode([prompt + text for text in part] if prompt else part, self.max_tokens)

        def run(encoded: Encoded, batch: Rows) -> Values:
            feed = encoder_feed(self._session, encoded, batch, self._padding_id)
            if "pooling_mask" in self._session.inputs:
                feed["pooling_mask"] = feed["attention_mask"].copy()
                feed["pooling_mask"][:, :n_prompt_tokens] = 0
            vectors: Values = self._session.run(feed)[0]
            return vectors[:, : self.dim]

        work = Work("encode", len, encode, run, self.dim, self._session.streams, self._session.batch_tokens)
        return map_unique(texts, work, batch_size=batch_size, progress=progress)


def _prompt(settings: dict[str, Any], kind: str) -> str:
    """The prompt of sentence-transformers' encode_query or encode_document.

    default_prompt_name is not for them: where it is the query's, it would go before documents.
    """
    prompts = settings.get("prompts") or {}
    return next((str(prompts[name]) for name in _PROMPT_NAMES[kind] if name in prompts), "")


def _kept_columns(given: int | None, dim: int, checkpoint: Checkpoint) -> tuple[int, str]:
    """Columns of the embeddings to keep, and what the fingerprint must say about it besides the model's files."""
    own = checkpoint.optional("config_sentence_transformers.json").get("truncate_dim")
    for value, where, error in ((given, "bi-encoder", ConfigError), (own, str(checkpoint.directory), ModelError)):
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            message = f"{where}: truncate_dim is {value!r} but must be a whole number, at least 1"
            raise error(message)
    usual, kept = min(own or dim, dim), min(given or own or dim, dim)
    return kept, "" if kept == usual else f"-{kept}d"


def _similarity(settings: dict[str, Any], checkpoint: Checkpoint) -> Similarity:
    found = settings.get("similarity_fn_name") or "cosine"
    if found == "cosine":
        return "cosine"
    if found in {"dot", "dot_product"}:
        return "dot"
    message = f"bi-encoder: {checkpoint.directory} has similarity_fn_name {found!r} but must have cosine or dot"
    raise ModelError(message)


def _embed_items(model: BiEncoder, items: Sequence[calibration.Item]) -> tuple[Any, Any]:
    queries, passages = ([getattr(item, name) for item in items] for name in ("query", "passage"))
    return model.encode(queries, kind="query"), model.encode(passages)


def _export(checkpoint: Checkpoint, pooling: str, folder: Path, *, precision: str) -> None:
    graph, _ = bi_encoder_graph(checkpoint, pooling, precision)
    graph.save(folder / "model.onnx")
