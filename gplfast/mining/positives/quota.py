"""So many queries of each passage: samples in order, without repeats, without those that are no query."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, NamedTuple

from gplfast.mining.copies import plain
from gplfast.mining.positives.text import one_line

if TYPE_CHECKING:
    from collections.abc import Callable

    from gplfast.mining.lists import Int64

FEWEST_WORDS = 2
# What a manifest counts besides passages and queries.
COUNTED = ("drawn", "too short", "duplicate", "whole passage", "made up", "passages below quota")


class Made(NamedTuple):
    """The queries of some passages.

    Attributes:
        texts: n_queries texts.
        passages: int64 (n_queries,), the row of each one's positive.
        sources: int64 (n_queries,), the row that each was cut from; None where that is its positive.
        counts: What was drawn and what was dropped.
    """

    texts: list[str]
    passages: Int64
    sources: Int64 | None
    counts: collections.Counter[str]


class Kept(NamedTuple):
    """The queries of one passage.

    Attributes:
        samples: Those that were kept, in the order drawn, each with the row that it was cut from.
        counts: What was drawn and what was dropped, by the first rule that did.
    """

    samples: list[tuple[str, int]]
    counts: collections.Counter[str]


def fill(sample: Callable[[int], tuple[str, int] | None], passages: tuple[str, ...], quota: int, n_extra: int) -> Kept:
    """Take samples 0, 1, … until `quota` are kept, `quota + n_extra` are drawn, or there are no more.

    Dropped are those of fewer than 2 words (runs of letters and digits), those equal to an earlier one, and those that
    are the whole passage, in whatever marks and case.

    Args:
        sample: The sample of a number, and the row that it was cut from; None behind the last one.
        passages: Texts that a query must not be all of.
        quota: How many are wanted.
        n_extra: How many more may be drawn.
    """
    kept: list[tuple[str, int]] = []
    counts: collections.Counter[str] = collections.Counter()
    seen: set[str] = set()
    whole = {plain(text) for text in passages}
    for number in range(quota + n_extra):
        if len(kept) == quota:
            break
        drawn = sample(number)
        if drawn is None:
            break
        text, source = drawn
        query = one_line(text)
        counts["drawn"] += 1
        if fault := _fault(query, seen, whole):
            counts[fault] += 1
        else:
            kept.append((query, source))
            counts["made up"] += number >= quota
        seen.add(query)
    counts["passages below quota"] += len(kept) < quota
    return Kept(kept, counts)


def _fault(query: str, seen: set[str], whole: set[str]) -> str:
    words = plain(query)
    if len(words.split()) < FEWEST_WORDS:
        return "too short"
    if query in seen:
        return "duplicate"
    return "whole passage" if words in whole else ""
