"""Which queries were copied from their passage, word for word."""

from __future__ import annotations

import re
import unicodedata

# A query of so many words or more that is a run of its passage counts as copied. Fewer may well be a topic, and a topic
# is copied by nature: of the 5,125 names that MedQuAD's answers have as titles 90 % have at most 5 words. People hardly
# ever write longer ones: 1 of SQuAD's, PubMedQA's, CACM's, CISI's and Cranfield's 5,300 queries occurs in its passage.
FEWEST_WORDS = 6
WORD = re.compile(r"[^\W_]+")


def plain(text: str) -> str:
    """The words of a text in a form to compare: " " before, between and after them; "" where there are none.

    A word is a run of letters and digits, case-folded, without accents, in compatibility form (a generator's tokenizer
    may have changed all of these): "Naïve β-cells'" and "naive β - cells" are the same.
    """
    folded = text.casefold()
    if not folded.isascii():
        folded = "".join(c for c in unicodedata.normalize("NFKD", folded) if not unicodedata.combining(c))
    words = WORD.findall(folded)
    return f" {' '.join(words)} " if words else ""


def is_copied(query: str, passage: str) -> bool:
    """Whether a query of at least `FEWEST_WORDS` words is a run of the passage's words.

    Args:
        query: as `plain` gives it.
        passage: as `plain` gives it.
    """
    return query.count(" ") > FEWEST_WORDS and query in passage
