"""The query generator: T5 over ONNX Runtime with its own decoding loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import ConfigError, ShapeError
from gplfast.models.batching import Progress, chunks, length_sorted, mask_of, pad
from gplfast.models.cache import cache_root, cached_folder
from gplfast.models.checkpoint import Checkpoint
from gplfast.models.export.t5 import T5, t5_decoder_graph, t5_encoder_graph
from gplfast.models.resolve import resolve
from gplfast.models.sampling import Sampling, choose, uniforms
from gplfast.models.session import Session
from gplfast.models.tokenization import Ids, Tokenizer, max_length

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

_GRAPH_VERSION = 1  # goes up when the graph of the same weights changes, so that cached ones are not used
_DEFAULT_MAX_INPUT_TOKENS = 512  # what T5 was trained with; its relative positions set no limit of their own
# Rows decoded at a time. On 2 cores tokens per second still grow up to about 96 rows (research/serving.md, section 2).
_MAX_ROWS = 128
# Finished rows are dropped once they are this share: dropping copies the cache of the others.
_COMPACT_SHARE = 0.2

Array = np.ndarray[Any, Any]


@dataclass
class _Passages:
    """What the decoder reads of passages: their attention mask and each layer's cross-attention keys and values."""

    mask: Array
    cross: dict[str, Array]

    def take(self, docs: Array) -> _Passages:
        return _Passages(self.mask[docs], {name: value[docs] for name, value in self.cross.items()})


@dataclass(frozen=True)
class _Special:
    start: int
    pad: int
    end: tuple[int, ...]


class QueryGenerator:
    """A T5 query generator served by ONNX Runtime."""

    def __init__(self, checkpoint: Checkpoint, encoder: Session, decoder: Session, tokenizer: Tokenizer) -> None:
        """Use `open`, which makes the parts."""
        t5 = T5(checkpoint)
        self.fingerprint = checkpoint.fingerprint
        self.max_input_tokens = max_length(checkpoint, None) or _DEFAULT_MAX_INPUT_TOKENS
        self._special = _special(checkpoint)
        self._encoder, self._decoder, self._tokenizer = encoder, decoder, tokenizer
        self._n_layers, self._n_heads, self._head_dim = t5.n_decoder_layers, t5.n_heads, t5.head_dim
        self._max_distance = t5.max_distance
        self._vocabulary = t5.output_rows
        parts = ("key", "value")
        self._past_inputs = [f"past_{part}_{i}" for i in range(self._n_layers) for part in parts]
        self._outputs = [
            "best_logits",
            "best_tokens",
            *(f"{part}_{i}" for i in range(self._n_layers) for part in parts),
        ]

    @classmethod
    def open(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
    ) -> QueryGenerator:
        """Open a T5 checkpoint, exporting it to ONNX at first use.

        Args:
            name_or_path: a directory, "nano:generator", or a hub name.
            threads: None takes every CPU this process may use.
            cache_dir: where exported graphs are kept; None: $GPLFAST_CACHE or ~/.cache/gplfast.

        Raises:
            ModelError: not a T5 that can be served, or damaged files; the message says why.
            HubError, MissingExtraError: see `resolve`.
        """
        checkpoint = Checkpoint(resolve(name_or_path, cache_dir=cache_dir))
        t5 = T5(checkpoint)
        end = _special(checkpoint).end[0]
        tokenizer = Tokenizer(checkpoint, vocabulary_rows=t5.input_rows, end_id=end)
        target = cache_root(cache_dir) / checkpoint.fingerprint / f"query-generator-v{_GRAPH_VERSION}"
        folder = cached_folder(target, lambda work: _export(t5, work))
        encoder, decoder = (Session(folder / f"{part}.onnx", threads=threads) for part in ("encoder", "decoder"))
        return cls(checkpoint, encoder, decoder, tokenizer)

    def generate(
        self,
        texts: Sequence[str],
        n_samples: int,
        *,
        sampling: Sampling | None = None,
        seed: int,
        items: Sequence[int],
        batch_size: int = 32,
        max_input_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> list[list[str]]:
        """Generate queries for passages.

        Args:
            texts: n passages; each is encoded once, whatever `n_samples`.
            n_samples: queries per passage, not deduplicated; with greedy sampling all are equal.
            sampling: how tokens are drawn; None: Sampling(), GPL's settings.
            seed: 0 <= seed < 2**64.
            items: n numbers >= 0 that name the passages for the random numbers; draws are keyed by (seed, item, sample,
                step), so the same queries come for any batch size, order and split of the work, in float32 up to ties.
            batch_size: passages encoded at a time.
            max_input_tokens: passages are cut to so many tokens, with </s>; None: `self.max_input_tokens`.
            progress: called with (done, total) passages.

        Returns:
            n lists of `n_samples` stripped queries, which may be empty strings.

        Raises:
            ShapeError: not as many items as texts.
            ConfigError: n_samples, seed, an item or max_input_tokens out of range.
        """
        rows = self.generate_ids(
            texts, n_samples, sampling=sampling, seed=seed, items=items, batch_size=batch_size,
            max_input_tokens=max_input_tokens, progress=progress,
        )  # fmt: skip
        flat = self._tokenizer.decode([row for samples in rows for row in samples])
        return [flat[start : start + n_samples] for start in range(0, len(flat), n_samples)]

    def generate_ids(
        self,
        texts: Sequence[str],
        n_samples: int,
        *,
        sampling: Sampling | None = None,
        seed: int,
        items: Sequence[int],
        batch_size: int = 32,
        max_input_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> list[list[list[int]]]:
        """As `generate`, but the token ids of each query, without the end and what follows it."""
        limit = self.max_input_tokens if max_input_tokens is None else max_input_tokens
        _check(len(texts), n_samples, seed, items, limit)
        sampling = Sampling() if sampling is None else sampling
        queries: list[list[list[int]]] = [[] for _ in texts]
        done = 0
        docs_at_a_time = max(1, min(batch_size, _MAX_ROWS // n_samples)) if batch_size >= 1 else batch_size
        for part in chunks(len(texts)):
            encoded = self._tokenizer.encode(texts[part], limit)
            for batch in length_sorted(encoded.lengths, docs_at_a_time):
                rows = part.start + batch
                numbers = [int(items[row]) for row in rows]
                generated = self._generate_batch([encoded.ids[i] for i in batch], numbers, n_samples, sampling, seed)
                for row, found in zip(rows, generated, strict=True):
                    queries[row] = found
                done += len(batch)
                if progress is not None:
                    progress(done, len(texts))
        return queries

    def _generate_batch(
        self, ids: list[Ids], items: list[int], n_samples: int, sampling: Sampling, seed: int
    ) -> list[list[list[int]]]:
        """All samples of some passages, at most _MAX_ROWS rows at a time."""
        mask = mask_of(ids)
        outputs = self._encoder.run({"input_ids": pad(ids, self._special.pad), "attention_mask": mask})
        passages = _Passages(mask, dict(zip(self._encoder.outputs, outputs, strict=True)))
        found: list[list[list[int]]] = [[] for _ in ids]
        samples_at_a_time = max(1, _MAX_ROWS // len(ids))
        for first in range(0, n_samples, samples_at_a_time):
            samples = range(first, min(first + samples_at_a_time, n_samples))
            docs = np.repeat(np.arange(len(ids)), len(samples))
            steps = sampling.max_new_tokens
            noise = np.stack([uniforms(seed, item, sample, steps) for item in items for sample in samples])
            for doc, row in zip(docs, self._decode(passages, docs, noise, sampling), strict=True):
                found[doc].append(row)
        return found

    def _decode(self, passages: _Passages, docs: Array, noise: Array, sampling: Sampling) -> list[list[int]]:
        """Decode one row per entry of `docs` (its passage), until all have ended.

        Rows that have ended are dropped with their share of the cache, passages with their last row.
        """
        n_best = self._vocabulary if sampling.top_k == 0 else min(sampling.top_k, self._vocabulary)
        n_best = 1 if sampling.greedy else n_best
        written = np.full((len(docs), sampling.max_new_tokens), self._special.end[0], np.int64)
        alive = np.arange(len(docs))
        ended = np.zeros(len(docs), bool)
        tokens = np.full(len(docs), self._special.start, np.int32)
        past = [np.zeros((len(docs), self._n_heads, 0, self._head_dim), np.float32) for _ in self._past_inputs]
        feed = self._passage_feed(passages, docs)
        for step in range(sampling.max_new_tokens):
            feed |= {"tokens": tokens, "distances": self._distances(step), "n_best": np.array([n_best])}
            logits, best, *past = self._decoder.run(
                feed | dict(zip(self._past_inputs, past, strict=True)), self._outputs
            )
            chosen = choose(logits, best, noise[alive, step], sampling)
            written[alive[~ended], step] = chosen[~ended]
            ended |= np.isin(chosen, self._special.end)
            if ended.all():
                break
            tokens = chosen.astype(np.int32)
            if ended.mean() >= _COMPACT_SHARE:
                kept = np.flatnonzero(~ended)
                left, docs = np.unique(docs[kept], return_inverse=True)
                passages = passages.take(left)
                past = [value[kept] for value in past]
                alive, ended, tokens = alive[kept], ended[kept], tokens[kept]
                feed = self._passage_feed(passages, docs)
        return [_until(row, self._special.end) for row in written.tolist()]

    def _distances(self, step: int) -> Array:
        return np.minimum(np.arange(step, -1, -1, dtype=np.int32), self._max_distance)[None, :]

    def _passage_feed(self, passages: _Passages, docs: Array) -> dict[str, Array]:
        """Cross-attention inputs, and the grouping of rows by passage (`docs` is ascending)."""
        counts = np.bincount(docs, minlength=len(passages.mask))
        sample = np.arange(len(docs)) - np.repeat(np.cumsum(counts) - counts, counts)
        slots = np.zeros((len(passages.mask), counts.max()), np.int32)
        slots[docs, sample] = np.arange(len(docs))
        row_slots = (docs * slots.shape[1] + sample).astype(np.int32)
        return {"attention_mask": passages.mask, "slots": slots, "row_slots": row_slots, **passages.cross}


def _until(row: list[int], end: tuple[int, ...]) -> list[int]:
    stops = [row.index(token) for token in end if token in row]
    return row[: min(stops)] if stops else row


def _check(n_texts: int, n_samples: int, seed: int, items: Sequence[int], max_input_tokens: int) -> None:
    if len(items) != n_texts:
        message = f"generate: items has {len(items)} numbers but texts has {n_texts} passages; give one for each"
        raise ShapeError(message)
    wrong = next((item for item in items if not 0 <= item < 2**63), 0)
    checks = (
        (n_samples >= 1, "n_samples", n_samples, "at least 1"),
        (0 <= seed < 2**64, "seed", seed, "between 0 and 2**64 - 1"),
        (wrong == 0, "an item", wrong, "between 0 and 2**63 - 1"),
        (max_input_tokens >= 2, "max_input_tokens", max_input_tokens, "at least 2"),
    )
    for fine, name, value, rule in checks:
        if not fine:
            message = f"generate: {name} is {value} but must be {rule}"
            raise ConfigError(message)


def _special(checkpoint: Checkpoint) -> _Special:
    """Ids of the start, padding and end; generation_config.json goes before config.json, as in transformers."""
    settings = {**checkpoint.config, **checkpoint.optional("generation_config.json", network=True)}
    pad_id = int(settings.get("pad_token_id") or 0)
    start = settings.get("decoder_start_token_id")
    end = settings.get("eos_token_id", 1)
    ends = tuple(int(token) for token in end) if isinstance(end, list) else (int(1 if end is None else end),)
    return _Special(pad_id if start is None else int(start), pad_id, ends)


def _export(t5: T5, folder: Path) -> None:
    t5_encoder_graph(t5).save(folder / "encoder.onnx")
    t5_decoder_graph(t5).save(folder / "decoder.onnx")
