"""Scores of a teacher for pairs of texts, each different pair once in its life."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from gplfast.errors import ModelError
from gplfast.store.scores import ScoreStore

if TYPE_CHECKING:
    from pathlib import Path

    from gplfast.config import LabelConfig

# Pairs per call of the teacher and per shard of the score store: work that a kill loses, at most. What a call holds
# follows from the question alone, so a killed run batches, and thereby rounds, as an uninterrupted one does.
CALL_PAIRS = 4096
Progress = Callable[[int, int], None]
# Gives the store of a teacher's scores by what they depend on, see `teacher_identity`.
OpenStore = Callable[[str], ScoreStore]


class Teacher(Protocol):
    """What scores pairs (`gplfast.models.cross_encoder.CrossEncoder` is one)."""

    @property
    def fingerprint(self) -> str:
        """Of the weights, and of the precision where it is not float32."""

    def score(
        self,
        queries: Sequence[str],
        docs: Sequence[str],
        *,
        batch_size: int,
        activation: str,
        progress: Progress | None,
    ) -> npt.NDArray[np.float32]:
        """float32 (n_pairs,)."""

    def cut(self, texts: Sequence[str], max_tokens: int) -> list[str]:
        """Each text cut to at most this many tokens."""


class PairScorer:
    """Cuts texts, looks their scores up, and asks the teacher for those that are not known."""

    def __init__(
        self,
        open_store: OpenStore,
        open_teacher: Callable[[], Teacher],
        *,
        max_tokens: int,
        activation: str,
        keep_nan: bool = False,
        batch_size: int = 0,
    ) -> None:
        """The model is opened when it is first needed.

        Args:
            open_store: Opens the store for the teacher's fingerprint.
            open_teacher: Opens the model.
            max_tokens: Query and passage are each cut to this many tokens.
            activation: Of the teacher, see `LabelConfig`.
            keep_nan: Return NaN where the teacher gives NaN or infinity instead of raising, and remember it.
            batch_size: Pairs per batch at most; 0: as many as fit by tokens.
        """
        self._open_store, self._open_teacher = functools.cache(open_store), functools.cache(open_teacher)
        self._max_tokens, self._activation = max_tokens, activation
        self._keep_nan, self._batch_size = keep_nan, batch_size

    def score(
        self,
        queries: Sequence[str],
        passages: Sequence[str],
        query_of: npt.NDArray[np.int64],
        passage_of: npt.NDArray[np.int64],
        progress: Progress | None = None,
    ) -> npt.NDArray[np.float32]:
        """Scores of pairs.

        Args:
            queries: Different query texts.
            passages: Different passage texts.
            query_of: int64 (n_pairs,), the text of each pair's query.
            passage_of: int64 (n_pairs,), the text of each pair's passage.
            progress: Called with (pairs done, pairs that were not known).

        Returns:
            float32 (n_pairs,).

        Raises:
            ModelError: The teacher gave NaN or infinity, unless `keep_nan`.
        """
        if not len(query_of):
            return np.empty(0, np.float32)
        teacher = self._open_teacher()
        cut_queries = teacher.cut(queries, self._max_tokens)
        cut_passages = teacher.cut(passages, self._max_tokens)
        # Texts that became equal by cutting are one pair: asking twice would make batches depend on what is known.
        numbers: dict[tuple[str, str], int] = {}
        pair_of = np.array(
            [
                numbers.setdefault((cut_queries[query], cut_passages[passage]), len(numbers))
                for query, passage in zip(query_of, passage_of, strict=True)
            ]
        )
        scores: npt.NDArray[np.float32] = self._unique(teacher, list(numbers), progress)[pair_of]
        return scores

    def _unique(
        self, teacher: Teacher, pairs: list[tuple[str, str]], progress: Progress | None
    ) -> npt.NDArray[np.float32]:
        store = self._open_store(teacher.fingerprint)
        known = store.lookup([query for query, _ in pairs], [passage for _, passage in pairs])
        scores = known.scores.copy()
        self._refuse(pairs, np.flatnonzero(known.known), scores[known.known])
        missing = np.flatnonzero(~known.known)
        for start in range(0, len(missing), CALL_PAIRS):
            part = missing[start : start + CALL_PAIRS]
            queries, passages = [pairs[i][0] for i in part], [pairs[i][1] for i in part]

            def show(done: int, _: int, start: int = start) -> None:
                if progress is not None:
                    progress(start + done, len(missing))

            values = teacher.score(
                queries, passages, batch_size=self._batch_size, activation=self._activation, progress=show
            )
            self._refuse(pairs, part, values)
            # NaN is an answer too: asked for again after a kill, it would shift what each later call holds.
            scores[part] = np.where(np.isfinite(values), values, np.float32(np.nan))
            store.append(queries, passages, scores[part])
        return scores

    def _refuse(
        self, pairs: list[tuple[str, str]], rows: npt.NDArray[np.int64], values: npt.NDArray[np.float32]
    ) -> None:
        """Raise when a value of these rows of `pairs` is not finite, unless they are kept."""
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad) and not self._keep_nan:
            query, passage = pairs[rows[bad[0]]]
            raise ModelError(
                f"the teacher gave {values[bad[0]]} for query {query[:60]!r} and passage {passage[:60]!r} "
                f'({len(bad)} of {len(values)} pairs); use another teacher, or leave them out: nan = "drop"'
            )


def stores_of(directory: Path) -> OpenStore:
    """Opens each store of a directory once: two that are open at a time do not know what the other one adds."""
    return functools.cache(functools.partial(ScoreStore, directory))


def scorer_of(config: LabelConfig, open_teacher: Callable[[], Teacher], open_store: OpenStore) -> PairScorer:
    """The scorer that `label` uses with these settings: what one of them asked the other finds.

    Args:
        config: The teacher's settings.
        open_teacher: Opens the model; called when there is something to score.
        open_store: Opens the store of the scores, see `stores_of`.
    """
    return PairScorer(
        lambda teacher: open_store(teacher_identity(teacher, config.activation, config.relevance_label)),
        open_teacher,
        max_tokens=config.max_seq_length,
        activation=config.activation,
        keep_nan=config.nan == "drop",
        batch_size=config.batch_size,
    )


def by_rows(
    scorer: PairScorer,
    queries: Sequence[str],
    passages: Callable[[npt.NDArray[np.int64]], list[str]],
    progress: Progress | None = None,
) -> Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], npt.NDArray[np.float32]]:
    """A function from pairs of rows of queries and passages, both int64 (n,), to the teacher's scores, float32 (n,).

    Args:
        scorer: The teacher.
        queries: Texts of all queries.
        passages: Gives the texts of passage rows.
        progress: Called with (pairs done, pairs that were not known).
    """

    def score(query_rows: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        asked, query_of = np.unique(query_rows, return_inverse=True)
        found, passage_of = np.unique(rows, return_inverse=True)
        texts = [queries[row] for row in asked], passages(found)
        return scorer.score(*texts, query_of.astype(np.int64), passage_of.astype(np.int64), progress)

    return score


def teacher_identity(fingerprint: str, activation: str, relevance_label: str = "") -> str:
    """What a stored score depends on besides the two texts, which are stored as cut."""
    label = f" label={relevance_label}" if relevance_label else ""
    return f"{fingerprint} activation={activation}{label}"
