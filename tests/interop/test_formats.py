"""Files of other tools: golden bytes, the way back, the tools' own loaders, and errors that name the line."""

from __future__ import annotations

import json

import numpy as np
import pytest
from interop.mined import load, many, mined

from gplfast.errors import ConfigError
from gplfast.interop import formats, negminer, sentence_transformers
from gplfast.interop.examples import Passage, collect, examples
from gplfast.labelled_settings import FORMATS
from gplfast.store.corpus import load_corpus
from gplfast.store.margins import Margins
from gplfast.store.mined import Mined, Vectors


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
