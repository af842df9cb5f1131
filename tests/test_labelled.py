"""Mining for labelled data: from judgements to files, with the bundled models on a part of the bundled collection."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from tiny import lines_of, run_cli

import gplfast
from gplfast.errors import ConfigError, DataError
from gplfast.labelled_settings import FORMATS
from gplfast.stages import candidates
from gplfast.store.manifest import Manifest

DEMO = Path(gplfast.__file__).parent / "presets" / "demo"


WORDS = 25  # of each passage: the models are as slow as the texts are long


@pytest.fixture(scope="module")
def part(tmp_path_factory):
    """24 passages of the bundled collection; 6 queries, one with two positives and one judged not relevant."""
    folder = tmp_path_factory.mktemp("part")
    docs = [json.loads(line) for line in (DEMO / "corpus.jsonl").read_text().splitlines()[:24]]
    docs[0]["text"] = " ".join(doc["text"] for doc in docs[:12])  # beyond the window: the teacher cuts the pair
    for doc in docs[1:]:
        doc["text"] = " ".join(doc["text"].split()[:WORDS])
    queries = (DEMO / "queries.jsonl").read_text().splitlines()[:7]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(doc) + "\n" for doc in docs))
    (folder / "queries.jsonl").write_text("\n".join(queries) + "\n")
    rows = [(json.loads(line)["_id"], docs[i]["_id"], 1) for i, line in enumerate(queries[:6])]
    rows[1:1] = [(rows[0][0], docs[9]["_id"], 0), (rows[0][0], docs[8]["_id"], 2)]
    rows.append((json.loads(queries[6])["_id"], docs[3]["_id"], 0))  # no positive: it is left out
    (folder / "qrels").mkdir()
    lines = "".join(f"{query}\t{doc}\t{grade}\n" for query, doc, grade in rows)
    (folder / "qrels" / "train.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    return folder


@pytest.fixture(scope="module")
def mined(part, tmp_path_factory):
    """The folder that one command wrote."""
    folder = tmp_path_factory.mktemp("mined")
    arguments = ["--corpus", part, "--queries", part, "--qrels", part / "qrels" / "train.tsv"]
    models = ["--encoder", "nano:student", "--teacher", "nano:teacher"]
    options = ["--mine-negatives-per-query", 6, "--provider", "cpu", "--precision", "fp32", "--threads", 1, "--quiet"]
    given = ["gplfast", *arguments, *models, *options, "--output", folder, "--format", *FORMATS]
    status = gplfast.cli.main(["mine", *(str(argument) for argument in given[1:])])
    assert status == 0
    return folder


def test_negminers_schema_on_real_output(part, mined):
    """Every field of README's "Output format", its type and length; ids that exist; positives first."""
    docs = {doc["_id"] for doc in lines_of(part / "corpus.jsonl")}
    grades: dict[str, dict[str, int]] = {}
    for line in (part / "qrels" / "train.tsv").read_text().splitlines()[1:]:
        query, doc, grade = line.split("\t")
        grades.setdefault(query, {})[doc] = int(grade)
    found = lines_of(mined / "negminer.jsonl")
    assert [line["query"] for line in found] == list(grades)[:6]
    for line in found:
        n = len(line["docs"])
        assert list(line) == ["query", "docs", "doc_scores", "query_doc_cos", "query_doc_ce", "doc_doc_cos"]
        assert set(line["docs"]) <= docs
        assert len(set(line["docs"])) == n
        assert [len(line[name]) for name in list(line)[2:]] == [n, n, n, n * n]
        assert all(isinstance(value, float) for name in list(line)[2:] for value in line[name])
        judged = grades[line["query"]]
        assert set(judged) <= set(line["docs"])
        assert line["doc_scores"] == [float(judged.get(doc, 0)) for doc in line["docs"]]
        assert line["doc_scores"] == sorted(line["doc_scores"], key=lambda score: score <= 0)
        mined_cosines = line["query_doc_cos"][len(judged) :]
        assert len(mined_cosines) in (5, 6)  # what is judged 0 may be among the six that were found
        assert mined_cosines == sorted(mined_cosines, reverse=True)


def test_cosines_and_teacher_scores_are_right(part, mined, monkeypatch):
    """Against float64 over sentence-transformers' own vectors, and its CrossEncoder called directly."""
    import torch
    from sentence_transformers import CrossEncoder, SentenceTransformer

    from gplfast.models.resolve import resolve

    docs = {doc["_id"]: f"{doc['title']} {doc['text']}".strip() for doc in lines_of(part / "corpus.jsonl")}
    queries = {query["_id"]: query["text"] for query in lines_of(part / "queries.jsonl")}
    student = SentenceTransformer(str(resolve("nano:student")), device="cpu")
    teacher = CrossEncoder(str(resolve("nano:teacher")), device="cpu")
    names = list(docs)
    vectors = student.encode_document(list(docs.values()), show_progress_bar=False).astype(np.float64)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    work = mined / "work" / "embeddings"
    stored = [np.load(path, mmap_mode="r") for path in work.glob("*/*.npy")]
    ours = next(array for array in stored if len(array) == len(docs)).astype(np.float64)
    ours /= np.linalg.norm(ours, axis=1, keepdims=True)
    for line in lines_of(mined / "negminer.jsonl"):
        rows, n = [names.index(doc) for doc in line["docs"]], len(line["docs"])
        query = student.encode_query([queries[line["query"]]], show_progress_bar=False).astype(np.float64)[0]
        cosines = vectors[rows] @ (query / np.linalg.norm(query))
        np.testing.assert_allclose(line["query_doc_cos"], cosines, atol=2e-5)
        matrix = np.array(line["doc_doc_cos"]).reshape(n, n)
        np.testing.assert_allclose(matrix, vectors[rows] @ vectors[rows].T, atol=2e-5)
        # Of the very embeddings it is the float64 result, rounded once: half a unit of float32 in the last place.
        np.testing.assert_allclose(matrix, ours[rows] @ ours[rows].T, atol=2**-24, rtol=0)
        assert (np.diag(matrix) == 1.0).all()
        pairs = [(queries[line["query"]], docs[doc]) for doc in line["docs"]]
        scores = teacher.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False)
        np.testing.assert_allclose(line["query_doc_ce"], scores, atol=1e-3)


def test_the_negatives_are_negminers_rule_on_the_lines(part, mined):
    """negminer's export, replayed on its own documented lines, gives its negatives."""
    docs = {doc["_id"]: f"{doc['title']} {doc['text']}".strip() for doc in lines_of(part / "corpus.jsonl")}
    queries = {query["_id"]: query["text"] for query in lines_of(part / "queries.jsonl")}
    expected = []
    for line in lines_of(mined / "negminer.jsonl"):
        n, ce = len(line["docs"]), line["query_doc_ce"]
        matrix = np.array(line["doc_doc_cos"]).reshape(n, n)
        lowest = min(score for score, grade in zip(ce, line["doc_scores"], strict=True) if grade > 0)
        sides: dict[str, list[int]] = {"pos": [], "neg": []}
        for row in range(n):
            if line["doc_scores"][row] > 0:
                sides["pos"].append(row)
            elif not (matrix[row, :row] > 0.95).any() and lowest - ce[row] > 0.05 and len(sides["neg"]) < 8:
                sides["neg"].append(row)
        if sides["neg"]:
            item = {"query": queries[line["query"]]}
            for side, rows in sides.items():
                item[side] = [docs[line["docs"][row]] for row in rows]
                item[f"{side}_cos_score"] = [line["query_doc_cos"][row] for row in rows]
                item[f"{side}_ce_score"] = [ce[row] for row in rows]
            expected.append(item)
    found = lines_of(mined / "negatives.jsonl")
    assert len(found) > 2
    assert [{name: line[name] for name in expected[0]} for line in found] == expected


def test_every_format_was_written(mined):
    for name in (
        *("negminer.jsonl", "negatives.jsonl", "gpl/hard-negatives.jsonl", "gpl/gpl-training-data.tsv"),
        *(f"sentence-transformers-{layout}.parquet" for layout in ("triplet", "n-tuple", "labeled-pair")),
        *("flag-embedding.jsonl", "tevatron/train.jsonl", "tevatron/corpus.jsonl", "tevatron-legacy.jsonl"),
        *("dpr.json", "trec/run.trec", "trec/qrels.trec"),
    ):
        assert (mined / name).stat().st_size > 100, name
    made = Manifest.read(mined / "work" / "labelled" / "candidates")
    assert made.counts["positives"] == 7
    assert set(made.models) == {"encoder", "teacher"}


def options(work, **given):
    config = {
        "provider": "cpu",
        "precision": "fp32",
        "threads": 1,
        "mine": {"retrievers": ["nano:student"], "negatives_per_query": 6},
    }
    return {"work": work, "config": config, "teacher": "nano:teacher", **given}


def test_from_python_on_a_work_directory_that_is_done(part, mined, tmp_path, monkeypatch):
    """Nothing is embedded or scored again; the object has queries, positives, negatives and scores."""
    shutil.copytree(mined / "work", tmp_path / "work")
    monkeypatch.setattr("gplfast.models.bi_encoder.BiEncoder.encode", None)
    monkeypatch.setattr("gplfast.models.cross_encoder.CrossEncoder.score", None)
    found = gplfast.mine_labelled(part, part, **options(tmp_path / "work"))
    lines = lines_of(mined / "negminer.jsonl")
    assert found.ids == [line["query"] for line in lines]
    for query, line in enumerate(lines):
        both = [*found.positives[query], *found.negatives[query]]
        assert [found.corpus.ids[row] for row in both] == line["docs"]
    assert found.scores.tolist() == pytest.approx([score for line in lines for score in line["query_doc_ce"]], rel=1e-6)
    kept = gplfast.mine_labelled(part, part, **options(tmp_path / "work", labelled={"keep": 2, "judged": False}))
    assert np.diff(kept.negatives.indptr).max() == 2
    assert (kept.grades[kept.indptr[:-1]] > 0).all()


def test_a_killed_run_goes_on_to_the_same_candidates(part, mined, tmp_path, monkeypatch):
    monkeypatch.setattr(candidates, "SHARD_QUERIES", 2)
    shutil.copytree(mined / "work", tmp_path / "a")
    found = gplfast.mine_labelled(part, part, **options(tmp_path / "a"))
    shutil.copytree(mined / "work", tmp_path / "b")
    with monkeypatch.context() as patch:
        real, written = candidates.ShardSet.write, []

        def dying(self, shard, table):
            if len(written) == 2:
                raise KeyboardInterrupt
            real(self, shard, table)
            written.append(shard)

        patch.setattr(candidates.ShardSet, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            gplfast.mine_labelled(part, part, **options(tmp_path / "b"))
    kept = {path: path.stat().st_ino for path in (tmp_path / "b" / "labelled" / "candidates").glob("shard-*")}
    assert len(kept) == 2
    again = gplfast.mine_labelled(part, part, **options(tmp_path / "b"))
    assert all(path.stat().st_ino == number for path, number in kept.items())
    assert again.docs.tolist() == found.docs.tolist()
    assert again.scores.tobytes() == found.scores.tobytes()
    for path in kept:
        assert path.read_bytes() == (tmp_path / "a" / "labelled" / "candidates" / path.name).read_bytes()


NEGMINER = """
corpus: {part}/corpus.jsonl
queries: {part}/queries.jsonl
qrels: {part}/qrels/train.tsv
embedding: nano:student
doc_prompt: "passage: "
query_prompt: "query: "
embedding_seq_len: 32
embedding_batch_size: 8
ce: nano:teacher
ce_seq_len: 300
ce_batch_size: 8
out_dir: {out}
negatives_count: 2
negatives_candidates_count: 4
dup_threshold: 0.9
pos_neg_threshold: 0.0
hnsw_m: 64
"""


def test_negminers_own_configuration(part, tmp_path, capsys, caplog):
    (tmp_path / "n.yaml").write_text(NEGMINER.format(part=part, out=tmp_path / "out"))
    flags = ["--provider", "cpu", "--precision", "fp32", "--threads", "1", "--quiet"]
    status, out, _ = run_cli(capsys, "mine", "--config", tmp_path / "n.yaml", *flags)
    assert status == 0
    assert out.split() == [str(tmp_path / "out" / name) for name in ("negminer.jsonl", "negatives.jsonl")]
    assert "hnsw_m has no effect: the search is exact" in caplog.text
    found = lines_of(tmp_path / "out" / "negatives.jsonl")
    assert 0 < max(len(line["neg"]) for line in found) <= 2
    assert [len(line["docs"]) for line in lines_of(tmp_path / "out" / "negminer.jsonl")][1:] == [5] * 5
    fingerprint = Manifest.read(tmp_path / "out" / "work" / "labelled" / "mine").models["nano:student"]
    assert "passage: " in fingerprint
    assert "32" in fingerprint
    status, _, err = run_cli(capsys, "mine", "--config", tmp_path / "n.yaml", *flags, "--keep", "1", "--format", "dpr")
    assert status == 0, err
    assert {len(item["hard_negative_ctxs"]) for item in json.loads((tmp_path / "out" / "dpr.json").read_text())} == {1}


def test_prompts_and_windows_change_the_vectors(mined):
    from gplfast.models import BiEncoder

    encoder = BiEncoder.open("nano:student", threads=1, provider="cpu", precision="fp32")
    assert encoder.reading() is encoder
    assert encoder.reading(max_tokens=10_000) is encoder
    other = encoder.reading(query_prompt="find this: ", max_tokens=12)
    assert other.fingerprint != encoder.fingerprint
    text = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    np.testing.assert_array_equal(other.encode([text]), encoder.reading(max_tokens=12).encode([text]))
    assert not np.array_equal(other.encode([text]), encoder.encode([text]))
    short = "one two"
    np.testing.assert_allclose(
        other.encode([short], kind="query"), encoder.reading(query_prompt="find this: ").encode([short], kind="query")
    )
    assert not np.allclose(other.encode([short], kind="query"), encoder.encode([short], kind="query"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--corpus", "c"], "mine needs --work; see gplfast mine --help"),
        (["--queries", "q"], "mine needs --corpus and --output"),
        (["--corpus", "c", "--work", "w", "--format", "dpr"], "--format has no effect without --queries or --qrels"),
        (["--corpus", "c", "--work", "w", "--keep", "3"], "--keep has no effect without --queries or --qrels"),
        (
            ["--corpus", "c", "--queries", "q", "--output", "o", "--format", "x"],
            "format is 'x' but must be one of negm",
        ),
        (
            ["--corpus", "c", "--queries", "q", "--output", "o", "--label-max-seq-length", "9"],
            "--label-max-seq-length has no effect on labelled queries; give --teacher-tokens",
        ),
        (["--corpus", "c", "--queries", "q", "--output", "o", "--keep", "-1"], "keep is -1 but must be at least 0"),
    ],
)
def test_what_mine_refuses(tmp_path, capsys, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    status, _, err = run_cli(capsys, "mine", *arguments)
    assert status == 2
    assert message in err
    assert os.listdir(tmp_path) == []  # noqa: PTH208


IDLE = {
    "pos_neg_threshold compares scores of a teacher": ["--pos-neg-threshold", "0.05"],
    "pos_threshold compares scores of a teacher": ["--pos-threshold", "2"],
    "--label-activation has no effect without a teacher": ["--label-activation", "sigmoid"],
    "split is 'test' but": ["--split", "test"],
    "[label] more_models has no effect": ["--config", "more.toml"],
    "[label] max_seq_length has no effect": ["--config", "length.toml"],
}


@pytest.mark.parametrize("message", IDLE)
def test_settings_that_labelled_mining_does_not_read_are_refused(part, tmp_path, capsys, monkeypatch, message):
    monkeypatch.chdir(tmp_path)
    Path("more.toml").write_text('[label]\nmore_models = ["other"]\n')
    Path("length.toml").write_text("[label]\nmax_seq_length = 9\n")
    given = ["--corpus", part, "--qrels", part / "qrels" / "train.tsv", "--output", "o", "--encoder", "nano:student"]
    status, _, err = run_cli(capsys, "mine", *given, *IDLE[message])
    assert status == 2
    assert message in err
    assert not Path("o").exists()


def test_the_teacher_of_a_file_is_asked(part, tmp_path, monkeypatch, capsys):
    (tmp_path / "c.toml").write_text('[label]\nmodel = "nano:teacher"\nactivation = "sigmoid"\n')
    asked = []
    monkeypatch.setattr("gplfast.exports.mine_files", lambda *_, teacher, **__: asked.append(teacher) or (None, []))
    given = ["--corpus", part, "--qrels", part, "--output", tmp_path / "o"]
    assert run_cli(capsys, "mine", *given, "--config", tmp_path / "c.toml")[0] == 0
    gplfast.mine_labelled(part, config=tmp_path / "c.toml")
    gplfast.mine_labelled(part, config={"label": {"model": "nano:teacher"}})
    assert run_cli(capsys, "mine", *given)[0] == 0
    gplfast.mine_labelled(part, config={"label": {"activation": "sigmoid"}})
    assert asked == [True, True, True, False, False]


def test_nothing_relevant_is_an_error(part, tmp_path):
    (tmp_path / "q.tsv").write_text("query-id\tcorpus-id\tscore\nmq_NINDS_0000001_Sec1\tNINDS_0000001_Sec1\t0\n")
    with pytest.raises(DataError, match=r"q\.tsv: no query has a positive"):
        gplfast.mine_labelled(part, part, tmp_path / "q.tsv", work=tmp_path / "w")
    with pytest.raises(DataError, match="a corpus in memory says nothing of queries"):
        gplfast.mine_labelled(["a", "b"], qrels=tmp_path / "q.tsv", work=tmp_path / "w")
    with pytest.raises(ConfigError, match="labelled: kep is not a setting"):
        gplfast.mine_labelled(part, part, labelled={"kep": 1})
    assert not (tmp_path / "w").exists()


def test_bm25_alone_has_no_cosines(part, tmp_path):
    found = gplfast.mine_labelled(
        part, part, encoder="bm25", output=tmp_path, formats=["tevatron", "flag-embedding"], work=tmp_path / "w"
    )
    assert found.scores is None
    assert list(lines_of(tmp_path / "flag-embedding.jsonl")[0]) == ["query", "pos", "neg"]


def test_what_formats_need_is_said_before_any_work(part, tmp_path):
    given = {"encoder": "bm25", "output": tmp_path / "o", "work": tmp_path / "w"}
    for name, message in (
        ("negminer", "negminer's lines need cosines"),
        ("trec", "a TREC run needs scores"),
        ("sentence-transformers-margins", "margins need scores"),
    ):
        with pytest.raises(ConfigError, match=message):
            gplfast.mine_labelled(part, part, **given, formats=["tevatron", name])
    with pytest.raises(ConfigError, match="duplicates by cosine need an encoder"):
        gplfast.mine_labelled(part, part, **given, formats=["tevatron"], labelled={"dup_threshold": 0.9})
    assert os.listdir(tmp_path) == []  # noqa: PTH208
