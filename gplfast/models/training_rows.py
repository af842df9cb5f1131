"""Rows of training data as sentence-transformers' trainer takes them: numbers in, texts looked up batch by batch."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gplfast.models.student import normalizes, prompt

if TYPE_CHECKING:
    from collections.abc import Callable

    from gplfast.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rows of training data; texts are looked up when a batch is made.

    Attributes:
        query_text: Text of a query row.
        passage_text: Text of a passage row.
        queries: int64 (n_rows,).
        positives: int64 (n_rows,).
        negatives: int64 (n_rows,), MarginMSE only.
        margins: float32 (n_rows,), MarginMSE only.
        query_groups: int64 (n_queries,), equal for queries of equal text; GenQ only.
        passage_groups: int64 (n_passages,), equal for passages of equal text; GenQ only.
    """

    query_text: Callable[[int], str]
    passage_text: Callable[[int], str]
    queries: npt.NDArray[np.int64]
    positives: npt.NDArray[np.int64]
    negatives: npt.NDArray[np.int64] | None = None
    margins: npt.NDArray[np.float32] | None = None
    query_groups: npt.NDArray[np.int64] | None = None
    passage_groups: npt.NDArray[np.int64] | None = None


def dataset(examples: Examples) -> Any:
    """Row numbers instead of texts.

    For GenQ the rows of equal texts are one number, and queries are negative, because sentence-transformers' sampler
    keeps equal values of any column out of a batch.
    """
    from datasets import Dataset

    if examples.margins is not None:
        columns = {"query": examples.queries, "positive": examples.positives, "negative": examples.negatives}
        return Dataset.from_dict({**columns, "label": examples.margins.astype(np.float32)})
    queries = examples.queries if examples.query_groups is None else examples.query_groups[examples.queries]
    passages = examples.positives if examples.passage_groups is None else examples.passage_groups[examples.positives]
    return Dataset.from_dict({"query": -queries - 1, "positive": passages})


def collator(student: Any, examples: Examples) -> Any:
    """What makes a batch of tokens from row numbers."""
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

    class RowCollator(SentenceTransformerDataCollator):  # type: ignore[misc, unused-ignore]
        """Looks the texts of a batch up, then tokenizes as usual."""

        def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super().__call__([_texts(row, examples) for row in features])
            return batch

    kinds = {"query": "query", "positive": "document", "negative": "document"}
    prompts = {column: text for column, kind in kinds.items() if (text := prompt(student, kind))}
    return RowCollator(preprocess_fn=student.preprocess, prompts=prompts)


def _texts(row: dict[str, Any], examples: Examples) -> dict[str, Any]:
    query = int(row["query"])
    looked_up: dict[str, Any] = {"query": examples.query_text(query if query >= 0 else -query - 1)}
    looked_up["positive"] = examples.passage_text(int(row["positive"]))
    if "negative" in row:
        looked_up["negative"] = examples.passage_text(int(row["negative"]))
        looked_up["label"] = float(row["label"])
    return looked_up


def loss(student: Any, config: TrainConfig, examples: Examples) -> Any:
    """MarginMSE where the examples have margins, else MultipleNegativesRanking."""
    from sentence_transformers.sentence_transformer.losses import MarginMSELoss, MultipleNegativesRankingLoss
    from sentence_transformers.util import cos_sim, dot_score, pairwise_cos_sim, pairwise_dot_score

    cosine = config.similarity == "cosine"
    if examples.margins is not None:
        return MarginMSELoss(student, similarity_fct=pairwise_cos_sim if cosine else pairwise_dot_score)
    scale = config.scale if cosine or normalizes(student) else 1.0
    return MultipleNegativesRankingLoss(student, scale=scale, similarity_fct=cos_sim if cosine else dot_score)


def file_order(dataset: Any, batch_size: int, drop_last: bool, **options: Any) -> Any:
    """Batch sampler of MarginMSE: rows as they are, which is how the visits were drawn."""
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last, **options)
