"""Parts of labelled mining by hand: negminer's configuration, joining, pieces of documents, candidates."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

import gplfast
from gplfast.config import LabelConfig
from gplfast.errors import ArtifactError, ConfigError
from gplfast.interop import negminer, negminer_config
from gplfast.labelled import Labelled, Sources
from gplfast.labelled_settings import LabelledConfig
from gplfast.mining.lists import Lists
from gplfast.stages import candidates
from gplfast.store.corpus import load_corpus
from gplfast.store.generated import GeneratedQueries
from gplfast.store.negatives import Negatives, RankedLists
from gplfast.store.shards import ShardSet


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("embedding: a\nce: b\n", "corpus, queries, qrels, out_dir missing"),
        (
            "embedding: a\nce: b\ncorpus: c\nqueries: q\nqrels: r\nout_dir: o\nkeep: 1\n",
            "keep is not a setting of negminer; there is corpus, queries, ",
        ),
    ],
)
def test_bad_configurations_of_negminer(tmp_path, text, message):
    (tmp_path / "n.yml").write_text(text)
    assert negminer_config.is_negminer(tmp_path / "n.yml")
    with pytest.raises(ConfigError, match=rf"n\.yml: {message}"):
        negminer_config.read_config(tmp_path / "n.yml")


def test_negminers_defaults(tmp_path):
    text = "embedding: a\nce: b\ncorpus: c\nqueries: q\nqrels: r\nout_dir: o\n"
    (tmp_path / "n.yml").write_text(text)
    found = negminer_config.read_config(tmp_path / "n.yml")
    assert found.labelled == {
        "encoder_tokens": 512,
        "teacher_tokens": 512,
        "keep": 8,
        "dup_threshold": 0.95,
        "pos_neg_threshold": 0.05,
    }
    assert found.run == {"mine": {"retrievers": ["a"], "negatives_per_query": 16}, "label": {"model": "b"}}
    assert negminer.Rule() == (0.95, 0.05, None, 8)


def test_joining_by_hand():
    """Judged ones in their order, then the first of each list, then the second of each; none twice."""
    judged = candidates.Judged(Lists(np.array([0, 2, 2, 3]), np.array([5, 1, 7])), np.array([1, 0, 2]))
    lists = {
        "a": RankedLists(np.array([0, 3, 3]), np.array([2, 1, 3])),
        "b": RankedLists(np.array([0, 3, 4]), np.array([4, 3, 2, 9])),
    }
    found = candidates.join(judged, Negatives(np.array([0, 2]), lists), 10)
    assert found.lists.indptr.tolist() == [0, 5, 5, 7]
    assert found.lists.rows.tolist() == [5, 1, 2, 4, 3, 7, 9]
    assert found.grades.tolist() == [1, 0, 0, 0, 0, 2, 0]


def test_joining_hard_and_promoted_positives_by_hand():
    """Other positives than the hard one go; the promoted follow it, before what is judged no positive."""
    judged = candidates.Judged(Lists(np.array([0, 3, 4, 5]), np.array([5, 6, 1, 7, 8])), np.array([1, 2, 0, 1, 3]))
    negatives = Negatives(
        np.array([0, 2]),
        {"a": RankedLists(np.array([0, 2, 3]), np.array([2, 4, 9]))},
        positives=np.array([6, -1]),
        promoted=RankedLists(np.array([0, 3, 4]), np.array([1, 3, 6, 0])),
    )
    found = candidates.join(judged, negatives, 10)
    assert found.lists.indptr.tolist() == [0, 5, 6, 8]
    assert found.lists.rows.tolist() == [6, 3, 1, 2, 4, 7, 0, 9]
    assert found.grades.tolist() == [2, 1, 0, 0, 0, 1, 1, 0]


def test_pieces_of_a_positive_are_positives(tmp_path):
    """Judgements name passages of the source; when these are split, all pieces are left out of the search."""
    long = " ".join(f"Sentence number {i} is here." for i in range(12))
    rows = [{"_id": "long", "text": long}, {"_id": "short", "text": "other words"}, {"_id": "empty", "text": ""}]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "queries.jsonl").write_text('{"_id": "q", "text": "sentence"}\n{"_id": "r", "text": "none"}\n')
    (tmp_path / "qrels").mkdir()
    text = "query-id\tcorpus-id\tscore\nq\tlong\t1\nq\tempty\t1\nr\tempty\t1\n"
    (tmp_path / "qrels" / "train.tsv").write_text(text)
    config = gplfast.pipeline.load_config(overrides={"input": {"split_words": 20}, "mine": {"retrievers": ["bm25"]}})
    pipeline = Labelled(Sources(tmp_path), tmp_path / "w", config, LabelledConfig())
    queries = pipeline.queries()
    n_pieces = len(load_corpus(tmp_path, split_words=20)) - 1
    assert (queries.ids, queries.positives[1].tolist()) == (["q"], list(range(n_pieces)))
    assert n_pieces > 1


def test_candidates_without_a_column_say_which(tmp_path):
    made = candidates.manifest({}, {}, LabelConfig())
    corpus, queries = load_corpus(["a", "b"]), GeneratedQueries(["q"], np.zeros(1, np.int64))
    for missing in ("lengths", "docs", "grades"):
        columns = {"lengths": [1], "docs": [[0]], "grades": [[1]]}
        del columns[missing]
        shards = ShardSet(tmp_path / missing, made)
        assert shards.missing(1) == [0]
        shards.write(0, pa.table(columns))
        shards.finish({})
        with pytest.raises(ArtifactError, match=rf"{missing} does not hold candidates \(.*{missing}.*; delete it"):
            candidates.load(corpus, queries, tmp_path / missing, made, None)
