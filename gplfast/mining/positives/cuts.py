"""A part of a passage as its query: a sentence, a crop, a crop with noise."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from gplfast.mining.positives.text import Words, pick, sentences, uniform
from gplfast.mining.sampling import permutation

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    import numpy.typing as npt

    Random = npt.NDArray[np.uint64]

Ratios = tuple[float, float]

_CROP_WORDS = 2  # random words of a crop
_NOISE_WORDS = 3  # ... and of the fate of each of its words


class Noise(NamedTuple):
    """What becomes of each word by itself; the shares add up to at most 1.

    Attributes:
        delete: Share of the words that are left out.
        replace: Share that becomes another word.
        mask: Share that becomes `mask_text`.
        mask_text: See `mask`.
    """

    delete: float
    replace: float
    mask: float
    mask_text: str


def shuffled_sentences(text: str, *, seed: int, row: int) -> list[str]:
    """The sentences in random order, by the counter (seed, "ict", row): sample s is the s-th, each comes once.

    Source: the inverse cloze task, a random sentence as query (Lee et al. 2019, section 4).
    """
    found = sentences(text)
    return [text[slice(*found[number])] for number in permutation(seed, "ict", row, len(found))]


def crop_bounds(n_words: int, ratios: Ratios, random: Random) -> tuple[int, int]:
    """First word and length of a run of `int(n_words * ratio)` words, start and ratio uniform.

    Args:
        n_words: Words of the text.
        ratios: The ratio is at least the first and below the second.
        random: uint64, at least 2 words.

    Source: independent cropping (Izacard et al. 2022, Contriever, "Building positive pairs"; `randomcrop` of its code).
    """
    low, high = ratios
    length = int(n_words * (low + (high - low) * uniform(random[0])))
    return pick(random[1], n_words - length + 1), length


def crop(words: Words, ratios: Ratios, random: Random) -> str:
    """The text of `crop_bounds`, as it is written; "" where it has no word."""
    return words.run(*crop_bounds(len(words), ratios, random))


def n_random(n_words: int, ratios: Ratios) -> int:
    """How many random words `noisy_crop` may use of a text."""
    return _CROP_WORDS + _NOISE_WORDS * int(n_words * ratios[1])


def noisy_crop(
    words: Words,
    ratios: Ratios,
    noise: Noise,
    random: Random,
    other_word: Callable[[np.uint64, np.uint64], str],
) -> str:
    """A crop in which each word is deleted, replaced, masked or kept, one fate each, by itself.

    Args:
        words: The text.
        ratios: See `crop_bounds`.
        noise: How likely each fate is.
        random: uint64, at least `n_random(len(words), ratios)` words.
        other_word: A word for a replaced one, from two random words; "" where there is none: then the word stays.

    Returns:
        The rest, with the marks and spaces between the words as written; a deleted word takes those behind it along.

    Source: the augmentations `deleteword`, `replaceword`, `maskword` of Contriever (its runs delete 10 %). There they
        are of tokens and a replacement is any token of the vocabulary; here they are of words, and a replacement is a
        word of the corpus, likelier the more often it occurs.
    """
    first, length = crop_bounds(len(words), ratios, random)
    pieces: list[str] = []
    for number in range(length):
        fate, *rest = random[_CROP_WORDS + _NOISE_WORDS * number :][:_NOISE_WORDS]
        start, end = words.spans[first + number]
        word, share = words.text[start:end], uniform(fate)
        behind = words.text[end : words.spans[first + number + 1][0]] if number + 1 < length else ""
        if share < noise.delete:
            continue
        if share < noise.delete + noise.replace:
            word = other_word(rest[0], rest[1]) or word
        elif share < noise.delete + noise.replace + noise.mask:
            word = noise.mask_text
        pieces.append(word + behind)
    return "".join(pieces).strip()
