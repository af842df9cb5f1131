"""The retriever: texts to vectors, with sentence-transformers' modules and prompts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from gplfast.errors import ConfigError, ModelError
from gplfast.models import calibration
from gplfast.models.batching import Progress, chunks, length_sorted
from gplfast.models.cache import cache_root, cached_folder
from gplfast.models.checkpoint import Checkpoint
from gplfast.models.cross_encoder import encoder_feed, vocabulary_rows
from gplfast.models.export.encoder import architecture, max_positions, padding_id
from gplfast.models.export.sentence import bi_encoder_graph
from gplfast.models.resolve import resolve
from gplfast.models.runtime import AUTO, REFERENCE, AnySession, Runtime, candidates, open_session
from gplfast.models.session import default_threads
from gplfast.models.tokenization import Tokenizer, max_length

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

_GRAPH_VERSION = 2  # goes up when the graph of the same weights changes, so that cached ones are not used
_PROMPT_NAMES = {"query": ("query",), "document": ("document", "passage", "corpus")}
Similarity = Literal["cosine", "dot"]


class BiEncoder:
    """A bi-encoder served by ONNX Runtime; pooling, Dense and Normalize run in the graph."""

    choice: calibration.Choice  # what it runs on, and why

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
        provider: str = AUTO,
        precision: str = AUTO,
    ) -> BiEncoder:
        """Open a bi-encoder, exporting it to ONNX at first use.

        Args:
            name_or_path: a sentence-transformers directory, a plain one of transformers, "nano:student", or a hub name.
            threads: None takes every CPU this process may use.
            cache_dir: where exported graphs are kept; None: $GPLFAST_CACHE or ~/.cache/gplfast.
            pooling: for a plain directory only; sentence-transformers' say theirs themselves.
            provider: "cpu", "openvino", "cuda", or "auto": the fastest here, found by a trial that is made once.
            precision: "fp32", "bf16", "int8", or "auto": lower than fp32 only where the trial found the same passages
                (see `calibration.MIN_OVERLAP`). The fingerprint of the embeddings says which it was.

        Raises:
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
            int8 = runtime.precision == "int8"
            target = root / f"bi-encoder-v{_GRAPH_VERSION}{suffix}{'-int8' * int8}"
            folder = cached_folder(target, lambda work: _export(checkpoint, work, pooling, int8=int8))
            session = open_session(folder / "model.onnx", runtime, threads)
            fingerprint = checkpoint.fingerprint + suffix + runtime.suffix
            return cls(checkpoint, session, tokenizer, session.output_dim("embedding"), fingerprint)

        trial = calibration.Calibration("bi-encoder", start, _embed_items, calibration.overlap_gate)
        found = candidates(provider, precision)
        n_threads = threads or default_threads()
        model, choice = trial.choose(found, REFERENCE, root, n_threads, gated=precision == AUTO)
        model.choice = choice
        return model

    def encode(
        self,
        texts: Sequence[str],
        *,
        kind: Literal["query", "document"] = "document",
        batch_size: int = 64,
        progress: Progress | None = None,
    ) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Embed texts.

        Args:
            texts: n texts, cut to `max_tokens`.
            kind: whose prompt goes before each text; models without prompts make no difference.
            batch_size: texts at a time; changes results by rounding only.
            progress: called with (done, total) after each batch.

        Returns:
            (n, dim) float32, C-contiguous, in input order.

        Raises:
            ConfigError: an unknown kind.
        """
        if kind not in self.prompts:
            message = f"encode: kind is {kind!r} but must be one of {', '.join(self.prompts)}"
            raise ConfigError(message)
        vectors = np.empty((len(texts), self.dim), np.float32)
        prompt, done = self.prompts[kind], 0
        n_prompt_tokens = self._prompt_tokens(prompt)
        for part in chunks(len(texts)):
            encoded = self._tokenizer.encode(
                [prompt + text for text in texts[part]] if prompt else texts[part], self.max_tokens
            )
            for batch in length_sorted(encoded.lengths, batch_size):
                feed = encoder_feed(self._session, encoded, batch, self._padding_id)
                if "pooling_mask" in self._session.inputs:
                    feed["pooling_mask"] = feed["attention_mask"].copy()
                    feed["pooling_mask"][:, :n_prompt_tokens] = 0
                vectors[part.start + batch] = self._session.run(feed)[0]
                done += len(batch)
                if progress is not None:
                    progress(done, len(texts))
        return vectors

    def _prompt_tokens(self, prompt: str) -> int:
        """Leading tokens of the prompt, as sentence-transformers counts: those of it alone, less its closing one."""
        return len(self._tokenizer.encode([prompt], self.max_tokens).ids[0]) - 1 if prompt else 0


def _prompt(settings: dict[str, Any], kind: str) -> str:
    prompts = settings.get("prompts") or {}
    for name in (*_PROMPT_NAMES[kind], settings.get("default_prompt_name")):
        if name in prompts:
            return str(prompts[name])
    return ""


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


def _export(checkpoint: Checkpoint, folder: Path, pooling: str, *, int8: bool) -> None:
    graph, _ = bi_encoder_graph(checkpoint, pooling, int8=int8)
    graph.save(folder / "model.onnx")
