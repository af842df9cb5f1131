"""The spans or sentences of a passage that are most about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gplfast.mining.positives.text import Span, Words, pick, sentences

if TYPE_CHECKING:
    from gplfast.mining.lists import Int64

    Random = npt.NDArray[np.uint64]


def random_spans(words: Words, n: int, low: int, high: int, random: Random) -> list[Span]:
    """Places of `n` runs of `low` to `high` words, length and start uniform, in characters; repeats are left out.

    Args:
        words: The passage; where it is shorter than a run, the run is all of it.
        n: How many.
        low: Fewest words.
        high: Most words.
        random: uint64, at least 2 n words.

    Source: Meng et al. 2022 (AugTriever), "Query extraction"; its code draws 16 of 4 to 16 words.
    """
    found = []
    for number in range(n if len(words) else 0):
        length = min(low + pick(random[2 * number], high - low + 1), len(words))
        first = pick(random[2 * number + 1], len(words) - length + 1)
        found.append((words.spans[first][0], words.spans[first + length - 1][1]))
    return list(dict.fromkeys(found))


def order(scores: npt.NDArray[np.float32]) -> Int64:
    """Candidates by (score descending, number ascending), those without a score (NaN) left out."""
    known = np.flatnonzero(~np.isnan(scores))
    return known[np.argsort(-scores[known], kind="stable")].astype(np.int64)


def masked(text: str, span: Span, mask_text: str) -> str:
    """The sentence (or sentences) around a span, the span replaced.

    Source: Guu et al. 2020 (REALM), "Salient span masking"; as queries for retrieval in Sachan et al. 2021. There
        the spans are named entities and dates.
    """
    around = [place for place in sentences(text) if place[0] < span[1] and span[0] < place[1]]
    return f"{text[around[0][0] : span[0]]}{mask_text}{text[span[1] : around[-1][1]]}"
