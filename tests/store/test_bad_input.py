"""Every kind of broken input has a message that names file and line and says what to do."""

from __future__ import annotations

import gzip

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gplfast.errors import DataError
from gplfast.store.corpus import Queries, load_corpus, load_queries
from gplfast.store.qrels import load_qrels

GOOD = b'{"_id": "1", "text": "x"}\n'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (GOOD + b'{"_id": "2", "text": ', r"corpus.jsonl: line 2: broken JSON \(.*\); one object per line is expected"),
        (GOOD + b"[1]\n", r"line 2: the JSON is a list, not an object"),
        (GOOD + b"[" * 100_000, r"line 2: (the JSON is nested too deeply|broken JSON)"),
        (GOOD + b'{"text": "y"}\n', r"line 2: missing '_id'; it has text"),
        (b'{"id": "1", "text": "x"}\n', r"line 1: missing '_id' \(did you mean 'id'\?\); it has id, text"),
        (b'{"_id": "1", "txt": "x"}\n', r"line 1: missing 'text' \(did you mean 'txt'\?\)"),
        (GOOD + b'{"_id": 2, "text": "y"}\n', r"line 2: '_id' is a number, should be a string; write it in quotes"),
        (GOOD + b'{"_id": null, "text": "y"}\n', r"line 2: '_id' is null"),
        (GOOD + b'{"_id": "2", "text": ["y"]}\n', r"line 2: 'text' is a list, should be a string"),
        (GOOD + b'{"_id": "2", "text": "y", "title": {}}\n', r"line 2: 'title' is an object, should be a string"),
        (GOOD + b'{"_id": "", "text": "y"}\n', r"line 2: the id is empty; every document needs one"),
        (
            GOOD + b"\n" + b'{"_id": "2", "text": "y"}\n' + GOOD + GOOD,
            r"corpus.jsonl: line 4: id '1' was already used on line 1 \(1 more ids are repeated\); ids must be unique",
        ),
        (GOOD + b'{"_id": "2", "text": "caf\xe9"}\n', r"line 2: not UTF-8 \(byte 0xe9 at byte 26\); convert it"),
        ('{"_id": "1"}\n'.encode("utf-16"), r"line 1: not UTF-8 but UTF-16; convert it: iconv"),
        (GOOD + b'{"_id": "2", "text": "\\ud83d"}\n', r"line 2: 'text' has half of a surrogate pair"),
        (b"", r"corpus.jsonl: no documents; give at least one document with text"),
        (b'{"_id": "1", "text": ""}\n', r"all its 1 documents are empty"),
    ],
)
def test_corpus_lines(tmp_path, content, message):
    (tmp_path / "corpus.jsonl").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load_corpus(tmp_path)


@pytest.mark.parametrize("keep", [0.3, 0.9])
def test_gzip_cut_off(tmp_path, keep):
    packed = gzip.compress(b"".join(b'{"_id": "%d", "text": "x%d"}\n' % (i, i * i) for i in range(2000)))
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(packed[: int(len(packed) * keep)])
    with pytest.raises(DataError, match=r"corpus.jsonl.gz: line \d+: the gzip data are cut off or damaged .* copy the"):
        load_corpus(tmp_path)


def test_gzip_damaged_or_none_at_all(tmp_path):
    path = tmp_path / "c.jsonl.gz"
    packed = bytearray(gzip.compress(GOOD * 50))
    packed[-6] ^= 0xFF  # the checksum
    path.write_bytes(packed)
    with pytest.raises(DataError, match="cut off or damaged"):
        load_corpus(path)
    path.write_bytes(GOOD)
    with pytest.raises(DataError, match=r"named .gz but is not gzip"):
        load_corpus(path)


def test_paths(tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such file or folder; check the path"):
        load_corpus(tmp_path / "nowhere")
    with pytest.raises(
        DataError, match=r"this folder has no corpus.jsonl\[.gz\] and no .txt or .md files; give a BEIR"
    ):
        load_corpus(tmp_path)
    with pytest.raises(DataError, match=r"has no queries.jsonl\[.gz\]; name the file"):
        load_queries(tmp_path)
    (tmp_path / "a.docx").write_bytes(b"x")
    with pytest.raises(DataError, match=r"a.docx: unknown kind of file '.docx'; give a BEIR folder"):
        load_corpus(tmp_path / "a.docx")
    with pytest.raises(DataError, match="cannot read documents from a int"):
        load_corpus(3)


def test_text_file_not_utf8(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"fine\nbad \xff\n")
    with pytest.raises(DataError, match=r"a.txt: line 2: not UTF-8 \(byte 0xff at byte 5\)"):
        load_corpus(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"c.csv: the file is empty; a header line"),
        ("id,text\n1,x\n", r"c.csv: line 1: missing column '_id' \(did you mean 'id'\?\); it has id, text: name the"),
        ("_id,contents\n1,x\n", r"missing column 'text' \(did you mean 'contents'\?\)"),
        ("_id,text,text\n1,x,y\n", r"two columns are named 'text'"),
        ("_id,text\n1,x\n2,y,z\n", r"c.csv: line 3: has 3 fields but the header has 2; quote fields"),
        ('_id,text\n1,x\n2,"y\n3,z\n', r"c.csv: line 3: broken CSV \(.*\); a field with a quote"),
        ('_id,text\n1,"x"y\n', r"c.csv: line 2: broken CSV"),
        ("_id,text\n1,x\n\n1,y\n", r"c.csv: line 4: id '1' was already used on line 2"),
    ],
)
def test_csv(tmp_path, content, message):
    (tmp_path / "c.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_corpus(tmp_path / "c.csv")


def test_named_title_must_be_there(tmp_path):
    (tmp_path / "c.csv").write_text("_id,text,heading\n1,x,h\n")
    with pytest.raises(DataError, match=r"missing column 'headin' \(did you mean 'heading'\?\)"):
        load_corpus(tmp_path / "c.csv", title_column="headin")


def test_parquet_and_arrow(tmp_path):
    path = tmp_path / "c.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"c.parquet: not a readable Parquet file \(.*\); copy or write it again"):
        load_corpus(path)
    pq.write_table(pa.table({"_id": ["a"], "body": ["x"]}), path)
    with pytest.raises(DataError, match=r"c.parquet: missing column 'text' \(did you mean 'body'\?\)"):
        load_corpus(path)
    pq.write_table(pa.table({"_id": ["a"], "text": [1.5]}), path)
    with pytest.raises(DataError, match=r"column 'text' has type double but strings are needed"):
        load_corpus(path)
    with pytest.raises(DataError, match=r"table: row 1: '_id' is null"):
        load_corpus(pa.table({"_id": ["a", None], "text": ["x", "y"]}))
    with pytest.raises(DataError, match=r"table: row 1: id 'a' was already used on row 0"):
        load_corpus(pa.table({"_id": ["a", "a"], "text": ["x", "y"]}))


def test_lists():
    with pytest.raises(DataError, match=r"list: item 1 is a int, should be a str"):
        load_corpus(["x", 2])
    with pytest.raises(DataError, match=r"list: no documents"):
        load_corpus([])
    with pytest.raises(DataError, match=r"split_words is 0"):
        load_corpus(["x"], split_words=0)
    with pytest.raises(DataError, match=r"ids has 2 items but texts has 1"):
        Queries.from_lists(["a", "b"], ["x"])


def test_ids_asked_for():
    with pytest.raises(DataError, match=r"no document has the id 'z'; the corpus has 1 documents$"):
        load_corpus(["x"]).row("z")
    with pytest.raises(DataError, match=r"and that one was skipped because it is empty"):
        load_corpus(["x", ""]).row("1")
    with pytest.raises(DataError, match=r"split in pieces named"):
        load_corpus(["x"], split_words=3).row("0")


@pytest.fixture
def collection(tmp_path):
    (tmp_path / "qrels").mkdir()
    corpus = load_corpus(["zero", "one", "", "three"])
    return tmp_path, corpus, Queries.from_lists(["q1", "q2"], ["a", "b"])


HEADER = "query-id\tcorpus-id\tscore\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", r"test.tsv: line 1: the file is empty; write the header query-id <tab> corpus-id <tab> score"),
        ("q1\t0\t1\n", r"test.tsv: line 1: the header is missing"),
        ("qid\tdoc\trel\n", r"line 1: the header is 'qid <tab> doc <tab> rel'"),
        ("query-id corpus-id score\n", r"line 1: the columns of .* are not separated by tabs"),
        (HEADER + "q1\t0\t1\nq1 0 1\n", r"test.tsv: line 3: has 1 columns but 3 are expected"),
        (HEADER + "q1\t0\t1\t9\n", r"line 2: has 4 columns"),
        (HEADER + "q1\t0\t1.5\n", r"line 2: score is '1.5', should be a whole number"),
        (HEADER + "q1\t0\t1\nq1\t0\t2\n", r"line 3: rates 'q1', '0' as 2 but an earlier line as 1; keep one"),
        (HEADER, r"test.tsv: no judgements; give at least one"),
        (
            HEADER + "q1\t0\t1\nq9\t0\t1\nq1\tx\t1\nq8\ty\t1\n" + "".join(f"q2\tn{i}\t1\n" for i in range(9)),
            r"test.tsv: 12 rows name ids that are not there: 2 queries \(q9, q8\) and "
            r"11 documents \(x, y, n0, n1, n2, …\); give the collection .* \(allow_unknown\)",
        ),
    ],
)
def test_qrels(collection, content, message):
    folder, corpus, queries = collection
    (folder / "qrels" / "test.tsv").write_text(content)
    with pytest.raises(DataError, match=message):
        load_qrels(folder, "test", corpus, queries)


def test_qrels_missing(collection):
    folder, corpus, queries = collection
    (folder / "qrels" / "train.tsv").write_text(HEADER)
    with pytest.raises(DataError, match=r"no judgements test.tsv; splits that are there: train"):
        load_qrels(folder, "test", corpus, queries)
    with pytest.raises(DataError, match=r"no such file or folder"):
        load_qrels(folder / "none", "test", corpus, queries)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_good_qrels_with_either_line_end(collection, end):
    folder, corpus, queries = collection
    text = HEADER + "q1\t0\t1\nq1\t0\t1\nq2\t3\t0\nq1\t2\t1\n"
    (folder / "qrels" / "test.tsv").write_bytes(text.replace("\n", end).encode())
    # "2" is empty: it is known, stays judged, and nobody can find it.
    wanted = {"q1": {"0": 1, "2": 1}, "q2": {"3": 0}}
    assert load_qrels(folder, "test", corpus, queries) == wanted
    assert load_qrels(folder / "qrels", "test") == wanted
    assert load_qrels(folder / "qrels" / "test.tsv") == wanted
    assert load_qrels(folder, corpus=load_corpus(["zero", "one", "", "three"], split_words=2)) == wanted


def test_unknown_ids_can_be_allowed(collection, caplog):
    folder, corpus, queries = collection
    (folder / "qrels" / "test.tsv").write_text(HEADER + "q1\t0\t1\nq9\t0\t1\nq1\t77\t1\n")
    with caplog.at_level("WARNING"):
        assert load_qrels(folder, "test", corpus, queries, allow_unknown=True) == {"q1": {"0": 1}}
    assert "2 rows name ids that are not there: 1 queries (q9) and 1 documents (77); these rows are left" in caplog.text
