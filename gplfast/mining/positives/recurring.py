"""Spans that recur in several passages of a document: what one passage says of them is a query for the others."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gplfast.mining.lists import Lists
from gplfast.mining.positives.text import Words, pick, uniform

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from gplfast.mining.lists import Int64

    Random = npt.NDArray[np.uint64]

N_RANDOM = 5  # random words of one query


@dataclasses.dataclass(frozen=True, eq=False)
class Recurring:
    """Every occurrence of every recurring span, by (passage, first word, length).

    Attributes:
        passages: int64 (n_occurrences,), ascending.
        firsts: int64, the number of its first word in the passage.
        lengths: int64, in words.
        spans: int64, the number of the span; equal words (of one document) have the same one.
        of_span: By span its occurrences, ascending.
    """

    passages: Int64
    firsts: Int64
    lengths: Int64
    spans: Int64
    of_span: Lists

    def of_passage(self, passage: int) -> slice:
        """The occurrences in a passage."""
        start, stop = np.searchsorted(self.passages, [passage, passage + 1])
        return slice(int(start), int(stop))


@dataclasses.dataclass(frozen=True, eq=False)
class _Stream:
    """The words of all passages, one after the other.

    Attributes:
        passages: int64 (n,), of each word.
        numbers: int64 (n,), its place in the passage.
        ids: int64 (n,), equal for equal words of one document.
        n_ids: ids are below it.
        stop: bool (n,), stop words.
        joined: bool (n,), whether only space is between it and the next word, in one passage.
    """

    passages: Int64
    numbers: Int64
    ids: Int64
    n_ids: int
    stop: npt.NDArray[np.bool_]
    joined: npt.NDArray[np.bool_]


def find(
    texts: Sequence[Words],
    documents: Sequence[int],
    stop_words: Collection[str],
    *,
    shortest: int,
    longest: int,
) -> Recurring:
    """Find the spans that occur in at least two passages of one document.

    A span is a run of `shortest` to `longest` words with nothing but space between them, compared without case, that
    neither begins nor ends with a stop word. One that only ever occurs inside of a longer one is left out.

    Args:
        texts: The passages.
        documents: Of each passage the number of its document.
        stop_words: Lower-case words.
        shortest: Fewest words.
        longest: Most words.

    Returns:
        The occurrences. Where the same passage has a span twice, both are there.

    Source: Ram et al. 2022 (Spider), "Recurring span retrieval", and `preprocess_corpus.py` of its code.
        Different here: words are runs of letters and digits instead of spaCy's tokens, the longest span has `longest`
        words (the code's has one less), and no passage of a document is left out (its last one is, there, because
        Wikipedia's was filled up with the document's beginning).

    Memory: about 250 bytes per word, with the places of the words. 1.1 million words take 1.4 s on one core.
    """
    stream = _stream(texts, documents, stop_words)
    found: dict[int, tuple[Int64, Int64, Int64]] = {}  # length to (positions, classes, their numbers of occurrences)
    positions, classes = np.arange(len(stream.ids), dtype=np.int64), stream.ids
    for length in range(1, longest + 1):
        if length > 1:
            positions, classes = _longer(stream, positions, classes, length)
        positions, classes, counts = _recurring(stream, positions, classes)
        valid = ~stream.stop[positions] & ~stream.stop[positions + length - 1]
        if length >= shortest:
            found[length] = positions[valid], classes[valid], counts[valid]
    return _collect(stream, {length: _largest(found, length) for length in found})


def draw(spans: Recurring, passage: int, random: Random) -> int | None:
    """One occurrence in another passage, of a span of this one; both drawn uniformly, the span first.

    Args:
        spans: What `find` gave.
        passage: Its number.
        random: uint64, at least 2 words.

    Returns:
        The number of the occurrence; None where the passage has no recurring span.
    """
    here = spans.spans[spans.of_passage(passage)]
    # In the order in which they occur: numbers of spans depend on what else was searched.
    _, first = np.unique(here, return_index=True)
    if not len(first):
        return None
    span = here[np.sort(first)[pick(random[0], len(first))]]
    others = spans.of_span.list(int(span))
    others = others[spans.passages[others] != passage]
    return int(others[pick(random[1], len(others))])


def window(words: Words, span: tuple[int, int], sizes: tuple[int, int], keep: float, random: Random) -> str:
    """A random window of a passage around a span, which stays in it or is cut out.

    Args:
        words: The passage.
        span: Its first word and its number of words.
        sizes: Fewest and most words of the window, which is never longer than the passage, and never shorter than a
            span that stays.
        keep: How likely the span stays.
        random: uint64, at least 3 words.

    Source: `RandomWindowQueryTransformation` of Spider's code (runs: 5 to 30 tokens, kept with 0.5). There a window may
        begin behind the span and "keep" means not to look for it; here a kept span is always whole.
    """
    (first, n_span), (low, high) = span, sizes
    length, stop = low + pick(random[0], high - low + 1), first + n_span
    if uniform(random[1]) < keep:
        length = min(max(length, n_span), len(words))
        earliest, latest = max(0, stop - length), min(first, len(words) - length)
        return words.run(earliest + pick(random[2], latest - earliest + 1), length)
    length = min(length, len(words) - n_span)
    earliest, latest = max(0, first - length), min(first, len(words) - n_span - length)
    start = earliest + pick(random[2], latest - earliest + 1)
    before, behind = words.run(start, first - start), words.run(stop, length - (first - start))
    return f"{before} {behind}".strip()


def _stream(texts: Sequence[Words], documents: Sequence[int], stop_words: Collection[str]) -> _Stream:
    known: dict[tuple[int, str], int] = {}
    ids: list[int] = []
    stop: list[bool] = []
    joined: list[bool] = []
    for document, words in zip(documents, texts, strict=True):
        text, spans = words.text, words.spans
        folded = [text[start:end].casefold() for start, end in spans]
        ids += [known.setdefault((document, word), len(known)) for word in folded]
        stop += [word in stop_words for word in folded]
        ends = [end for _, end in spans]
        joined += [text[end:start].isspace() for end, (start, _) in zip(ends, spans[1:], strict=False)]
        joined += [False] * bool(spans)
    lengths = np.array([len(text) for text in texts], np.int64)
    begins = np.cumsum(lengths) - lengths
    numbers = np.arange(lengths.sum(), dtype=np.int64) - np.repeat(begins, lengths)
    passages = np.repeat(np.arange(len(texts), dtype=np.int64), lengths)
    return _Stream(
        passages, numbers, np.array(ids, np.int64), len(known), np.array(stop, np.bool_), np.array(joined, np.bool_)
    )


def _longer(stream: _Stream, positions: Int64, classes: Int64, length: int) -> tuple[Int64, Int64]:
    """The runs one word longer than those given, with a class number each that is equal for equal words."""
    # The next word's own id stands for it: words that do not recur are no part of any span.
    can = stream.joined[positions + length - 2]
    positions, classes = positions[can], classes[can]
    return positions, classes * stream.n_ids + stream.ids[positions + length - 1]


def _recurring(stream: _Stream, positions: Int64, classes: Int64) -> tuple[Int64, Int64, Int64]:
    """Those whose class is in two passages, classes numbered anew, and how many occurrences each one's class has."""
    _, first, inverse, counts = np.unique(classes, return_index=True, return_inverse=True, return_counts=True)
    last = np.zeros(len(first), np.int64)
    np.maximum.at(last, inverse, stream.passages[positions])
    kept = (last > stream.passages[positions[first]])[inverse]
    return positions[kept], inverse[kept].astype(np.int64), counts[inverse[kept]].astype(np.int64)


def _largest(found: dict[int, tuple[Int64, Int64, Int64]], length: int) -> tuple[Int64, Int64]:
    """Positions and classes of one length without those that a longer span always has inside.

    A longer span around one occurrence that occurs as often is around all of them.
    """
    positions, classes, counts = found[length]
    _, first, inverse = np.unique(classes, return_index=True, return_inverse=True)
    covered = np.zeros(len(first), np.bool_)
    for longer in range(length + 1, max(found) + 1):
        their_positions, _, their_counts = found[longer]
        for shift in range(longer - length + 1) if len(their_positions) else ():
            wanted = positions[first] - shift
            at = np.minimum(np.searchsorted(their_positions, wanted), len(their_positions) - 1)
            covered |= (their_positions[at] == wanted) & (their_counts[at] == counts[first])
    kept = ~covered[inverse]
    return positions[kept], classes[kept]


def _collect(stream: _Stream, found: dict[int, tuple[Int64, Int64]]) -> Recurring:
    lengths = np.concatenate([np.full(len(positions), length) for length, (positions, _) in found.items()])
    positions = np.concatenate([positions for positions, _ in found.values()])
    # Classes are numbered within a length.
    classes = np.concatenate([classes for _, classes in found.values()])
    order = np.lexsort((lengths, positions))
    positions, lengths, classes = positions[order], lengths[order].astype(np.int64), classes[order]
    most = int(classes.max(initial=0)) + 1
    _, spans, counts = np.unique(lengths * most + classes, return_inverse=True, return_counts=True)
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    of_span = Lists(indptr, np.argsort(spans, kind="stable").astype(np.int64))
    return Recurring(stream.passages[positions], stream.numbers[positions], lengths, spans.astype(np.int64), of_span)
