"""Files of other tools: golden bytes, the way back, the tools' own loaders, and errors that name the line."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest

from gplfast.errors import ConfigError, DataError, ShapeError
from gplfast.interop import dpr, flag_embedding, formats, gpl, negminer, sentence_transformers, tevatron, trec
from gplfast.interop.examples import Example, Passage, collect, examples
from gplfast.labelled_settings import FORMATS
from gplfast.store.corpus import Corpus, Queries, load_corpus
from gplfast.store.margins import Margins
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


def test_every_format_has_a_writer():
    assert tuple(formats._WRITERS) == FORMATS


def test_negminers_lines_by_hand(tmp_path):
    found = mined()
    assert negminer.write_candidates(tmp_path / "a.jsonl", examples(found, matrix=True)) == 2
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    assert lines[1] == (
        '{"query": "q2", "docs": ["d2", "d3"], "doc_scores": [1.0, 0.0], "query_doc_cos": [1.0, 0.8], '
        '"query_doc_ce": [0.1, -7.0], "doc_doc_cos": [1.0, 0.8, 0.8, 1.0]}'
    )
    first = json.loads(lines[0])
    assert (first["docs"], first["doc_scores"]) == (["d1", "d0", "d4", "d2"], [2.0, 1.0, 0.0, 0.0])
    unit = found.vectors.docs[[1, 0, 4, 2]].astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    np.testing.assert_array_equal(
        np.array(first["doc_doc_cos"], np.float32).reshape(4, 4), (unit @ unit.T).round(9).astype(np.float32)
    )
    queries = dict(zip(found.ids, found.texts, strict=True))
    back = list(negminer.read_candidates(tmp_path / "a.jsonl", found.corpus, queries))

    for one, other in zip(back, examples(found, matrix=True), strict=True):
        assert one[:4] == other[:4]
        np.testing.assert_array_equal(one.matrix, other.matrix)
    assert negminer.write_candidates(tmp_path / "b.jsonl", examples(mined(teacher=False))) == 2
    assert list(json.loads((tmp_path / "b.jsonl").read_text().splitlines()[0])) == [
        "query",
        "docs",
        "doc_scores",
        "query_doc_cos",
    ]
    with pytest.raises(ConfigError, match="negminer's lines need cosines"):
        negminer.write_candidates(tmp_path / "c.jsonl", examples(mined(cosine=False)))
    assert not (tmp_path / "c.jsonl").exists()


def test_a_matrix_may_have_nan(tmp_path):
    found = mined()
    found.vectors.docs[3] = np.nan
    negminer.write_candidates(tmp_path / "a.jsonl", examples(found, matrix=True))
    assert json.loads((tmp_path / "a.jsonl").read_text().splitlines()[1])["doc_doc_cos"] == [1.0, None, None, None]
    assert np.isnan(list(negminer.read_candidates(tmp_path / "a.jsonl"))[1].matrix).sum() == 3


def test_negminers_negatives_by_hand(tmp_path):
    found = mined()
    kept, dropped = negminer.apply(negminer.Rule(dup_threshold=0.75), found)
    assert negminer.write_negatives(tmp_path / "n.jsonl", examples(kept, empty=True), dropped) == 1
    line = json.loads((tmp_path / "n.jsonl").read_text())
    assert line == {
        "query": "what is one?",
        "pos": ["Title one\tone", "zero"],
        "pos_cos_score": [0.70710677, 1.0],
        "pos_ce_score": [4.5, 3.0],
        "neg": ["four", 'two "2"'],
        "neg_cos_score": [-0.8944272, 0.0],
        "neg_ce_score": [2.25, -1.0],
        "dropped_dupes": 0,
        "dropped_too_close": 0,
        "dropped_too_high": 0,
    }
    assert dropped["dropped_dupes"].tolist() == [0, 1]  # d3 beside q2's positive d2: cosine 0.8
    again = next(negminer.read_negatives(tmp_path / "n.jsonl"))
    assert again.negatives[1] == Passage('two "2"', cosine=0.0, teacher=-1.0)
    assert [passage.grade for passage in again.passages] == [1, 1, 0, 0]


def by_definition(rule, grades, cosines, teacher):
    """negminer's export as its source reads, one query: what is kept and the three counters."""
    kept, dropped, n_negatives = [], [0, 0, 0], 0
    lowest = min(score for grade, score in zip(grades, teacher, strict=True) if grade > 0)
    for row, grade in enumerate(grades):
        if grade > 0:
            kept.append(row)
        elif any(cosines[row][before] > rule.dup_threshold for before in range(row)):
            dropped[0] += 1
        elif not lowest - teacher[row] > rule.pos_neg_threshold:
            dropped[1] += 1
        elif rule.pos_threshold is not None and not teacher[row] < rule.pos_threshold:
            dropped[2] += 1
        elif n_negatives < rule.negatives_count:
            kept.append(row)
            n_negatives += 1
    return kept, dropped


@pytest.mark.parametrize("seed", range(5))
def test_the_rule_is_negminers(seed):
    draw = np.random.default_rng(seed)
    corpus = load_corpus([f"text {i}" for i in range(40)])
    vectors = Vectors(np.zeros((30, 3), np.float32), draw.standard_normal((40, 3)).astype(np.float32))
    sizes = draw.integers(3, 20, 30)
    rows = np.concatenate([draw.permutation(40)[:size] for size in sizes]).astype(np.int64)
    grades = np.concatenate([np.arange(size) < draw.integers(1, 3) for size in sizes]).astype(np.int64)
    indptr = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    teacher = draw.standard_normal(len(rows)).astype(np.float32)
    names = [f"q{i}" for i in range(30)]
    found = Mined(corpus, names, names, indptr, rows, grades, None, teacher, vectors)
    rule = negminer.Rule(0.8, 0.05, 0.3 if seed % 2 else None, 4)
    kept, dropped = negminer.apply(rule, found)
    unit = vectors.docs / np.linalg.norm(vectors.docs.astype(np.float64), axis=1, keepdims=True)
    cosines, total = unit @ unit.T, np.zeros(3, int)
    for query in range(30):
        own = slice(indptr[query], indptr[query + 1])
        docs = rows[own]
        expected, counts = by_definition(
            rule, grades[own].tolist(), cosines[np.ix_(docs, docs)], teacher[own].astype(np.float64)
        )
        assert kept.docs[kept.indptr[query] : kept.indptr[query + 1]].tolist() == docs[expected].tolist()
        assert [int(values[query]) for values in dropped.values()] == counts
        total += counts
    assert (total[:2] > 0).all()
    assert (total[2] > 0) == (seed % 2 == 1)


def load(path):
    import datasets

    kind = "parquet" if path.suffix == ".parquet" else "json"
    cache = str(path.parent / "cache")
    return datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=cache)


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("scores", [True, False])
def test_datasets_reads_every_layout(tmp_path, suffix, scores):
    found = mined()
    rows = {}
    for layout in sentence_transformers.LAYOUTS:
        path = tmp_path / f"{layout}.{suffix}"
        n = 2 if layout == "n-tuple" else 0
        count = sentence_transformers.write(path, examples(found), layout, scores=scores, negatives=n)
        rows[layout] = list(load(path))
        assert len(rows[layout]) == count
    one, zero, two = "Title one\tone", "zero", 'two "2"'
    first = {"anchor": "what is one?", "positive": one, "negative": "four"}
    assert rows["triplet"][0] == first | ({"scores": [4.5, 2.25]} if scores else {})
    assert [(row["positive"], row["negative"]) for row in rows["triplet"]] == [
        *((one, "four"), (one, two), (zero, "four"), (zero, two)),
        (two, "Ärger three\nlines"),
    ]
    tuples = [
        {"anchor": "what is one?", "positive": text, "negative_1": "four", "negative_2": two} for text in (one, zero)
    ]
    given = [[4.5, 2.25, -1.0], [3.0, 2.25, -1.0]]
    assert rows["n-tuple"] == [
        row | ({"scores": values} if scores else {}) for row, values in zip(tuples, given, strict=True)
    ]
    pair = {"anchor": "what is one?", "document": "four"}
    assert rows["labeled-pair"][2] == pair | ({"score": 2.25} if scores else {"label": 0})
    values = {"scores": [0.1, -7.0]} if scores else {"labels": [1, 0]}
    assert rows["labeled-list"][1] == {"anchor": "größer", "documents": [two, "Ärger three\nlines"]} | values
    assert rows["margins"][0] == first | {"label": 2.25}


def test_datasets_come_back(tmp_path):
    found = mined()
    for suffix in ("parquet", "jsonl"):
        path = tmp_path / f"triplet.{suffix}"
        sentence_transformers.write(path, examples(found), "triplet")
        again = collect(sentence_transformers.read(path))
        assert again.texts == found.texts
        assert [again.corpus.text(row) for row in again.positives[0]] == ["Title one\tone", "zero"]
        assert again.positives.scores.tolist() == found.positives.scores.tolist()
        assert again.negatives.scores.tolist() == found.negatives.scores.tolist()
        sentence_transformers.write(path, examples(found), "labeled-list", scores=False)
        assert [len(e.positives) for e in sentence_transformers.read(path)] == [2, 1]
        sentence_transformers.write(path, examples(found), "labeled-pair")
        scores = [example.negatives[0].teacher for example in sentence_transformers.read(path)]
        assert scores == [4.5, 3.0, 2.25, -1.0, 0.1, -7.0]


def test_margins_are_the_rows_of_the_training(tmp_path):
    found = mined()
    rows = [np.array(values, np.int64) for values in ([1, 0, 0], [2, 1, 0], [3, 4, 2])]
    margins = Margins(*rows, np.array([0.1, 18.465141, -3e-7], np.float32))
    sentence_transformers.write_margins(tmp_path / "m.parquet", found.corpus, found.texts, margins)
    back = load(tmp_path / "m.parquet")
    assert back[1] == {"anchor": "what is one?", "positive": "Title one\tone", "negative": "four", "label": 18.465141}
    assert np.array(back["label"], np.float32).tobytes() == margins.margins.tobytes()
    read = list(sentence_transformers.read(tmp_path / "m.parquet"))
    assert np.array([example.margin for example in read], np.float32).tobytes() == margins.margins.tobytes()
    sentence_transformers.write(tmp_path / "again.jsonl", read, "margins")
    assert [row["label"] for row in load(tmp_path / "again.jsonl")] == list(back["label"])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("layout", "loss"),
    [
        ("triplet", "MultipleNegativesRankingLoss"),
        ("n-tuple", "MarginMSELoss"),
        ("margins", "MarginMSELoss"),
        ("labeled-pair", "CoSENTLoss"),
    ],
)
def test_sentence_transformers_trains_a_step(tmp_path, world, layout, loss):
    """Its trainer takes a dataset's columns by their place and names: what it does with ours is the test."""
    from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, losses
    from sentence_transformers.training_args import SentenceTransformerTrainingArguments

    path = tmp_path / "data.parquet"
    scored = layout != "triplet"
    found = mined() if layout != "labeled-pair" else mined(teacher=False)
    sentence_transformers.write(path, examples(found), layout, scores=scored, negatives=2 * (layout == "n-tuple"))
    student = SentenceTransformer(str(world.student), device="cpu")
    before = next(student.parameters()).detach().clone()
    options = {"max_steps": 1, "report_to": [], "save_strategy": "no", "use_cpu": True, "learning_rate": 0.1}
    arguments = SentenceTransformerTrainingArguments(str(tmp_path / "run"), per_device_train_batch_size=2, **options)
    trainer = SentenceTransformerTrainer(
        student, arguments, train_dataset=load(path), loss=getattr(losses, loss)(student)
    )
    outcome = trainer.train()
    assert outcome.global_step == 1
    assert np.isfinite(outcome.training_loss)
    assert not bool((next(student.parameters()) == before).all())


@pytest.mark.filterwarnings("ignore")
def test_a_cross_encoder_trains_a_step_from_labelled_lists(tmp_path, world):
    from sentence_transformers.cross_encoder import CrossEncoder, CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import LambdaLoss

    sentence_transformers.write(tmp_path / "data.parquet", examples(mined()), "labeled-list", scores=False)
    model = CrossEncoder(str(world.teacher), device="cpu")
    options = {"max_steps": 1, "report_to": [], "save_strategy": "no", "use_cpu": True}
    arguments = CrossEncoderTrainingArguments(str(tmp_path / "run"), per_device_train_batch_size=2, **options)
    data = load(tmp_path / "data.parquet")
    outcome = CrossEncoderTrainer(model, arguments, train_dataset=data, loss=LambdaLoss(model)).train()
    assert outcome.global_step == 1
    assert np.isfinite(outcome.training_loss)


def test_n_tuples_leave_out_who_has_fewer(tmp_path):
    path = tmp_path / "a.parquet"
    assert sentence_transformers.write(path, examples(mined()), "n-tuple", negatives=1) == 3
    with pytest.raises(ConfigError, match="n-tuple: negatives is 0 but every row has the same columns; give how many"):
        sentence_transformers.write(path, examples(mined()), "n-tuple")
    with pytest.raises(ConfigError, match="no query has a positive and a negative with 3 negatives; ask for fewer"):
        sentence_transformers.write(path, examples(mined()), "n-tuple", negatives=3)
    with pytest.raises(ConfigError, match="scores of query 'q1' are not known"):
        sentence_transformers.write(path, examples(mined(teacher=False, cosine=False)), "triplet")
    with pytest.raises(ConfigError, match=r"ends in '.csv' but must end in .parquet or .jsonl"):
        sentence_transformers.write(tmp_path / "a.csv", examples(mined()), "triplet")


def test_a_score_that_the_teacher_did_not_give_is_no_cosine(tmp_path):
    """NaN (`--label-nan drop`): one file has one scale, also where a query has no score at all."""
    found = mined()
    found.teacher[[2, 4, 5]] = np.nan  # d4 of q1, all of q2
    names = [name for name in FORMATS if name not in ("tevatron", "tevatron-legacy", "sentence-transformers-n-tuple")]
    formats.write(names, tmp_path, formats.Output(found, found))
    lines = (tmp_path / "trec" / "run.trec").read_text().splitlines()
    assert [line.split()[2:5] for line in lines] == [["d1", "1", "4.5"], ["d0", "2", "3.0"], ["d2", "3", "-1.0"]]
    (line,) = [json.loads(line) for line in (tmp_path / "flag-embedding.jsonl").read_text().splitlines()]
    assert (line["neg"], line["pos_scores"], line["neg_scores"]) == (['two "2"'], [4.5, 3.0], [-1.0])
    assert load(tmp_path / "sentence-transformers-margins.parquet")["label"] == [5.5, 4.0]
    assert load(tmp_path / "sentence-transformers-triplet.parquet")["scores"] == [[4.5, -1.0], [3.0, -1.0]]
    assert load(tmp_path / "sentence-transformers-labeled-pair.parquet")["score"] == [4.5, 3.0, -1.0]
    contexts = json.loads((tmp_path / "dpr.json").read_text())[0]["hard_negative_ctxs"]
    assert [context.get("score") for context in contexts] == [None, -1.0]
    found_lines = [json.loads(line) for line in (tmp_path / "negminer.jsonl").read_text().splitlines()]
    assert [line["query_doc_ce"] for line in found_lines] == [[4.5, 3.0, None, -1.0], [None, None]]
    back = list(negminer.read_candidates(tmp_path / "negminer.jsonl", found.corpus))
    assert [passage.score for example in back for passage in example.passages] == [4.5, 3.0, None, -1.0, None, None]


@pytest.mark.parametrize(
    ("counts", "width", "n_rows"), [([9, 2, 3, 5], 5, 2), ([1, 4, 4], 4, 2), ([7, 0, 2, 2], 2, 3), ([1, 6], 6, 1)]
)
def test_n_tuples_are_as_wide_as_half_the_queries_reach(tmp_path, caplog, counts, width, n_rows):
    found = many(counts)
    (path,) = formats.write(["sentence-transformers-n-tuple"], tmp_path, formats.Output(found, found))
    rows = load(path)
    assert len(rows) == n_rows
    assert len(rows[0]["scores"]) == width + 1
    some = [count for count in counts if count]
    cut = sum(max(count - width, 0) for count in some)
    assert f"tuples of {width} negatives leave out {cut} negatives of other queries and " in caplog.text
    assert f" {len(some) - n_rows} of {len(some)} queries" in caplog.text


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
