"""Rows of training data as sentence-transformers' trainer takes them: numbers in, texts looked up batch by batch."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gplfast import ranks
from gplfast.errors import DataError
from gplfast.loss_settings import ADORE, KL, LABELLED, MARGIN_MSE, MNRL
from gplfast.models import adore, losses
from gplfast.models.student import prompt

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from gplfast.config import TrainConfig

# A batch that is to hold no passage twice is filled from this many batches' worth of rows at most.
_LOOK_AHEAD_BATCHES = 16


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rows of training data; texts are looked up when a batch is made.

    Attributes:
        query_text: Text of a query row.
        passage_text: Text of a passage row.
        queries: int64 (n_rows,).
        positives: int64 (n_rows,).
        negatives: int64 (n_rows,) or (n_rows, n_negatives); None for GenQ.
        margins: float32 of the same shape, the teacher's; None for GenQ.
        query_groups: int64 (n_queries,), equal for queries of equal text; where a batch's passages are negatives.
        passage_groups: int64 (n_passages,), equal for passages of equal text; likewise.
        source_groups: int64 (n_queries,), the group of the passage that each query was cut from, which holds it word
            for word and so is no negative of it; None where queries come from their positives.
        guide: Directory of the bi-encoder that guides gist.
        documents: float32 (n_passages, dim), the passages' vectors that adore searches.
    """

    query_text: Callable[[int], str]
    passage_text: Callable[[int], str]
    queries: npt.NDArray[np.int64]
    positives: npt.NDArray[np.int64]
    negatives: npt.NDArray[np.int64] | None = None
    margins: npt.NDArray[np.float32] | None = None
    query_groups: npt.NDArray[np.int64] | None = None
    passage_groups: npt.NDArray[np.int64] | None = None
    source_groups: npt.NDArray[np.int64] | None = None
    guide: Path | None = None
    documents: npt.NDArray[np.float32] | None = None


def loss_name(config: TrainConfig, examples: Examples) -> str:
    """The loss of the settings; where they leave it open MarginMSE for rows with margins, else MNRL."""
    return config.chosen_loss(MNRL if examples.margins is None else MARGIN_MSE)


def dataset(examples: Examples, config: TrainConfig) -> Any:
    """Row numbers instead of texts, and labels where the loss reads some.

    For GenQ the rows of equal texts are one number, and queries are negative, because sentence-transformers' sampler
    keeps equal values of any column out of a batch.
    """
    from datasets import Dataset

    if examples.negatives is None:
        queries, passages = _groups(examples)
        if loss_name(config, examples) != ADORE:
            return Dataset.from_dict({"query": -queries - 1, "positive": passages})
        sources = _sources(examples)
        labels = passages if sources is None else np.column_stack([passages, sources])
        return Dataset.from_dict({"query": -queries - 1, "label": labels})
    negatives = examples.negatives.reshape(len(examples.negatives), -1)
    columns: dict[str, npt.NDArray[Any]] = {"query": examples.queries, "positive": examples.positives}
    columns |= {f"negative_{place}": column for place, column in enumerate(negatives.T)}
    name = loss_name(config, examples)
    if name in LABELLED and examples.margins is not None:
        columns["label"] = _labels(examples.margins, name)
    return Dataset.from_dict(columns)


def _labels(margins: npt.NDArray[np.float32], name: str) -> npt.NDArray[np.float32]:
    """What the loss learns: margins, or for KL scores up to a constant per row, which its softmax cannot see."""
    labels = margins.astype(np.float32)
    if name != KL:
        return labels
    wide = labels.reshape(len(labels), -1)
    return np.concatenate([np.zeros((len(wide), 1), np.float32), -wide], axis=1)


def collator(student: Any, examples: Examples) -> Any:
    """What makes a batch of tokens from row numbers."""
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

    class RowCollator(SentenceTransformerDataCollator):  # type: ignore[misc, unused-ignore]
        """Looks the texts of a batch up, then tokenizes as usual."""

        def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super().__call__([_texts(row, examples) for row in features])
            return batch

    n_negatives = 0 if examples.negatives is None else examples.negatives.reshape(len(examples.negatives), -1).shape[1]
    kinds = {"query": "query", "positive": "document"}
    kinds |= {f"negative_{place}": "document" for place in range(n_negatives)}
    prompts = {column: text for column, kind in kinds.items() if (text := prompt(student, kind))}
    return RowCollator(preprocess_fn=student.preprocess, prompts=prompts)


def _texts(row: dict[str, Any], examples: Examples) -> dict[str, Any]:
    query = int(row["query"])
    looked_up: dict[str, Any] = {"query": examples.query_text(query if query >= 0 else -query - 1)}
    for column, value in row.items():
        if column == "label":
            looked_up[column] = value
        elif column != "query":
            looked_up[column] = examples.passage_text(int(value))
    return looked_up


def loss(student: Any, config: TrainConfig, examples: Examples) -> Any:
    """The loss that the settings name, see `loss_name`."""
    name = loss_name(config, examples)
    if name == ADORE:
        return adore.loss(student, config, examples)
    return losses.build(name, student, config, guide=examples.guide)


def batch_sampler(examples: Examples, config: TrainConfig) -> Any:
    """Rows as they are, which is how the visits were drawn; for GenQ shuffled, no text twice in a batch.

    Where the batch's passages are negatives of each other, a row whose positive, or whose query's source, is another
    row's passage waits for a later batch. Of several processes each has its share of every batch.
    """
    if examples.negatives is None:
        known = examples.source_groups is not None and config.shares_batch(MNRL)
        return functools.partial(_shuffled_apart, examples) if known or ranks.world_size() > 1 else "no_duplicates"
    return functools.partial(_apart, examples, config) if config.shares_batch(MARGIN_MSE) else file_order


def batches(examples: Examples, config: TrainConfig) -> list[list[int]]:
    """The batches of rows with negatives, see `apart`; none where the batch's passages are no negatives.

    Of several processes the shares of each batch, one after the other.
    """
    if examples.negatives is None or not config.shares_batch(MARGIN_MSE):
        return []
    queries, positives = _groups(examples)
    negatives = examples.negatives.reshape(len(queries), -1)
    if examples.passage_groups is not None:
        negatives = examples.passage_groups[negatives]
    return list(_shares(apart(queries, positives, negatives, config.batch_size, _sources(examples)), config.batch_size))


def _shares(batches: Iterator[list[int]], batch_size: int) -> Iterator[list[int]]:
    """Each batch cut into equal parts, one for each process; among several a batch that is not full is left out.

    Raises:
        DataError: All are.
    """
    if ranks.world_size() == 1:
        yield from batches
        return
    share, largest = ranks.share(batch_size), 0
    for batch in batches:
        largest = max(largest, len(batch))
        if len(batch) == batch_size:
            yield from (batch[start : start + share] for start in range(0, batch_size, share))
    if largest < batch_size:
        raise DataError(
            f"cannot train: batch_size is {batch_size} but at most {largest} rows found whose passages can be in one "
            f"batch, and {ranks.world_size()} processes share full batches only; give a smaller batch_size, or use one "
            "process"
        )


def apart(
    queries: npt.NDArray[np.int64],
    positives: npt.NDArray[np.int64],
    negatives: npt.NDArray[np.int64],
    batch_size: int,
    sources: npt.NDArray[np.int64] | None = None,
) -> Iterator[list[int]]:
    """Batches of rows in file order in which no row's positive or source is another row's passage, no query twice.

    Such a passage would be taught as a negative of its own query. A row that does not fit waits for the next batch; a
    batch that the rows within reach cannot fill stays smaller, so every row comes once.

    Args:
        queries: int64 (n_rows,), equal for equal texts.
        positives: int64 (n_rows,), likewise.
        negatives: int64 (n_rows, n_negatives), likewise.
        batch_size: Rows of a batch at most.
        sources: int64 (n_rows,), likewise: what each row's query was cut from, where that is another passage.

    Yields:
        The rows of a batch.
    """
    of_query, of_passages = queries.tolist(), np.column_stack([positives, negatives]).tolist()
    # What must not be another row's passage.
    of_held = np.column_stack([positives] if sources is None else [positives, sources]).tolist()
    window: list[int] = []
    following = 0
    while window or following < len(of_query):
        stop = min(following + _LOOK_AHEAD_BATCHES * batch_size - len(window), len(of_query))
        window.extend(range(following, stop))
        following = stop
        batch: list[int] = []
        waiting: list[int] = []
        asked: set[int] = set()
        held: set[int] = set()
        seen: set[int] = set()
        for place, row in enumerate(window):
            if of_query[row] in asked or not (seen.isdisjoint(of_held[row]) and held.isdisjoint(of_passages[row])):
                waiting.append(row)
                continue
            batch.append(row)
            asked.add(of_query[row])
            held.update(of_held[row])
            seen.update(of_passages[row])
            if len(batch) == batch_size:
                waiting += window[place + 1 :]
                break
        window = waiting
        yield batch


def _apart(
    examples: Examples, config: TrainConfig, dataset: Any, batch_size: int, drop_last: bool, **options: Any
) -> Any:
    from sentence_transformers.base.sampler import DefaultBatchSampler

    made = batches(examples, config)

    class Apart(DefaultBatchSampler):  # type: ignore[misc, unused-ignore]
        def __iter__(self) -> Iterator[list[int]]:
            return iter(made)

        def __len__(self) -> int:
            return len(made)

    return Apart(dataset, batch_size=batch_size, drop_last=drop_last, **options)


def _shuffled_apart(examples: Examples, dataset: Any, batch_size: int, drop_last: bool, **options: Any) -> Any:
    """The batches of GenQ's rows, see `apart`, from rows that are shuffled anew in each epoch.

    As many as full batches would be, so that the trainer knows how many steps an epoch has; those that are left over
    come from the rows that fit nowhere, and are left out as the last incomplete batch is. Several processes leave out
    every batch that is not full; for those that are missing then rows are shuffled once more.
    """
    from sentence_transformers.base.sampler import DefaultBatchSampler

    (queries, positives), sources = _groups(examples), _sources(examples)
    none = np.empty((len(queries), 0), np.int64)

    def shuffled(seed: int, epoch: int, size: int) -> Iterator[list[int]]:
        order = np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(len(queries))
        given = None if sources is None else sources[order]
        for batch in _shares(apart(queries[order], positives[order], none, size, given), size):
            yield order[batch].tolist()

    class ShuffledApart(DefaultBatchSampler):  # type: ignore[misc, unused-ignore]
        def __iter__(self) -> Iterator[list[int]]:
            size = self.batch_size * ranks.world_size()
            turns = (shuffled(self.seed, self.epoch + (turn << 32), size) for turn in itertools.count())
            yield from itertools.islice(itertools.chain.from_iterable(turns), len(self))

    return ShuffledApart(dataset, batch_size=batch_size, drop_last=drop_last, **options)


def _sources(examples: Examples) -> npt.NDArray[np.int64] | None:
    return None if examples.source_groups is None else examples.source_groups[examples.queries]


def _groups(examples: Examples) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    queries = examples.queries if examples.query_groups is None else examples.query_groups[examples.queries]
    passages = examples.positives if examples.passage_groups is None else examples.passage_groups[examples.positives]
    return queries, passages


def file_order(dataset: Any, batch_size: int, drop_last: bool, **options: Any) -> Any:
    """Batch sampler of MarginMSE: rows as they are, which is how the visits were drawn."""
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last, **options)
