"""Cut long passages into pieces at sentence ends."""

from __future__ import annotations

import re

_WORD = re.compile(r"\S+")
# A full stop, question or exclamation mark (Western or CJK), with closing quotes and brackets, or a paragraph's end.
_SENTENCE_END = re.compile(r"[.!?\u2026\u3002\uff01\uff1f][\"'\u201d\u2019)\]\u00bb]*$")
_PARAGRAPH = re.compile(r"\n\s*\n")


def split_words(text: str, most_words: int) -> list[str]:
    """Cut `text` into pieces of at most `most_words` words (runs of non-space), at sentence ends where there are any.

    Each piece takes as many whole sentences as fit; a sentence that alone is too long is cut between words. The
    pieces are slices of `text`: together they have all its words, in order.

    Returns:
        At least one piece; the text itself when it fits.
    """
    spans = [match.span() for match in _WORD.finditer(text)]
    pieces, start = [], 0
    while len(spans) - start > most_words:
        stop = start + most_words
        end = next((cut for cut in range(stop, start, -1) if _ends_sentence(text, spans, cut)), stop)
        pieces.append(text[spans[start][0] : spans[end - 1][1]])
        start = end
    if not pieces:
        return [text]
    return [*pieces, text[spans[start][0] : spans[-1][1]]]


def _ends_sentence(text: str, spans: list[tuple[int, int]], cut: int) -> bool:
    """Whether a sentence ends between word `cut` - 1 and word `cut`."""
    begin, end = spans[cut - 1]
    return bool(_SENTENCE_END.search(text, begin, end) or _PARAGRAPH.search(text, end, spans[cut][0]))
