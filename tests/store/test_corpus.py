"""Documents from every kind of source."""

from __future__ import annotations

import gzip
import json
import tracemalloc
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gplfast.store import columns
from gplfast.store.corpus import Corpus, Queries, load_corpus, load_queries
from gplfast.store.split import split_words

COLLECTIONS = Path(__file__).parents[3] / "shared" / "data"
ROWS = [("a", "Title A", "Text of a."), ("b", "", "Text of b."), ("c", "Only a title", ""), ("d", "", "ünï \U0001f600")]


def as_rows(corpus: Corpus) -> list[tuple[str, str, str]]:
    return [tuple(row.values()) for row in corpus.table.to_pylist()]


def jsonl(rows) -> str:
    return "".join(json.dumps({"_id": i, "title": t, "text": x}) + "\n" for i, t, x in rows)


def arrow(rows, names=("_id", "title", "text")) -> pa.Table:
    return pa.table({name: list(column) for name, column in zip(names, zip(*rows, strict=True), strict=True)})


def test_beir_folder_plain_and_gzip_are_one(tmp_path):
    plain, packed = tmp_path / "plain", tmp_path / "packed"
    plain.mkdir()
    packed.mkdir()
    (plain / "corpus.jsonl").write_text(jsonl(ROWS), encoding="utf-8")
    with gzip.open(packed / "corpus.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write(jsonl(ROWS))
    one, two = load_corpus(plain), load_corpus(str(packed))
    assert as_rows(one) == as_rows(two) == ROWS
    assert one.fingerprint == two.fingerprint
    assert one.n_empty == 0
    assert len(one) == 4


def test_text_is_title_and_text_without_leading_space(tmp_path):
    corpus = load_corpus(arrow(ROWS))
    assert corpus.text(0) == "Title A Text of a."
    assert corpus.text(1) == "Text of b."
    assert corpus.text(2) == "Only a title"
    assert corpus.texts(np.array([3, 0])) == ["ünï \U0001f600", "Title A Text of a."]
    assert corpus.texts() == [corpus.text(row) for row in range(4)]
    assert corpus.texts([]) == []
    assert corpus.row("c") == 2
    assert corpus.has("c")
    assert not corpus.has("z")


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "arrow", "list", "wrapped"])
def test_every_column_is_one_chunk_so_that_rows_are_taken_without_a_copy_of_all(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(columns, "BATCH_ROWS", 2)
    rows = [(str(number), f"title {number}", f"text {number}") for number in range(9)]
    chunked = pa.concat_tables([arrow(rows[start : start + 4]) for start in range(0, 9, 4)])
    if kind == "jsonl":
        (tmp_path / "c.jsonl").write_text(jsonl(rows))
        corpus = load_corpus(tmp_path / "c.jsonl")
    elif kind == "parquet":
        pq.write_table(chunked, tmp_path / "c.parquet", row_group_size=4)
        corpus = load_corpus(tmp_path / "c.parquet")
    elif kind == "list":
        corpus = load_corpus([f"text {number}" for number in range(9)])
    else:
        corpus = load_corpus(chunked) if kind == "arrow" else Corpus(chunked)
    assert [column.num_chunks for column in corpus.table.columns] == [1, 1, 1]
    assert corpus.bodies(np.array([8, 3])) == ["text 8", "text 3"]


def test_title_may_be_missing_or_null(tmp_path):
    path = tmp_path / "c.jsonl"
    path.write_text('{"_id": "1", "text": "x"}\n\n{"_id": "2", "title": null, "text": "y", "metadata": {"k": 1}}\n')
    assert as_rows(load_corpus(path)) == [("1", "", "x"), ("2", "", "y")]


def test_empty_documents_are_skipped_counted_and_logged(caplog):
    table = arrow([("a", "", "  "), ("b", "", "text"), ("c", " ", "\n")])
    with caplog.at_level("WARNING"):
        corpus = load_corpus(table)
    assert corpus.ids == ["b"]
    assert corpus.n_empty == 2
    assert corpus.empty_ids == {"a", "c"}
    assert "skipped 2 empty documents (a, c)" in caplog.text


def test_folder_of_text_files(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    (tmp_path / "b.md").write_text("```\n# code, no heading\n```\n## The Heading ##\nBody.\n", encoding="utf-8")
    (tmp_path / "sub" / "a.TXT").write_bytes(b"\xef\xbb\xbfBOM goes.\r\nSecond line.")
    (tmp_path / "sub" / "empty.txt").write_text("\n")
    (tmp_path / "notes.md").write_text("no heading")
    (tmp_path / "image.png").write_bytes(b"\xff")
    corpus = load_corpus(tmp_path)
    assert as_rows(corpus) == [
        ("b.md", "The Heading", "```\n# code, no heading\n```\nBody."),
        ("notes.md", "notes", "no heading"),
        ("sub/a.TXT", "a", "BOM goes.\r\nSecond line."),
    ]
    assert corpus.empty_ids == {"sub/empty.txt"}


@pytest.mark.parametrize(("suffix", "mark"), [(".csv", ","), (".tsv", "\t"), (".csv.gz", ",")])
def test_csv_and_tsv_with_named_columns(tmp_path, suffix, mark):
    path = tmp_path / f"docs{suffix}"
    content = mark.join(["head", "doc", "body", "more"]) + "\r\n" + mark.join(["T", "1", '"two\nlines, ""so"""', "-"])
    content += "\r\n" + mark.join(["", "2", "x", ""]) + "\r\n"
    path.write_bytes(gzip.compress(content.encode()) if suffix.endswith(".gz") else content.encode())
    corpus = load_corpus(path, id_column="doc", title_column="head", text_column="body")
    assert as_rows(corpus) == [("1", "T", 'two\nlines, "so"'), ("2", "", "x")]


def test_csv_field_longer_than_the_default_limit(tmp_path):
    path = tmp_path / "long.csv"
    path.write_text("_id,text\n1," + "word " * 50_000 + "\n")
    assert len(load_corpus(path).text(0)) == 250_000


def test_parquet_with_integer_ids_and_dictionaries(tmp_path):
    table = pa.table(
        {"n": pa.array([7, 8], pa.int32()), "text": pa.array(["x", "x"]).dictionary_encode(), "title": ["t", None]}
    )
    pq.write_table(table, tmp_path / "c.parquet")
    assert as_rows(load_corpus(tmp_path / "c.parquet", id_column="n")) == [("7", "t", "x"), ("8", "", "x")]


def test_list_of_texts():
    assert as_rows(load_corpus(["x", "", "y"])) == [("0", "", "x"), ("2", "", "y")]


def test_fingerprint_does_not_depend_on_chunks_but_on_everything_else():
    whole = load_corpus(arrow(ROWS))
    chunked = load_corpus(pa.concat_tables([arrow(ROWS[:1]), arrow(ROWS[1:])]))
    pieces = pa.concat_tables([whole.table.slice(2), whole.table.slice(0, 2)])
    pieces = pa.concat_tables([pieces.slice(2, 1), pieces.slice(3, 1), pieces.slice(0, 2)])
    assert whole.fingerprint == chunked.fingerprint == Corpus(pieces).fingerprint
    seen = {whole.fingerprint}
    for changed in (
        ROWS[::-1],
        [("a", "Title", "A Text of a."), *ROWS[1:]],
        [("aT", "itle A", "Text of a."), *ROWS[1:]],
        [("x", "Title A", "Text of a."), *ROWS[1:]],
        ROWS[:3],
    ):
        seen.add(load_corpus(arrow(changed)).fingerprint)
    assert len(seen) == 6


def test_queries(tmp_path, caplog):
    (tmp_path / "queries.jsonl").write_text('{"_id": "q1", "text": "one"}\n{"_id": "q2", "text": " "}\n')
    queries = load_queries(tmp_path)
    assert (queries.ids, queries.texts, len(queries)) == (["q1"], ["one"], 1)
    assert queries.empty_ids == {"q2"}
    assert queries.row("q1") == 0
    assert Queries.from_lists(["q1"], ["one"]).fingerprint == queries.fingerprint


def test_reading_a_file_does_not_hold_its_rows_as_objects(tmp_path, monkeypatch):
    path = tmp_path / "c.jsonl"
    n = 20_000
    monkeypatch.setattr(columns, "BATCH_ROWS", 1000)
    path.write_text("".join(f'{{"_id": "{i}", "text": "word {i} and some more words of text"}}\n' for i in range(n)))
    tracemalloc.start()
    corpus = load_corpus(path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(corpus) == n
    assert held < 1_000_000  # 8 bytes per row go away with the builder; texts live in Arrow's own pool
    assert peak < 3_000_000


@pytest.mark.skipif(not COLLECTIONS.is_dir(), reason=f"the collections are not at {COLLECTIONS}")
def test_a_real_collection():
    corpus = load_corpus(COLLECTIONS / "cranfield")
    assert len(corpus) == 1398
    assert corpus.empty_ids == {"471", "995"}


def test_split_ends_at_sentences_and_repeats_the_title():
    text = "One two three. Four five! Six seven eight nine ten eleven.\n\nLast words"
    corpus = load_corpus(arrow([("d", "T", text), ("e", "U", "short"), ("f", "V", "")]), split_words=5)
    assert as_rows(corpus) == [
        ("d#0", "T", "One two three. Four five!"),
        ("d#1", "T", "Six seven eight nine ten"),
        ("d#2", "T", "eleven.\n\nLast words"),
        ("e#0", "U", "short"),
        ("f#0", "V", ""),
    ]
    assert corpus.parent_ids == ["d", "d", "d", "e", "f"]
    assert load_corpus(arrow([("x#1", "", "t")])).parent_ids == ["x#1"]


@given(st.text(alphabet='ab .!?\n"\u3002', max_size=200), st.integers(1, 12))
def test_split_keeps_every_word_in_order(text, most):
    pieces = split_words(text, most)
    assert [word for piece in pieces for word in piece.split()] == text.split()
    assert all(len(piece.split()) <= most for piece in pieces)
    assert pieces == [text] or all(piece and piece in text for piece in pieces)
