from __future__ import annotations

import math

import numpy as np
import pytest
import tiny

from gplfast.config import EvaluateConfig
from gplfast.errors import DataError
from gplfast.mining.bm25 import Ranking
from gplfast.stages import evaluate
from gplfast.store.corpus import Queries, load_corpus
from gplfast.store.manifest import freshness

QRELS = {"q1": {"a": 1, "b": 2}, "q2": {"c": 1}, "q3": {"d": 1}}


def data(corpus=None, qrels=None):
    corpus = corpus or load_corpus(["x", "y"])
    qrels = qrels or {"q1": {"0": 1}, "1": {"1": 1}}
    queries = Queries.from_lists([*qrels, "unjudged"], [f"text {name}" for name in [*qrels, "unjudged"]])
    return evaluate.judged(corpus, queries, qrels, "fingerprint")


def test_metrics_are_those_of_trec_eval_by_hand():
    run = {"q1": {"z": 3.0, "a": 2.0, "b": 1.0}, "q2": {"c": 0.5}, "unjudged": {"a": 1.0}}
    result = evaluate.measure(QRELS, run, list(QRELS))
    dcg = 1 / math.log2(3) + 2 / math.log2(4)
    ideal = 2 / math.log2(2) + 1 / math.log2(3)
    assert result.per_query["nDCG@10"].tolist() == pytest.approx([dcg / ideal, 1.0, 0.0])
    assert result.per_query["MRR@10"].tolist() == pytest.approx([0.5, 1.0, 0.0])
    assert result.per_query["Recall@100"].tolist() == [1.0, 1.0, 0.0]
    assert result.per_query["MAP"].tolist() == pytest.approx([(1 / 2 + 2 / 3) / 2, 1.0, 0.0])
    assert result.means["nDCG@10"] == pytest.approx(np.mean([dcg / ideal, 1.0, 0.0]))
    assert list(result.means) == ["nDCG@10", "MRR@10", "Recall@100", "MAP"]  # GPL's results.json said "precicion"


def test_a_system_that_finds_nothing_scores_nothing():
    assert evaluate.measure(QRELS, {"q1": {}}, list(QRELS)).means["MAP"] == 0.0


def test_the_document_with_the_querys_id_is_left_out():
    corpus = load_corpus(["x", "y"])
    qrels = {"q1": {"0": 1}, "1": {"0": 1}}
    excluded = evaluate.same_id(data(corpus, qrels), EvaluateConfig())
    assert [excluded.list(i).tolist() for i in range(2)] == [[], [1]]
    assert evaluate.same_id(data(corpus, qrels), EvaluateConfig(drop_same_id=False)) is None


def test_only_judged_queries_are_asked():
    found = data(qrels={"q1": {"0": 1}})
    assert found.ids == ["q1"]
    with pytest.raises(DataError, match="2 queries are judged but none of the 1 queries is one"):
        evaluate.judged(load_corpus(["x"]), Queries.from_lists(["a"], ["t"]), {"b": {"0": 1}, "c": {"0": 1}}, "f")


def test_queries_without_a_relevant_passage_are_left_out(caplog):
    qrels = {"q1": {"0": 0}, "q2": {"0": 0, "1": 1}}
    assert data(qrels=qrels).ids == ["q2"]
    assert "1 of 2 judged queries have no relevant passage and are left out" in caplog.text
    with pytest.raises(DataError, match="none of the 1 judged queries has a passage of grade 1 or more"):
        data(qrels={"q1": {"0": 0, "1": -1}})


def test_a_split_document_has_the_score_of_its_best_piece():
    corpus = load_corpus(["one two. three four. five six.", "seven eight."], split_words=2)
    found = data(corpus, {"q1": {"0": 1}})
    ids = np.array([[corpus.row("1#0"), corpus.row("0#2"), corpus.row("0#0"), -1]])
    ranking = Ranking(np.array([[0.9, 0.8, 0.7, -np.inf]], np.float32), ids)
    assert evaluate.to_run(found, ranking, 10) == {"q1": {"1": pytest.approx(0.9), "0": pytest.approx(0.8)}}
    assert evaluate.depth(found, EvaluateConfig()) == len(corpus)


def test_an_evaluation_is_kept_with_its_ranking_and_queries(tmp_path):
    calls = []

    def retrieve():
        calls.append(1)
        return Ranking(np.array([[2.0, 1.0], [2.0, 1.0]], np.float32), np.array([[0, 1], [0, 1]]))

    found, config = data(), EvaluateConfig()
    wanted = evaluate.manifest(found.fingerprint, "bi-encoder", {"student": "f"}, config)
    first = evaluate.evaluate(found, tmp_path, wanted, config, retrieve)
    again = evaluate.evaluate(found, tmp_path, wanted, config, retrieve)
    assert len(calls) == 1
    assert (
        first.means
        == again.means
        == pytest.approx({"nDCG@10": (1 + 1 / math.log2(3)) / 2, "MRR@10": 0.75, "Recall@100": 1, "MAP": 0.75})
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "manifest.json",
        "metrics.json",
        "queries.parquet",
        "run.parquet",
    ]
    other = evaluate.manifest(found.fingerprint, "bi-encoder", {"student": "g"}, config)
    assert freshness(tmp_path, other).reason == "models.student changed"


def test_bm25_and_dense_rankings_through_the_search(tmp_path):
    corpus = tiny.corpus(30)
    queries = Queries.from_lists(["q0"], [corpus.text(4)])
    found = evaluate.judged(corpus, queries, {"q0": {"4": 1}}, "fingerprint")
    config = EvaluateConfig(top_k=10)
    assert evaluate.bm25_ranking(found, config).ids[0, 0] == 4
    encoder = tiny.HashEncoder()
    dense = evaluate.dense_ranking(found, encoder, tmp_path, config, similarity="cosine")
    assert dense.ids.shape == (1, 10)
    assert dense.ids[0, 0] == 4


def results(difference):
    base = np.linspace(0.1, 0.6, len(difference))
    ids = [str(i) for i in range(len(difference))]
    systems = (base, base + difference)
    return [evaluate.Result({}, ids, {"nDCG@10": np.asarray(values)}) for values in systems]


def test_significance_is_paired():
    noise = np.random.default_rng(0).normal(0, 0.01, 40)
    better, equal = results(0.05 + noise), results(noise - noise.mean())
    for test in ("t-test", "permutation"):
        assert evaluate.significance(*better, test) < 0.001
        assert evaluate.significance(*equal, test) > 0.5
        assert evaluate.significance(*results(np.zeros(5)), test) == 1.0
        assert evaluate.significance(*better, test) == evaluate.significance(*better, test)
    from scipy.stats import ttest_rel

    expected = ttest_rel(better[1].per_query["nDCG@10"], better[0].per_query["nDCG@10"]).pvalue
    assert evaluate.significance(*better, "t-test") == pytest.approx(expected)
    names = evaluate.p_values({"zero-shot": better[0], "gpl": better[1]}, "t-test", 0)
    assert list(names) == ["gpl vs zero-shot"]


def test_systems_on_other_queries_cannot_be_compared():
    first, _ = results(np.zeros(4))
    second, _ = results(np.zeros(5))
    with pytest.raises(DataError, match="one system has 4 queries and the other 5"):
        evaluate.significance(first, second, "t-test")


def test_a_kill_while_an_evaluation_is_replaced_leaves_nothing_that_looks_finished(tmp_path, monkeypatch):
    found, config = data(), EvaluateConfig()
    ranking = Ranking(np.array([[2.0, 1.0], [2.0, 1.0]], np.float32), np.array([[0, 1], [0, 1]]))
    old, new = (evaluate.manifest(found.fingerprint, "bi-encoder", {"student": name}, config) for name in "fg")
    evaluate.evaluate(found, tmp_path, old, config, lambda: ranking)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(evaluate, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        evaluate.evaluate(found, tmp_path, new, config, lambda: ranking)
    assert freshness(tmp_path, old) == (False, "missing")
