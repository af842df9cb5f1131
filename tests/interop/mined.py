"""Candidates that the tests of files write."""

from __future__ import annotations

import numpy as np

from gplfast.store.corpus import load_corpus
from gplfast.store.mined import Mined, Vectors


def mined(*, teacher=True, cosine=True) -> Mined:
    """Two queries over five documents: q1 has two positives and two negatives (one judged 0), q2 one of each."""
    import pyarrow as pa

    ids, titles = ["d0", "d1", "d2", "d3", "d4"], ["", "Title", "", "Ärger", ""]
    texts = ["zero", "one\tone", 'two "2"', "three\nlines", "four"]
    corpus = load_corpus(pa.table({"_id": ids, "title": titles, "text": texts}))
    vectors = Vectors(
        np.array([[1, 0], [0, 2]], np.float32), np.array([[1, 0], [1, 1], [0, 1], [3, 4], [-1, 0.5]], np.float32)
    )
    rows = np.array([1, 0, 4, 2, 2, 3], np.int64)
    owners = np.array([0, 0, 0, 0, 1, 1])
    pairs = vectors.queries[owners], vectors.docs[rows]
    lengths = np.linalg.norm(pairs[0], axis=1) * np.linalg.norm(pairs[1], axis=1)
    return Mined(
        corpus,
        ["q1", "q2"],
        ["what is one?", "größer"],
        np.array([0, 4, 6], np.int64),
        rows,
        np.array([2, 1, 0, 0, 1, 0], np.int64),
        ((pairs[0] * pairs[1]).sum(1) / lengths).astype(np.float32) if cosine else None,
        np.array([4.5, 3, 2.25, -1, 0.1, -7], np.float32) if teacher else None,
        vectors if cosine else None,
    )


def load(path):
    import datasets

    kind = "parquet" if path.suffix == ".parquet" else "json"
    cache = str(path.parent / "cache")
    return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache)


def many(counts, *, seed=0):
    """Queries with one positive and so many negatives, scored at random."""
    draw = np.random.default_rng(seed)
    corpus = load_corpus([f"text {i}" for i in range(max(counts) + 1)])
    sizes = np.array(counts) + 1
    rows = np.concatenate([np.arange(size) for size in sizes])
    names = [f"q{i}" for i in range(len(counts))]
    indptr = np.concatenate([[0], np.cumsum(sizes)])
    scores = draw.standard_normal(len(rows)).astype(np.float32)
    return Mined(corpus, names, names, indptr, rows, (rows == 0).astype(np.int64), None, scores)
