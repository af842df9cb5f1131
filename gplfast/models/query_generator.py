"""The query generator: T5 over ONNX Runtime with its own decoding loop."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gplfast.errors import ConfigError, ShapeError
from gplfast.models import calibration
from gplfast.models.batching import Progress, chunks, mask_of, pad
from gplfast.models.cache import cache_root
from gplfast.models.checkpoint import Checkpoint
from gplfast.models.decoding import Decoding, Shape, run_streams
from gplfast.models.export.t5 import T5, t5_decoder_graph, t5_encoder_graph
from gplfast.models.resolve import resolve
from gplfast.models.runtime import (
    AUTO,
    REFERENCE,
    AnySession,
    Runtime,
    available,
    candidates,
    is_open,
    open_exported,
    resolved,
)
from gplfast.models.sampling import Sampling, uniforms
from gplfast.models.tokenization import Tokenizer, max_length

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from pathlib import Path

    from gplfast.models.states import Handles

_GRAPH_VERSION = 1  # goes up when the graph of the same weights changes, so that cached ones are not used
_DEFAULT_MAX_INPUT_TOKENS = 512  # what T5 was trained with; its relative positions set no limit of their own

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Runtimes:
    """What the two graphs run on."""

    encoder: Runtime
    decoder: Runtime

    def __str__(self) -> str:
        """One name where both are the same."""
        return str(self.decoder) if self.encoder == self.decoder else f"{self.encoder}+{self.decoder}"

    @property
    def suffix(self) -> str:
        """What a fingerprint of results gets: results of another precision are others."""
        return "" if self.encoder.precision == self.decoder.precision == "fp32" else f"-{self}"


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that a T5 begins, pads and ends with."""

    start: int
    pad: int
    end: tuple[int, ...]


class QueryGenerator:
    """A T5 query generator served by ONNX Runtime."""

    choice: calibration.Choice  # what it runs on, and why

    def __init__(self, checkpoint: Checkpoint, encoder: AnySession, decoder: AnySession, tokenizer: Tokenizer) -> None:
        """Use `open`, which makes the parts."""
        t5 = T5(checkpoint)
        self.fingerprint = checkpoint.fingerprint
        self.max_input_tokens = max_length(checkpoint, None) or _DEFAULT_MAX_INPUT_TOKENS
        self._special = special_tokens(checkpoint)
        self._encoder, self._decoder, self._tokenizer = encoder, decoder, tokenizer
        cache = [f"{part}_{i}" for i in range(t5.n_decoder_layers) for part in ("key", "value")]
        self._shape = Shape(
            past_inputs=tuple(f"past_{name}" for name in cache),
            cross_inputs=tuple(encoder.outputs),
            outputs=("best_logits", "best_tokens", *cache),
            n_heads=t5.n_heads,
            head_dim=t5.head_dim,
            max_distance=t5.max_distance,
            vocabulary=t5.output_rows,
            start=self._special.start,
            end=self._special.end,
        )

    @classmethod
    def open(
        cls,
        name_or_path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        provider: str = AUTO,
        precision: str = AUTO,
    ) -> QueryGenerator:
        """Open a T5 checkpoint, exporting it to ONNX at first use.

        Args:
            name_or_path: a directory, "nano:generator", or a hub name.
            threads: None takes every CPU this process may use.
            cache_dir: where exported graphs are kept; None: $GPLFAST_CACHE or ~/.cache/gplfast.
            provider: "cpu", "openvino" (the encoder alone), "cuda", or "auto": the fastest here, found by a trial that
                is made once.
            precision: "fp32", "fp16" (CUDA), "bf16" (CUDA; OpenVINO's encoder alone), "int8", or "auto": lower than
                fp32 only where the trial's queries were as good (see `calibration.MAX_SCORE_CHANGE`).

        Raises:
            ModelError: not a T5 that can be served, or damaged files; the message says why.
            HubError, MissingExtraError: see `resolve`.
        """
        checkpoint = Checkpoint(resolve(name_or_path, cache_dir=cache_dir))
        t5 = T5(checkpoint)
        end = special_tokens(checkpoint).end[0]
        tokenizer = Tokenizer(checkpoint, vocabulary_rows=t5.input_rows, end_id=end)
        root = cache_root(cache_dir) / checkpoint.fingerprint

        def part(name: str, runtime: Runtime) -> AnySession:
            graphs = root / f"query-generator-v{_GRAPH_VERSION}"
            export, growing = functools.partial(_export, t5), name == "decoder"
            return open_exported(graphs, f"{name}.onnx", export, runtime, threads, streams=True, growing=growing)

        def start(runtimes: Runtimes) -> QueryGenerator:
            model = cls(checkpoint, part("encoder", runtimes.encoder), part("decoder", runtimes.decoder), tokenizer)
            model.fingerprint += runtimes.suffix
            return model

        trial = calibration.Calibration("query-generator", start, _generate_for_items, QueryGate(threads, cache_dir))
        reference = Runtimes(REFERENCE, REFERENCE)
        return trial.open(runtimes(provider, precision), reference, root, threads, gated=is_open(precision))

    def generate(
        self,
        texts: Sequence[str],
        n_samples: int,
        *,
        sampling: Sampling | None = None,
        seed: int,
        items: Sequence[int],
        first_sample: Sequence[int] | None = None,
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
            first_sample: n numbers >= 0, at which the numbers of each passage's samples begin; None: at 0. So more of
                a passage can be drawn later.
            batch_size: passages encoded at a time.
            max_input_tokens: passages are cut to so many tokens, with </s>; None: `self.max_input_tokens`.
            progress: called with (done, total) passages.

        Returns:
            n lists of `n_samples` stripped queries, which may be empty strings.

        Raises:
            ShapeError: not as many items or first samples as texts.
            ConfigError: n_samples, seed, an item, a first sample, batch_size or max_input_tokens out of range.
            ResourceError: one query alone does not fit into memory; batches that do not are halved.
        """
        rows = self.generate_ids(
            texts,
            n_samples,
            sampling=sampling,
            seed=seed,
            items=items,
            first_sample=first_sample,
            batch_size=batch_size,
            max_input_tokens=max_input_tokens,
            progress=progress,
        )
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
        first_sample: Sequence[int] | None = None,
        batch_size: int = 32,
        max_input_tokens: int | None = None,
        progress: Progress | None = None,
    ) -> list[list[list[int]]]:
        """As `generate`, but the token ids of each query, without the end and what follows it."""
        limit = self.max_input_tokens if max_input_tokens is None else max_input_tokens
        first_sample = [0] * len(texts) if first_sample is None else first_sample
        for name, given in (("items", items), ("first_sample", first_sample)):
            if len(given) != len(texts):
                message = f"generate: {name} has {len(given)} numbers but texts has {len(texts)} passages"
                raise ShapeError(f"{message}; give one for each")
        _check(n_samples, seed, batch_size, limit, (items, first_sample))
        sampling = Sampling() if sampling is None else sampling
        tokens: list[list[list[int]]] = [[[] for _ in range(n_samples)] for _ in texts]
        start = functools.partial(
            Decoding, self._decoder, self._shape, self._encode, sampling, encode_at_once=batch_size
        )
        n_left = [n_samples] * len(texts)
        n_done = 0
        for part in chunks(len(texts)):

            def noise(passage: int, sample: int, first: int = part.start) -> Array:
                row = first + passage
                return uniforms(seed, int(items[row]), int(first_sample[row]) + sample, sampling.max_new_tokens)

            def done(passage: int, sample: int, found: list[int], first: int = part.start) -> None:
                nonlocal n_done
                tokens[first + passage][sample] = found
                n_left[first + passage] -= 1
                n_done += not n_left[first + passage]
                if progress is not None and not n_left[first + passage]:
                    progress(n_done, len(texts))

            ids = self._tokenizer.encode(texts[part], limit).ids
            run_streams(start, ids, n_samples, n_streams=self._decoder.streams, noise=noise, done=done)
        return tokens

    def _encode(self, ids: list[Array]) -> tuple[Array, Handles]:
        """The mask, and each layer's cross-attention keys and values, which stay where the encoder runs."""
        mask = mask_of(ids)
        feed = {"input_ids": pad(ids, self._special.pad), "attention_mask": mask}
        return mask, self._encoder.run(feed, None, self._encoder.outputs)


def _check(
    n_samples: int, seed: int, batch_size: int, max_input_tokens: int, numbers: tuple[Sequence[int], Sequence[int]]
) -> None:
    wrong, wrong_first = (next((n for n in given if not 0 <= n < 2**63), 0) for given in numbers)
    checks = (
        (n_samples >= 1, "n_samples", n_samples, "at least 1"),
        (0 <= seed < 2**64, "seed", seed, "between 0 and 2**64 - 1"),
        (wrong == 0, "an item", wrong, "between 0 and 2**63 - 1"),
        (wrong_first == 0, "a first sample", wrong_first, "between 0 and 2**63 - 1"),
        (max_input_tokens >= 2, "max_input_tokens", max_input_tokens, "at least 2"),
        (batch_size >= 1, "batch_size", batch_size, "at least 1"),
    )
    for fine, name, value, rule in checks:
        if not fine:
            message = f"generate: {name} is {value} but must be {rule}"
            raise ConfigError(message)


def special_tokens(checkpoint: Checkpoint) -> SpecialTokens:
    """Ids of the start, padding and end; generation_config.json goes before config.json, as in transformers."""
    settings = {**checkpoint.config, **checkpoint.optional("generation_config.json", network=True)}
    pad_id = int(settings.get("pad_token_id") or 0)
    start = settings.get("decoder_start_token_id")
    end = settings.get("eos_token_id", 1)
    ends = tuple(int(token) for token in end) if isinstance(end, list) else (int(1 if end is None else end),)
    return SpecialTokens(pad_id if start is None else int(start), pad_id, ends)


def runtimes(provider: str, precision: str) -> list[Runtimes]:
    """The pairs of runtimes that a choice leaves, the most exact first.

    The decoder always runs on ONNX Runtime: its shapes change with every step. CUDA runs both or none. int8 is of the
    decoder, and of the encoder integers or bfloat16, whichever is faster; OpenVINO's bf16 is of the encoder alone.

    Raises:
        ConfigError, MissingExtraError, UnavailableError: see `candidates`.
    """
    provider, precision = resolved(provider, precision)
    encoders = candidates(provider, precision)
    int8 = Runtime("cpu", "int8")
    found = [Runtimes(one, one if one.provider == "cuda" else REFERENCE) for one in encoders if one != int8]
    if precision in {AUTO, "int8"} and int8 in encoders:
        here = (one for one in available(provider) if provider in {AUTO, one.provider})
        found += [Runtimes(one, int8) for one in here if one.precision != "fp32" and one.provider != "cuda"]
    return found


class QueryGate:
    """The mean score that the bundled teacher gives to (query, its passage), against that of float32's queries."""

    def __init__(self, threads: int | None, cache_dir: str | os.PathLike[str] | None) -> None:
        """The teacher is opened when it is first needed."""
        self._threads, self._cache_dir = threads, cache_dir

    def __call__(self, expected: Queries, found: Queries) -> tuple[calibration.Gate, bool]:
        """Figures, and whether the change is within `calibration.MAX_SCORE_CHANGE`."""
        from gplfast.models.cross_encoder import CrossEncoder

        teacher = CrossEncoder.open(
            "nano:teacher", threads=self._threads, cache_dir=self._cache_dir, provider="cpu", precision="fp32"
        )
        both = expected.queries + found.queries, expected.passages + found.passages  # equal pairs are scored once
        before, after = teacher.score(*both, activation="sigmoid").reshape(2, -1).mean(axis=1).tolist()
        same = float(np.mean([a == b for a, b in zip(expected.queries, found.queries, strict=True)]))
        figures = {"mean_score_fp32": round(before, 4), "mean_score": round(after, 4), "same_queries": round(same, 4)}
        return figures, abs(after / before - 1) <= calibration.MAX_SCORE_CHANGE


class Queries(NamedTuple):
    """Generated queries, each with its passage."""

    queries: list[str]
    passages: list[str]


def _generate_for_items(model: QueryGenerator, items: Sequence[calibration.Item]) -> Queries:
    passages = [item.passage for item in items]
    sampling = Sampling(max_new_tokens=32)
    found = model.generate(passages, 3, sampling=sampling, seed=0, items=range(len(items)), max_input_tokens=128)
    return Queries([query for queries in found for query in queries], [text for text in passages for _ in range(3)])


def _export(t5: T5, folder: Path, *, precision: str) -> None:
    t5_encoder_graph(t5, precision).save(folder / "encoder.onnx")
    t5_decoder_graph(t5, precision).save(folder / "decoder.onnx")
