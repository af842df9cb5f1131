"""A text as words and sentences that keep their places, so that a query is a slice of it."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from gplfast.mining.copies import WORD
from gplfast.mining.sampling import words as random_words
from gplfast.mining.windows import SENTENCE_END

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Span = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Words:
    """A text and where its words are.

    Attributes:
        text: The text.
        spans: Start and end of each word (a run of letters and digits, see `copies.plain`), in characters.
    """

    text: str
    spans: list[Span]

    @classmethod
    def of(cls, text: str) -> Words:
        """The words of a text."""
        return cls(text, [match.span() for match in WORD.finditer(text)])

    def __len__(self) -> int:
        """How many words."""
        return len(self.spans)

    def run(self, first: int, n: int) -> str:
        """The slice of the text from word `first` on that holds `n` words, as it is written; "" for none."""
        return self.text[self.spans[first][0] : self.spans[first + n - 1][1]] if n else ""


def sentences(text: str) -> list[Span]:
    """Start and end of each sentence, with its closing mark, in characters; a line's end is a sentence's end too."""
    found, start = [], 0
    for match in SENTENCE_END.finditer(text):
        found.append((start, match.end()))
        start = match.end()
    found.append((start, len(text)))
    return [trimmed for span in found if (trimmed := _trim(text, span)) is not None]


def one_line(text: str) -> str:
    """The text with every run of spaces and line ends as one space: the form of every query."""
    return " ".join(text.split())


def draws(seed: int, stage: str, row: int, sample: int, n: int) -> npt.NDArray[np.uint64]:
    """N random words of one sample of one passage: nothing else has the stream (seed, stage, row, sample)."""
    return random_words(seed, stage, (row << 32) | sample, n)


def uniform(word: np.uint64) -> float:
    """A number in [0, 1) from the upper 53 bits of a random word."""
    return (int(word) >> 11) * 2.0**-53


def pick(word: np.uint64, limit: int) -> int:
    """A whole number in [0, limit) from a random word, as `sampling.below` gives it."""
    return ((int(word) >> 32) * limit) >> 32


def _trim(text: str, span: Span) -> Span | None:
    piece = text[span[0] : span[1]]
    inner = piece.strip()
    start = span[0] + len(piece) - len(piece.lstrip())
    return (start, start + len(inner)) if inner else None
