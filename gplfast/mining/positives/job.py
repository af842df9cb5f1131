"""What every method is made from, and the form that it has: a passage's samples by number."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from gplfast.errors import DataError
from gplfast.mining.positives import cuts
from gplfast.mining.positives.text import Words, pick, sentences

if TYPE_CHECKING:
    import numpy.typing as npt

    from gplfast.mining.dense import Encoder
    from gplfast.mining.lists import Int64
    from gplfast.positive_settings import PositiveSettings
    from gplfast.store.corpus import Corpus, Queries

# The sample of a number and the row that it was cut from; None behind the last one.
Sample = tuple[str, int]
Sampler = Callable[[int], Sample | None]
# Of some passages, in order, what samples each.
Method = Callable[["Int64"], Iterable[Sampler]]

N_CUT = 2  # random words of a cut


@dataclasses.dataclass(frozen=True)
class Job:
    """A corpus and what is to be made of it.

    Attributes:
        corpus: The passages.
        config: The method and its settings.
        seed: Of every draw.
        quota: Queries per passage.
        n_extra: How many more samples of a passage may be drawn.
        open_encoder: Opens the bi-encoder of `salient_by`.
        given: Real queries without judgements.
    """

    corpus: Corpus
    config: PositiveSettings
    seed: int
    quota: int
    n_extra: int
    open_encoder: Callable[[], Encoder]
    given: Queries | None = None

    @property
    def ratios(self) -> cuts.Ratios:
        """How long a crop is."""
        return self.config.crop_min, self.config.crop_max

    def bodies(self, rows: Iterable[int]) -> list[str]:
        """What queries are cut from: the texts without their titles; the title where there is no text."""
        wanted = np.fromiter(rows, np.int64)
        pairs = zip(self.corpus.titles(wanted), self.corpus.bodies(wanted), strict=True)
        return [body if body.strip() else title for title, body in pairs]

    def cut(self, words: Words, random: npt.NDArray[np.uint64]) -> str:
        """A random crop or a random sentence of a text, as `cut` says, from `N_CUT` random words."""
        if self.config.cut == "crop":
            return cuts.crop(words, self.ratios, random)
        found = sentences(words.text)
        return words.text[slice(*found[pick(random[0], len(found))])]

    def need_others(self) -> None:
        """Check that there is another passage.

        Raises:
            DataError: There is one only.
        """
        if len(self.corpus) < 2:
            raise DataError(
                f"generate: method {self.config.method} pairs a passage with another one but the corpus has "
                f"{len(self.corpus)}; split it (input.split_words), or use another method, e.g. crop"
            )


def in_order(row: int, texts: Sequence[str]) -> Sampler:
    """Samples of a passage that are there already."""
    return lambda number: (texts[number], row) if number < len(texts) else None
