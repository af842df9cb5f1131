"""Files of GPL and BEIR: the same bytes back, and errors that name the line."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gplfast.errors import DataError, ShapeError
from gplfast.interop import gpl
from gplfast.store.corpus import Queries, load_corpus, load_queries
from gplfast.store.negatives import RankedLists
from gplfast.store.qrels import load_qrels

GOLDEN = Path(__file__).parents[3] / "shared" / "data" / "gpl_sample_fiqa"
needs_golden = pytest.mark.skipif(not GOLDEN.is_dir(), reason=f"golden files of GPL are not at {GOLDEN}")


@pytest.fixture
def small():
    corpus = load_corpus(["first", "second", "thïrd"])
    return corpus, Queries.from_lists(["genQ1", "genQ2"], ["what is é", 'a "quoted" one'])


@needs_golden
def test_golden_files_come_back_byte_for_byte(tmp_path):
    corpus = load_corpus(GOLDEN)
    queries = gpl.read_queries(GOLDEN / gpl.QUERIES_FILE)
    gpl.write_queries(tmp_path / gpl.QUERIES_FILE, queries)
    gpl.write_qrels(tmp_path / gpl.QRELS_FILE, gpl.read_qrels(GOLDEN / gpl.QRELS_FILE, corpus, queries))
    hard = gpl.read_hard_negatives(GOLDEN / gpl.HARD_NEGATIVES_FILE, corpus, queries)
    gpl.write_hard_negatives(tmp_path / gpl.HARD_NEGATIVES_FILE, hard, corpus, queries)
    data = gpl.read_training_data(GOLDEN / gpl.TRAINING_DATA_FILE, corpus, queries)
    gpl.write_training_data(tmp_path / gpl.TRAINING_DATA_FILE, data, corpus, queries)
    for name in (gpl.QUERIES_FILE, gpl.QRELS_FILE, gpl.HARD_NEGATIVES_FILE, gpl.TRAINING_DATA_FILE):
        assert (tmp_path / name).read_bytes() == (GOLDEN / name).read_bytes(), name


@needs_golden
def test_golden_content_as_rows():
    corpus = load_corpus(GOLDEN)
    queries = gpl.read_queries(GOLDEN / gpl.QUERIES_FILE)
    hard = gpl.read_hard_negatives(GOLDEN / gpl.HARD_NEGATIVES_FILE, corpus, queries)
    assert hard.negatives.retrievers == ["msmarco-distilbert-base-v3", "msmarco-MiniLM-L-6-v3"]
    assert len(hard.negatives) == 30
    assert [corpus.ids[doc] for doc in hard.positives[0]] == ["460230"]
    assert corpus.ids[hard.negatives.lists["msmarco-MiniLM-L-6-v3"][0][1]] == "316535"
    data = gpl.read_training_data(GOLDEN / gpl.TRAINING_DATA_FILE, corpus, queries)
    assert data.margins[0] == np.float32(18.465141)
    assert queries.ids[data.queries[0]] == "genQ5"
    rows, positives = gpl.qrels_to_rows(gpl.read_qrels(GOLDEN / gpl.QRELS_FILE), corpus, queries)
    assert gpl.rows_to_qrels(rows, positives, corpus, queries) == gpl.read_qrels(GOLDEN / gpl.QRELS_FILE)


def test_formats_written_by_hand(tmp_path, small):
    corpus, queries = small
    gpl.write_queries(tmp_path / "q.jsonl", queries)
    assert (tmp_path / "q.jsonl").read_bytes() == (
        b'{"_id": "genQ1", "text": "what is \\u00e9", "metadata": {}}\n'
        b'{"_id": "genQ2", "text": "a \\"quoted\\" one", "metadata": {}}\n'
    )
    gpl.write_qrels(tmp_path / "train.tsv", {"genQ1": {"0": 1}, 'ge"Q2': {"2": 2}})
    assert (tmp_path / "train.tsv").read_bytes() == (b'query-id\tcorpus-id\tscore\r\ngenQ1\t0\t1\r\n"ge""Q2"\t2\t2\r\n')
    assert gpl.read_qrels(tmp_path / "train.tsv") == {"genQ1": {"0": 1}, 'ge"Q2': {"2": 2}}
    (tmp_path / "h.jsonl").write_text('{"qid": "genQ2", "pos": ["2"], "neg": {"bm25": ["0", "1"], "x": []}}\n')
    hard = gpl.read_hard_negatives(tmp_path / "h.jsonl", corpus, queries)
    gpl.write_hard_negatives(tmp_path / "h2.jsonl", hard, corpus, queries)
    assert (tmp_path / "h2.jsonl").read_bytes() == (tmp_path / "h.jsonl").read_bytes()


def test_margins_with_few_and_with_all_digits(tmp_path, small):
    corpus, queries = small
    one = np.array([1], np.int64)
    data = gpl.TrainingData(one, one, np.array([2], np.int64), np.array([18.465141], np.float32))
    gpl.write_training_data(tmp_path / "a.tsv", data, corpus, queries)
    gpl.write_training_data(tmp_path / "b.tsv", data, corpus, queries, digits="float64")
    assert (tmp_path / "a.tsv").read_bytes() == b"genQ2\t1\t2\t18.465141\n"
    assert (tmp_path / "b.tsv").read_bytes() == b"genQ2\t1\t2\t18.46514129638672\n"
    for name in ("a.tsv", "b.tsv"):
        assert gpl.read_training_data(tmp_path / name, corpus, queries).margins == data.margins


@settings(max_examples=40)
@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_margins_survive_a_round_trip(tmp_path_factory, margins):
    path = tmp_path_factory.mktemp("margins") / "data.tsv"
    corpus, queries = load_corpus(["a", "b"]), Queries.from_lists(["q"], ["t"])
    zeros = np.zeros(len(margins), np.int64)
    data = gpl.TrainingData(zeros, zeros, zeros + 1, np.array(margins, np.float32))
    gpl.write_training_data(path, data, corpus, queries)
    back = gpl.read_training_data(path, corpus, queries).margins
    assert back.tobytes() == data.margins.tobytes()


def test_beir_folder_reads_back(tmp_path, small):
    corpus, queries = small
    gpl.write_beir(tmp_path / "c", corpus, queries, {"test": {"genQ1": {"0": 1, "1": 0}}})
    again = load_corpus(tmp_path / "c")
    assert again.fingerprint == corpus.fingerprint
    assert load_queries(tmp_path / "c").fingerprint == queries.fingerprint
    assert load_qrels(tmp_path / "c", "test", again, queries) == {"genQ1": {"0": 1, "1": 0}}
    first = (tmp_path / "c" / "corpus.jsonl").read_text().splitlines()[0]
    assert first == '{"_id": "0", "title": "", "text": "first", "metadata": {}}'


STRINGS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=9)


@settings(max_examples=40)
@given(st.lists(st.tuples(STRINGS, STRINGS, STRINGS), min_size=1, max_size=5, unique_by=lambda row: row[0]))
def test_any_text_and_any_id_survive_beir(tmp_path_factory, rows):
    folder = tmp_path_factory.mktemp("beir")
    ids, titles, texts = map(list, zip(*rows, strict=True))
    corpus = load_corpus(pa.table({"_id": ids, "title": titles, "text": [f"x{text}" for text in texts]}))
    queries = Queries.from_lists(ids, [f"x{text}" for text in texts])
    qrels = {name: {other: grade for grade, other in enumerate(ids)} for name in ids}
    gpl.write_beir(folder, corpus, queries, {"test": qrels})
    assert load_corpus(folder).fingerprint == corpus.fingerprint
    assert load_queries(folder).fingerprint == queries.fingerprint
    assert load_qrels(folder, "test", corpus, queries) == qrels


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"pos": [], "neg": {}}', r"line 2: 'qid' is null, should be a string"),
        ('{"qid": "genQ2", "pos": ["0"]}', r"line 2: 'neg' is null, should be an object"),
        ('{"qid": "genQ2", "pos": "0", "neg": {"a": []}}', r"line 2: 'pos' should be a list of strings"),
        ('{"qid": "genQ2", "pos": ["0"], "neg": {"a": [1]}}', r"line 2: 'neg.a' should be a list of strings"),
        ('{"qid": "genQ2", "pos": ["7"], "neg": {"a": []}}', r"line 2: no document has the id '7'"),
        ('{"qid": "genQ9", "pos": ["0"], "neg": {"a": []}}', r"line 2: no query has the id 'genQ9'"),
        ('{"qid": "genQ2", "pos": ["0"], "neg": {"b": []}}', r"line 2: has retrievers \['b'\] but the first line"),
    ],
)
def test_bad_hard_negatives(tmp_path, small, line, message):
    path = tmp_path / "h.jsonl"
    path.write_text('{"qid": "genQ1", "pos": ["0"], "neg": {"a": ["1"]}}\n' + line + "\n")
    with pytest.raises(DataError, match=message):
        gpl.read_hard_negatives(path, *small)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("genQ1\t0\t1", r"line 2: has 3 columns but 4 are expected"),
        ("qid\tpos\tneg\tmargin", r"line 2: margin is 'margin', should be a finite number; GPL's file has no header"),
        ("genQ1\t0\t1\tnan", r"line 2: margin is 'nan'"),
        ("genQ1\t0\t8\t1.5", r"line 2: no document has the id '8'"),
    ],
)
def test_bad_training_data(tmp_path, small, line, message):
    (tmp_path / "d.tsv").write_text(f"genQ1\t0\t1\t2.5\n{line}\n")
    with pytest.raises(DataError, match=message):
        gpl.read_training_data(tmp_path / "d.tsv", *small)


def test_what_the_formats_cannot_hold(tmp_path, small):
    corpus, queries = small
    zero = np.zeros(1, np.int64)
    tabbed = Queries.from_lists(["a\tb"], ["text"])
    data = gpl.TrainingData(zero, zero, zero, np.zeros(1, np.float32))
    with pytest.raises(DataError, match="has a tab or line end"):
        gpl.write_training_data(tmp_path / "d.tsv", data, corpus, tabbed)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ShapeError, match="columns have shapes"):
        gpl.TrainingData(zero, zero, zero, np.zeros(2, np.float32))
    (tmp_path / "h.jsonl").write_text('{"qid": "genQ1", "pos": ["0"], "neg": {"a": ["1"]}}\n')
    hard = gpl.read_hard_negatives(tmp_path / "h.jsonl", corpus, queries)
    none = RankedLists(np.zeros(1, np.int64), np.zeros(0, np.int64))
    with pytest.raises(ShapeError, match="0 lists of positives but 1 queries"):
        gpl.write_hard_negatives(tmp_path / "x.jsonl", gpl.HardNegatives(hard.negatives, none), corpus, queries)
