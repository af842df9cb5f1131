"""Files of FlagEmbedding, Tevatron, DPR, TREC and GPL: golden bytes, their own loaders, errors that name the line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
from interop.mined import load, many, mined

from gplfast.errors import ConfigError, DataError, ShapeError
from gplfast.interop import dpr, flag_embedding, formats, gpl, negminer, sentence_transformers, tevatron, trec
from gplfast.interop.examples import Example, Passage, collect, examples
from gplfast.store.corpus import Corpus, Queries, load_corpus
from gplfast.store.mined import Mined


def test_flag_embedding_by_hand(tmp_path):
    found = mined()
    assert flag_embedding.write(tmp_path / "f.jsonl", examples(found), prompt="Find it") == 2
    lines = [json.loads(line) for line in (tmp_path / "f.jsonl").read_text().splitlines()]
    assert lines[1] == {
        "query": "größer",
        "pos": ['two "2"'],
        "neg": ["Ärger three\nlines"],
        "pos_scores": [0.1],
        "neg_scores": [-7.0],
        "prompt": "Find it",
    }
    assert load(tmp_path / "f.jsonl").column_names == ["query", "pos", "neg", "pos_scores", "neg_scores", "prompt"]
    again = collect(flag_embedding.read(tmp_path / "f.jsonl"))
    assert again.positives.scores.tolist() == found.positives.scores.tolist()
    assert flag_embedding.write(tmp_path / "g.jsonl", examples(mined(teacher=False, cosine=False))) == 2
    assert list(json.loads((tmp_path / "g.jsonl").read_text().splitlines()[0])) == ["query", "pos", "neg"]


@pytest.mark.filterwarnings("ignore")
def test_flag_embeddings_own_dataset_reads_it(tmp_path, monkeypatch):
    """It needs packages that are not among ours (peft): this runs where it is installed."""
    module = pytest.importorskip("FlagEmbedding.abc.finetune.embedder.AbsDataset", exc_type=ImportError)
    flag_embedding.write(tmp_path / "f.jsonl", examples(mined()))
    monkeypatch.setattr(module.dist, "get_rank", lambda: 1)
    arguments = SimpleNamespace(
        shuffle_ratio=0.0,
        train_data=[str(tmp_path / "f.jsonl")],
        cache_path=str(tmp_path / "cache"),
        max_example_num_per_dataset=100,
        knowledge_distillation=True,
        train_group_size=2,
        query_instruction_for_retrieval=None,
        passage_instruction_for_retrieval=None,
    )
    data = module.AbsEmbedderTrainDataset(arguments, None)
    assert len(data) == 2
    assert data[1] == ("größer", ['two "2"', "Ärger three\nlines"], [pytest.approx(0.1), -7.0])


def test_tevatron_by_hand(tmp_path):
    found = mined()
    tevatron.write_corpus(tmp_path / "corpus.jsonl", found.corpus)
    tevatron.write(tmp_path / "train.jsonl", examples(found))
    tevatron.write_legacy(tmp_path / "old.jsonl", examples(found))
    assert (tmp_path / "corpus.jsonl").read_text().splitlines()[1] == '{"docid": "d1", "text": "Title one\\tone"}'
    assert (tmp_path / "train.jsonl").read_text().splitlines()[0] == (
        '{"query_id": "q1", "query_text": "what is one?", "positive_document_ids": ["d1", "d0"], '
        '"negative_document_ids": ["d4", "d2"]}'
    )
    assert (tmp_path / "old.jsonl").read_text().splitlines()[1] == (
        '{"query_id": "q2", "query": "größer", "positive_passages": [{"docid": "d2", "title": "", '
        '"text": "two \\"2\\""}], '
        '"negative_passages": [{"docid": "d3", "title": "Ärger", "text": "three\\nlines"}]}'
    )
    assert load(tmp_path / "corpus.jsonl")["docid"] == found.corpus.ids
    texts = tevatron.read_corpus(tmp_path / "corpus.jsonl")
    again = list(tevatron.read(tmp_path / "train.jsonl", texts))
    assert [passage.full for passage in again[0].passages] == [p.full for p in next(examples(found)).passages]
    old = collect(tevatron.read(tmp_path / "old.jsonl"))
    assert old.ids == found.ids
    assert [old.corpus.text(row) for row in old.docs] == [found.corpus.text(row) for row in found.docs]


def test_tevatrons_own_code_reads_the_older_format(tmp_path):
    """tevatron 0.1 of PyPI reads the older format only; the new one is read by its code on GitHub alone."""
    preprocessor = pytest.importorskip("tevatron.datasets.preprocessor", exc_type=ImportError)
    tevatron.write_legacy(tmp_path / "old.jsonl", examples(mined()))
    words = SimpleNamespace(encode=lambda text, **_: text)
    rows = [preprocessor.TrainPreProcessor(words)(row) for row in load(tmp_path / "old.jsonl")]
    assert rows[1] == {"query": "größer", "positives": [' two "2"'], "negatives": ["Ärger three\nlines"]}
    assert [len(row["positives"]) for row in rows] == [2, 1]


def test_dpr_by_hand(tmp_path):
    found = mined()
    assert dpr.write(tmp_path / "dpr.json", examples(found)) == 2
    items = json.loads((tmp_path / "dpr.json").read_text())
    assert items[1] == {
        "question": "größer",
        "answers": [],
        "positive_ctxs": [{"title": "", "text": 'two "2"', "passage_id": "d2", "score": 0.1}],
        "negative_ctxs": [],
        "hard_negative_ctxs": [{"title": "Ärger", "text": "three\nlines", "passage_id": "d3", "score": -7.0}],
    }
    dpr.write(tmp_path / "dpr.jsonl", examples(found))
    for name in ("dpr.json", "dpr.jsonl"):
        again = collect(dpr.read(tmp_path / name))
        assert again.corpus.table.to_pylist() == found.corpus.table.take([1, 0, 4, 2, 3]).to_pylist()
        assert again.scores.tolist() == found.scores.tolist()
    item = {"question": "q", "positive_ctxs": [{"title": None, "text": "a"}]}
    (tmp_path / "null.json").write_text(json.dumps([item]))
    assert next(dpr.read(tmp_path / "null.json")).positives == [Passage("a", grade=1)]
    dpr.write(tmp_path / "none.json", [])
    assert json.loads((tmp_path / "none.json").read_text()) == []


def test_trec_files_are_read_by_ir_measures_and_trec_eval(tmp_path):
    import ir_measures
    import pytrec_eval

    found = mined()
    trec.write_run(tmp_path / "run.trec", examples(found), tag="mine")
    trec.write_qrels(tmp_path / "qrels.trec", examples(found))
    lines = (tmp_path / "run.trec").read_text().splitlines()
    assert lines[:2] == ["q1 Q0 d1 1 4.5 mine", "q1 Q0 d0 2 3.0 mine"]
    run = list(ir_measures.read_trec_run(str(tmp_path / "run.trec")))
    assert [(item.query_id, item.doc_id, item.score) for item in run][-1] == ("q2", "d3", -7.0)
    qrels = list(ir_measures.read_trec_qrels(str(tmp_path / "qrels.trec")))
    assert [(item.query_id, item.doc_id, item.relevance) for item in qrels] == [
        *(("q1", "d1", 2), ("q1", "d0", 1)),
        ("q2", "d2", 1),
    ]
    with (tmp_path / "run.trec").open() as file:
        parsed = pytrec_eval.parse_run(file)
    assert parsed == trec.read_run(tmp_path / "run.trec")
    assert ir_measures.calc_aggregate([ir_measures.nDCG @ 10], qrels, run)[ir_measures.nDCG @ 10] == 1.0
    back = list(trec.read(tmp_path / "run.trec", tmp_path / "qrels.trec"))
    assert [[p.id for p in e.positives] for e in back] == [["d1", "d0"], ["d2"]]


def test_beir_reads_the_run(tmp_path):
    util = pytest.importorskip("beir.util", exc_type=ImportError)
    trec.write_run(tmp_path / "run.trec", examples(mined()))
    assert util.load_runfile(str(tmp_path / "run.trec")) == trec.read_run(tmp_path / "run.trec")


def test_what_a_run_cannot_hold(tmp_path):
    passage = Passage("text", id="a b", teacher=1.0)
    with pytest.raises(DataError, match="id 'a b' is empty or has a space"):
        trec.write_run(tmp_path / "r", [Example("q", [], [passage], "q")])
    with pytest.raises(ConfigError, match="a TREC run needs scores"):
        trec.write_run(tmp_path / "r", examples(mined(teacher=False, cosine=False)))
    with pytest.raises(ConfigError, match="tag is 'a b' but must be one word"):
        trec.write_run(tmp_path / "r", examples(mined()), tag="a b")
    assert list(tmp_path.iterdir()) == []


def test_gpls_files_from_candidates(tmp_path):
    found = mined()
    output = formats.Output(found, found)
    files = formats.write(["gpl"], tmp_path, output)
    assert [str(path.relative_to(tmp_path)) for path in files] == [
        "gpl/corpus.jsonl",
        "gpl/qgen-queries.jsonl",
        "gpl/qgen-qrels/train.tsv",
        "gpl/hard-negatives.jsonl",
        "gpl/gpl-training-data.tsv",
    ]
    assert sorted(files[4].read_text().splitlines()) == [
        *("q1\td0\td2\t4.0", "q1\td0\td4\t0.75", "q1\td1\td2\t5.5", "q1\td1\td4\t2.25"),
        "q2\td2\td3\t7.1",
    ]
    hard = gpl.read_hard_negatives(files[3], load_corpus(files[0]), gpl.read_queries(files[1]))
    assert [hard.positives[i].tolist() for i in range(2)] == [[1, 0], [2]]
    assert hard.negatives.lists["mined"][0].tolist() == [4, 2]


def test_gpls_rows_are_mixed(tmp_path):
    """GPL reads the file in its order, 32 rows a step: by queries a step would see one query only."""
    found = many([64] * 16)
    orders = []
    for seed in (0, 0, 1):
        path = formats.write(["gpl"], tmp_path, formats.Output(found, found, seed=seed))[4]
        orders.append([line.split("\t")[0] for line in path.read_text().splitlines()])
    assert min(len(set(orders[0][start : start + 32])) for start in range(0, 1024, 32)) > 8
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(name for name in found.ids for _ in range(64))


READERS = {
    "candidates": lambda path: list(negminer.read_candidates(path, mined().corpus, {"q1": "one"})),
    "negatives": lambda path: list(negminer.read_negatives(path)),
    "flag": lambda path: list(flag_embedding.read(path)),
    "tevatron": lambda path: list(tevatron.read(path, {"d1": "one"})),
    "docs": tevatron.read_corpus,
    "dpr": lambda path: list(dpr.read(path)),
    "st": lambda path: list(sentence_transformers.read(path)),
    "run": trec.read_run,
}


@pytest.mark.parametrize(
    ("kind", "line", "message"),
    [
        ("candidates", '{"query": "q1"}', "'docs' is missing, should be a list of strings; this is not a file of neg"),
        ("candidates", '{"query": "q1", "docs": ["d1"], "doc_scores": []}', "'doc_scores' has 0 numbers but 1 are"),
        (
            "candidates",
            '{"query": "q1", "docs": ["d9"], "doc_scores": [1], "query_doc_cos": [1]}',
            "no document has the id 'd9'",
        ),
        (
            "candidates",
            '{"query": "q1", "docs": ["d1"], "doc_scores": [0.5], "query_doc_cos": [1]}',
            "'doc_scores' has 0.5, should be a whole number",
        ),
        (
            "candidates",
            '{"query": "q7", "docs": [], "doc_scores": [], "query_doc_cos": []}',
            "no query has the id 'q7'",
        ),
        (
            "candidates",
            '{"query": "q1", "docs": ["d1"], "doc_scores": [1], "query_doc_cos": [1], "doc_doc_cos": [1, 2]}',
            "'doc_doc_cos' has 2 numbers but 1 are",
        ),
        ("negatives", '{"query": 1, "pos": [], "neg": []}', "'query' is a number, should be a string"),
        ("flag", '{"query": "q", "pos": "text", "neg": []}', "'pos' is a string, should be a list of strings"),
        (
            "flag",
            '{"query": "q", "pos": ["a"], "neg": [], "pos_scores": ["x"]}',
            "'pos_scores' is a list, should be a list of numbers",
        ),
        ("tevatron", '{"query_id": "q", "positive_document_ids": ["x"]}', "no document has the id 'x'"),
        (
            "tevatron",
            '{"query_id": "q", "positive_passages": [{"docid": "a"}]}',
            r"positive_passages\[0\]: 'text' is missing",
        ),
        ("docs", '{"docid": "a", "text": 3}', "'text' is a number"),
        ("dpr", '{"question": "q"}', "'positive_ctxs' is missing, should be a list of objects; this is not a DPR file"),
        ("st", '{"anchor": "a", "negative": "n"}', "'positive' is missing"),
        ("st", '{"anchor": "a", "document": "d", "label": "x"}', "'label' is a list, should be a list of numbers"),
        ("run", "q1 Q0 d1 1 nan tag", "score is 'nan', should be a finite number"),
        ("run", "q1 Q0 d1 1", "has 4 columns but 6 are expected"),
    ],
)
def test_bad_files_name_file_and_line(tmp_path, kind, line, message):
    path = tmp_path / "bad.jsonl"
    path.write_text(f"\n{line}\n" if kind != "run" else f"q0 Q0 d1 1 2.5 tag\n{line}\n")
    with pytest.raises(DataError, match=rf"bad\.jsonl: line 2: .*{message}"):
        READERS[kind](path)


def test_a_broken_list_of_dpr(tmp_path):
    for content, message in (
        ("[1]", "is not a list of objects"),
        ("{", "broken JSON"),
        ('[{"question": 1}]', "item 0: "),
    ):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(DataError, match=rf"a\.json: {message}"):
            list(dpr.read(tmp_path / "a.json"))
    with pytest.raises(DataError, match="cannot be opened"):
        list(dpr.read(tmp_path / "none.json"))
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        list(sentence_transformers.read(tmp_path / "none.parquet"))


def test_collecting_keeps_ids_apart():
    same = [Example("q", [Passage("one", id="a")], []), Example("q", [Passage("two", id="a")], [])]
    with pytest.raises(DataError, match="document 'a' has two texts"):
        collect(same)
    with pytest.raises(DataError, match="no examples"):
        collect([])
    with pytest.raises(DataError, match="none of 1 queries has a passage; give at least one"):
        collect([Example("q", [], []), Example("q", [], [])])
    joined = collect(
        [Example("q", [], [Passage("x", teacher=1.0)]), Example("q", [Passage("x", grade=1, teacher=2.0)], [])]
    )
    assert (joined.grades.tolist(), joined.scores.tolist()) == ([1], [2.0])


def test_candidates_must_fit_together():
    found = mined()
    parts = (found.corpus, found.ids, found.texts, found.indptr, found.docs)
    with pytest.raises(ShapeError, match="a negative before a positive"):
        Mined(*parts, np.array([0, 1, 0, 0, 1, 0], np.int64))
    with pytest.raises(ShapeError, match=r"teacher has shape \(2,\)"):
        Mined(*parts, found.grades, None, np.zeros(2, np.float32))
    with pytest.raises(ShapeError, match="2 texts but 1 ids"):
        Mined(found.corpus, ["q1"], found.texts, found.indptr, found.docs, found.grades)
    assert isinstance(found.corpus, Corpus)
    assert len(Queries.from_lists(found.ids, found.texts)) == len(found)
