from __future__ import annotations

import dataclasses
import importlib.util
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny
from tiny import run_cli as run

from gplfast.bench import agreement, checkpoints, embed, generate, harness, network, report, score
from gplfast.bench.checkpoints import Served
from gplfast.errors import ModelError
from gplfast.models.sampling import Sampling
from gplfast.store.corpus import load_queries

# The peers' own warnings are theirs.
pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = ["--repeats", "1", "--peak-seconds", "0", "--threads", "1", "--quiet"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return tiny.world(tmp_path_factory)


@pytest.fixture(autouse=True)
def cache(world, monkeypatch):
    monkeypatch.setenv("GPLFAST_CACHE", str(world.cache))


@pytest.fixture(scope="module")
def teacher(world, tmp_path_factory):
    """The tiny teacher with a tokenizer that gives transformers token types, as BERT's does."""
    folder = Path(shutil.copytree(world.teacher, tmp_path_factory.mktemp("teacher") / "copy"))
    file = folder / "tokenizer_config.json"
    names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
    file.write_text(json.dumps(json.loads(file.read_text()) | names))
    return folder


def result_of(capsys, tmp_path, *arguments, extra=()):
    """The table and the JSON of a bench command."""
    status, out, err = run(capsys, "bench", *arguments, *QUICK, *extra, "--json", tmp_path / "out.json")
    assert status == 0, err
    return out, json.loads((tmp_path / "out.json").read_text())


def names_of(peers):
    return [peer.name for peer in harness.choose(peers, None)[0]]


# ---- the commands


def test_generate(capsys, tmp_path, world):
    flags = ["--model", world.generator, "--corpus", world.corpus, "--passages", "12", "--samples", "2"]
    flags += ["--max-new-tokens", "6", "--precision", "fp32", "auto", "--top-k", "5"]
    out, result = result_of(capsys, tmp_path, "generate", *flags)
    (row,) = result["rows"]
    assert row["shape"]["n_passages"] == 12
    assert row["shape"]["max_input_tokens"] == 64
    assert list(row["systems"]) == ["gplfast fp32", "gplfast", *names_of(generate.PEERS)]
    for name, made in row["systems"].items():
        assert made["passages_per_second"] * made["median_seconds"] == pytest.approx(12)
        assert made["tokens_per_second"] * made["median_seconds"] == pytest.approx(24 * made["query_tokens"])
        assert 0 < made["query_tokens"] <= 6
        if name in ("gplfast fp32", "transformers", "ctranslate2"):
            assert made["greedy_that_differ"] == 0
    assert row["systems"]["gplfast fp32"]["time_over_gplfast"] == 1.0
    assert f"{world.generator}: 12 passages of at most 64 tokens, 2 queries each of at most 6" in out
    assert "8 of 8" in out


def test_score(capsys, tmp_path, world, teacher):
    flags = ["--model", teacher, "--corpus", world.corpus, "--pairs", "40", "--plot", tmp_path / "bars.png"]
    out, result = result_of(capsys, tmp_path, "score", *flags)
    (row,) = result["rows"]
    assert list(row["systems"]) == ["gplfast", *names_of(score.PEERS)]
    queries, passages, _ = checkpoints.pairs(tiny.load_corpus(world.corpus), world.corpus, 40, 0)
    served = Served.find("score", str(teacher), "auto", 1)
    lengths = served.tokenizer().encode_pairs(queries, passages, 64).lengths
    assert row["shape"]["mean_tokens"] == pytest.approx(lengths.mean())
    for name, made in row["systems"].items():
        assert made["pairs_per_second"] * made["median_seconds"] == pytest.approx(40)
        assert made["tokens_per_second"] * made["median_seconds"] == pytest.approx(lengths.sum())
        assert made["spearman"] > (0.98 if "bf16" in name else 0.99999)
    assert row["systems"]["sentence-transformers"]["largest_difference"] < 1e-3
    assert "pairs/s" in out
    assert (tmp_path / "bars.png").read_bytes().startswith(b"\x89PNG")


def test_embed_with_judgements(capsys, tmp_path, world):
    flags = ["--model", world.student, "--corpus", world.corpus, "--texts", "20", "--qrels", world.corpus]
    out, result = result_of(capsys, tmp_path, "embed", *flags)
    (row,) = result["rows"]
    assert list(row["systems"]) == ["gplfast", *names_of(embed.PEERS)]
    ours = row["systems"]["gplfast"]
    for name, made in row["systems"].items():
        assert made["texts_per_second"] * made["median_seconds"] == pytest.approx(20)
        assert made["cosine_min"] > (0.99 if "bf16" in name else 0.99999)
        assert 0 < made["nDCG@10"] <= 1
        if "bf16" not in name:
            assert made["top_10_overlap"] == 1.0
            assert made["nDCG@10"] == pytest.approx(ours["nDCG@10"])
    assert "nDCG@10" in out.splitlines()[4]


def test_shares_of_products_of_matrices(capsys, tmp_path, world):
    flags = ["--model", world.student, "--corpus", world.corpus, "--texts", "8", "--peers", "none"]
    out, result = result_of(capsys, tmp_path, "embed", *flags, extra=["--peak-seconds", "0.001"])
    assert set(result["peaks"]) == {"gemm float32", "gemm bfloat16"}
    made = result["rows"][0]["systems"]["gplfast"]
    for kind, peak in result["peaks"].items():
        assert made["share_of_peak"][kind] == pytest.approx(made["flop_per_second"] / peak)
    assert "of GEMM float32" in out
    assert report.table(result) == out.rstrip("\n")


@pytest.mark.parametrize("operation", ["generate", "score", "embed"])
def test_help_teaches(capsys, operation):
    status, out, _ = run(capsys, "bench", operation, "--help")
    assert status == 0
    for words in ("examples:", "columns:", "--precision", f"gplfast bench {operation} --model nano:", "pip install"):
        assert words in out


# ---- errors


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["generate", "--passages", "99"], "--passages is 99 but the corpus has 40 passages; ask for fewer"),
        (["embed", "--texts", "41"], "--texts is 41 but the corpus has 40 passages; ask for fewer"),
        (["score", "--pairs", "401"], "--pairs is 401 but 10 queries and 40 passages make 400; ask for fewer"),
        (["score", "--peers", "ctranslate2"], "--peers names ctranslate2 but must be one of sentence-transformers, "),
        (["generate", "--top-p", "2"], "top_p is 2.0 but must be above 0 and at most 1"),
        (["score", "--precision", "fp32", "fp32"], "--precision names one twice: fp32 fp32"),
        (["score", "--precision", "fp8"], "invalid choice: 'fp8'"),
        (["score", "--pairs", "0"], "'0' is not a whole number of at least 1"),
        (["embed", "--qrels", "nowhere"], "nowhere"),
    ],
)
def test_bad_flags(capsys, world, flags, message):
    models = {"generate": world.generator, "score": world.teacher, "embed": world.student}
    given = ["--model", models[flags[0]], "--corpus", world.corpus]
    status, out, err = run(capsys, "bench", flags[0], *given, *flags[1:], *QUICK)
    assert (status, out) == (2, "")
    assert message in err
    assert len(err.splitlines()) == 1


def test_model_of_another_kind(capsys, world):
    status, _, err = run(capsys, "bench", "generate", "--model", world.student, "--corpus", world.corpus, *QUICK)
    assert status == 2
    assert "model_type is 'bert' but must be 't5'" in err


def test_precision_that_is_not_served(capsys, world):
    flags = ["--model", world.teacher, "--corpus", world.corpus, "--peers", "none"]
    flags += ["--precision", "bf16", "--provider", "cpu"]
    status, _, err = run(capsys, "bench", "score", *flags, *QUICK)
    assert status == 2
    assert "provider cpu computes in fp32 or int8 but precision is 'bf16'" in err


# ---- the checks find what is wrong


@pytest.fixture
def problem(world):
    served = Served.find("generate", str(world.generator), "auto", 1)
    return generate.Problem(served, tiny.texts(10), 2, Sampling(max_new_tokens=6), 32, 0)


def peer_of(problem, name):
    (peer,) = (peer for peer in generate.PEERS if peer.name == name)
    return peer.make(problem)


def first_result(system):
    return next(iter(system.settings.values()))()


def test_other_greedy_tokens_are_refused_unless_tied(problem):
    (expected,) = [first_result(generate.ours(problem, "fp32"))]
    peer = peer_of(problem, "transformers")
    found = first_result(peer)
    compare = generate.check(problem)
    assert compare(peer, expected, found)["greedy_that_differ"] == 0
    wrong = [[[*row[0][:-1], (row[0][-1] + 1) % 100]] for row in found.greedy()]
    with pytest.raises(harness.PeerError, match="which is no tie"):
        compare(peer, expected, dataclasses.replace(found, greedy=lambda: wrong))
    tied = dataclasses.replace(found, greedy=lambda: wrong, gap=lambda *_: 0.0)
    assert compare(peer, expected, tied)["greedy_that_differ"] == len(wrong)
    short = [[row[0][:-1]] for row in found.greedy()]
    with pytest.raises(harness.PeerError, match="of passage 0 has"):
        compare(peer, expected, dataclasses.replace(found, greedy=lambda: short))


def test_other_lengths_are_refused(problem):
    system, greedy = generate.System("peer", {}), list
    rng = np.random.default_rng(0)
    rows = [[[0] * n for n in rng.integers(1, 20, 4)] for _ in range(100)]
    longer = [[[*row, 0, 0, 0, 0] for row in queries] for queries in rows]
    compare = generate.check(problem)
    assert compare(system, generate.Generated(rows, greedy), generate.Generated(rows, greedy))["query_tokens"] > 5
    with pytest.raises(harness.PeerError, match="do not sample alike"):
        compare(system, generate.Generated(rows, greedy), generate.Generated(longer, greedy))


def test_other_scores_are_refused():
    expected = np.array([0.5, -3.0, 2.0], np.float32)
    exact, rough = score.System("peer", {}), score.System("peer", {}, exact=False)
    assert score.check(exact, expected, expected)["spearman"] == 1.0
    moved = expected + np.float32([0, 0.1, 0])
    with pytest.raises(harness.PeerError, match=r"pair 1 has the score -2\.9 but -3 in float32 is ours"):
        score.check(exact, expected, moved)
    assert score.check(rough, expected, moved)["largest_difference"] == pytest.approx(0.1, rel=1e-3)
    with pytest.raises(harness.PeerError, match="pair 2 has the score nan"):
        score.check(rough, expected, np.array([0, 0, np.nan], np.float32))


def test_other_vectors_are_refused(world):
    served = Served.find("embed", str(world.student), "auto", 1)
    whole = embed.Problem(served, tiny.texts(12), np.ones(12, np.int64), "cosine", None)
    expected = first_result(embed.ours(whole, "fp32"))
    turned = dataclasses.replace(expected, vectors=-expected.vectors)
    compare = embed.check(whole)
    assert compare(embed.System("peer", {}), expected, expected)["top_10_overlap"] == 1.0
    with pytest.raises(harness.PeerError, match=r"cosine of -1\.0"):
        compare(embed.System("peer", {}), expected, turned)


# ---- the parts


def test_spearman_is_scipys():
    scipy = pytest.importorskip("scipy.stats", reason="the reference")
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 8, 50).astype(float), rng.standard_normal(50)
    assert agreement.spearman(a, b) == pytest.approx(scipy.spearmanr(a, b).statistic)
    assert agreement.spearman(a, a) == pytest.approx(1.0)
    assert agreement.spearman(np.ones(4), np.ones(4)) == 1.0
    assert agreement.spearman(np.ones(4), np.arange(4.0)) == 0.0


def test_neighbour_overlap_counts_other_rows_only():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((300, 8)).astype(np.float32)
    assert agreement.neighbour_overlap(rows, rows, 1) == 1.0
    other = rng.standard_normal((300, 8)).astype(np.float32)
    assert agreement.neighbour_overlap(rows, other, 1) < 0.15  # 10 of 299 by chance


def test_cosines():
    a, b = np.array([[1.0, 0], [0, 0], [0, 0]]), np.array([[1.0, 1], [0, 0], [1, 0]])
    np.testing.assert_allclose(agreement.cosines(a, b), [0.5**0.5, 1, 0])


def test_pairs_are_different(world):
    corpus = tiny.load_corpus(world.corpus)
    queries, passages, origin = checkpoints.pairs(corpus, world.corpus, 400, 3)
    assert len(set(zip(queries, passages, strict=True))) == 400
    assert set(queries) == set(load_queries(world.corpus).texts)
    assert origin == "its queries"
    file = world.corpus / "corpus.jsonl"
    queries, passages, origin = checkpoints.pairs(corpus, file, 30, 3)
    assert origin == "queries of 8 words"
    assert max(len(query.split()) for query in queries) == 8


def test_flop_of_a_network():
    config = {"hidden_size": 4, "num_hidden_layers": 3, "intermediate_size": 8}
    # One layer, n tokens: q, k, v, o 4x4 each, 4x8 and 8x4; scores and sum n x n x 4 each; two for a multiply-add.
    by_hand = sum(2 * (n * (4 * 16 + 2 * 32) + 2 * n * n * 4) for n in (5, 2))
    assert network.encoder_flop(config, np.array([5, 2])) == 3 * by_hand
    distil = {"dim": 4, "n_layers": 3, "hidden_dim": 8}
    assert network.encoder_flop(distil, np.array([5, 2])) == 3 * by_hand
    with pytest.raises(ModelError, match="none of hidden_size"):
        network.encoder_flop({}, np.array([1]))


def test_generated_ids_decode_to_the_queries(problem):
    model = problem.served.reference
    options = {"sampling": Sampling(max_new_tokens=6), "seed": 4, "items": range(10)}
    ids, texts = (make(problem.texts, 3, **options) for make in (model.generate_ids, model.generate))
    assert [[model._tokenizer.decode([row])[0] for row in rows] for rows in ids] == texts
    assert all(len(rows) == 3 and len(row) <= 6 for rows in ids for row in rows)


# ---- random checkpoints


@pytest.fixture(scope="module")
def random_models():
    path = Path(__file__).parent.parent / "benchmarks" / "random_models.py"
    if not path.is_file():
        pytest.skip("benchmarks are not part of this copy")
    spec = importlib.util.spec_from_file_location("random_models", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules["random_models"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["random_models"]


def test_probability_of_the_end(random_models):
    others = np.sort(np.random.default_rng(0).standard_normal((2, 3, random_models.TOP_K)), axis=-1)[..., ::-1]
    certain = random_models.end_probability(others, np.full((2, 3), 50.0))
    np.testing.assert_allclose(certain, 1)
    assert (random_models.end_probability(others, np.full((2, 3), -50.0)) == 0).all()
    assert random_models.mean_tokens(others, np.full((2, 3), 50.0)) == pytest.approx(0, abs=1e-9)
