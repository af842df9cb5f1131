"""Which part of a long passage a query is made from, when the generator reads less than the passage."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import numpy as np

from gplfast.mining.sampling import below, words

if TYPE_CHECKING:
    from collections.abc import Sequence

# A window should hold at least this many characters per token it may have, or it starts too near the end. English
# WordPiece has about 4.5 characters a token; half of that lets the last sentences be drawn too.
_CHARACTERS_PER_TOKEN = 2.25
SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+|\n+")


def starts(text: str, window_tokens: int) -> list[int]:
    """Positions at which a window may start: the beginning, and after each sentence with enough text behind it."""
    last = len(text) - int(window_tokens * _CHARACTERS_PER_TOKEN)
    return [0, *(match.end() for match in SENTENCE_END.finditer(text) if match.end() <= last)]


def random_windows(
    titles: Sequence[str],
    texts: Sequence[str],
    items: Sequence[int],
    samples: Sequence[int],
    window_tokens: int,
    *,
    seed: int,
) -> list[str]:
    """Each text from a start drawn uniformly by the counter (seed, "window", item, sample) on, behind its title.

    A query is about what the title names, so every window has it in front; the model cuts the end.

    Args:
        titles: n titles, may be empty; where not, the text begins with it.
        texts: n texts.
        items: n numbers that name the texts.
        samples: n numbers that name the draws from each text, from 0.
        window_tokens: what the model will read.
        seed: seed of the draws.
    """
    cut = []
    for title, text, item, sample in zip(titles, texts, items, samples, strict=True):
        head = len(title) + 1 if title else 0
        choices = starts(text[head:], window_tokens)
        at = int(below(words(seed, "window", item, sample + 1)[-1:], np.array([len(choices)]))[0])
        cut.append(text[:head] + text[head + choices[at] :])
    return cut
