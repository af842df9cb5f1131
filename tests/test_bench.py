from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import reference
from tiny import run_cli as run

import gplfast
from gplfast.bench import dedup, hardware, harness, inputs, margins, memory, report, scores, search, sweep, workloads
from gplfast.bench.hardware import Peaks

# The peers' own warnings are theirs.
pytestmark = pytest.mark.filterwarnings("ignore")
QUICK = ["--repeats", "1", "--peak-seconds", "0", "--quiet"]


def installed(peers):
    return [peer.name for peer in harness.choose(peers, None)[0]]


def result_of(capsys, tmp_path, *arguments, extra=()):
    """The table and the JSON of a bench command."""
    status, out, err = run(capsys, "bench", *arguments, *QUICK, *extra, "--json", tmp_path / "out.json")
    assert status == 0, err
    assert err == ""
    return out, json.loads((tmp_path / "out.json").read_text())


# ---- the commands


def test_search(capsys, tmp_path):
    shape = ["--docs", "300", "--dim", "24", "--queries", "40", "1", "--k", "4", "--threads", "2"]
    out, result = result_of(capsys, tmp_path, "search", *shape, "--isas", "scalar", extra=["--repeats", "2"])
    assert (result["operation"], result["threads"], result["metric"]) == ("search", 2, "ip")
    assert [row["shape"] for row in result["rows"]] == [
        {"n_queries": n, "n_docs": 300, "dim": 24, "k": 4} for n in (1, 40)
    ]
    names = ["gplfast", "gplfast index", "gplfast scalar", *installed(search.PEERS)]
    for row in result["rows"]:
        assert list(row["systems"]) == names
        for name, made in row["systems"].items():
            assert len(made["seconds"]) == 2
            assert made["flop_per_second"] * made["median_seconds"] == pytest.approx(
                2 * row["shape"]["n_queries"] * 300 * 24
            )
            if name == "torch-bf16":
                assert made["recall"] > 0.8
            else:
                assert made["places_that_differ"] == 0
        assert row["systems"]["gplfast"]["time_over_gplfast"] == 1.0
    assert result["machine"]["versions"]["gplfast"] == gplfast.__version__
    assert result["peaks"] == {}
    lines = out.splitlines()
    assert "1 query, 300 documents x 24, k 4" in lines
    for name in names:
        assert sum(line.split("  ")[0] == name for line in lines) == 2
    for name in result["missing"]:
        assert f"not compared: {name} (pip install " in out


def test_search_by_cosine_of_own_vectors(capsys, tmp_path):
    rng = np.random.default_rng(3)
    docs = rng.standard_normal((200, 20), dtype=np.float32) * rng.uniform(0.1, 10, (200, 1)).astype(np.float32)
    np.save(tmp_path / "docs.npy", docs)
    np.save(tmp_path / "queries.npy", docs[:9] + np.float32(0.1))
    files = ["--embeddings", tmp_path / "docs.npy", "--query-embeddings", tmp_path / "queries.npy"]
    common = ["--metric", "cosine", "--queries", "9", "--k", "3"]
    _, result = result_of(capsys, tmp_path, "search", *files, *common)
    assert result["documents"] == "docs.npy"
    assert result["rows"][0]["shape"] == {"n_queries": 9, "n_docs": 200, "dim": 20, "k": 3}
    _, result = result_of(capsys, tmp_path, "search", *files, *common, "--docs", "500", "--peers", "none")
    assert result["documents"] == "docs.npy, drawn again with noise"
    assert list(result["rows"][0]["systems"]) == ["gplfast", "gplfast index"]


@pytest.mark.parametrize("rule", ["components", "greedy", "any-earlier"])
def test_dedup(capsys, tmp_path, rule):
    shape = ["--docs", "400", "--dim", "16", "--threshold", "0.95", "--copies", "0.3"]
    out, result = result_of(capsys, tmp_path, "dedup", *shape, "--rule", rule, "--isas", "scalar")
    (row,) = result["rows"]
    assert row["shape"] == {"n_docs": 400, "dim": 16, "threshold": 0.95, "rule": rule}
    assert list(row["systems"]) == ["gplfast", "gplfast scalar", *installed(dedup.PEERS)]
    for name, made in row["systems"].items():
        if name == "sentence-transformers":
            assert made["recall"] > 0.99
        else:
            assert made["pairs_that_differ"] == 0
    assert f"400 documents x 16, threshold 0.95, {rule}" in out


@pytest.mark.parametrize("which", ["min", "mean", "max", "first"])
def test_margins(capsys, tmp_path, which):
    filters = ["--ranks", "1", "6", "--min-score", "0.1", "--max-score", "0.8", "--absolute-margin", "0.05"]
    shape = ["--queries", "50", "--negatives", "7", "--positives", "3", "--reference", which]
    out, result = result_of(capsys, tmp_path, "margins", *shape, *filters, "--relative-margin", "0.1")
    (row,) = result["rows"]
    assert row["shape"] == {
        "n_queries": 50,
        "n_negatives": 350,
        "n_positives": 150,
        "reference": which,
        "ranks": [1, 6],
        "min_score": 0.1,
        "max_score": 0.8,
        "absolute_margin": 0.05,
        "relative_margin": 0.1,
    }
    assert list(row["systems"]) == ["gplfast", *installed(margins.PEERS)]
    for made in row["systems"].values():
        assert made["choices_that_differ"] == 0
        assert made["entries_per_second"] * made["median_seconds"] == pytest.approx(350)
    assert "ranks 1 to 6, min_score 0.1, max_score 0.8, absolute_margin 0.05, relative_margin 0.1" in out


@pytest.mark.parametrize("variable", ["n_docs", "n_queries", "k", "dim", "threads"])
def test_sweep(capsys, tmp_path, variable):
    shape = ["--docs", "64", "--dim", "16", "--queries", "12", "--k", "8", "--threads", "4"]
    out, result = result_of(capsys, tmp_path, "search", *shape, "--sweep", variable, "--sweep-points", "3")
    largest = {"n_docs": 64, "n_queries": 12, "k": 8, "dim": 16, "threads": 4}[variable]
    made = result["sweep"]
    assert made["values"] == [largest // 4, largest // 2, largest]
    assert [row["shape"][variable] for row in result["rows"]] == made["values"]
    assert f"seconds grow as {variable}^{made['slope']:.2f}" in out


def test_growth_is_the_slope_in_log_log():
    assert sweep.growth([1, 2, 4], [3.0, 12.0, 48.0]) == pytest.approx((2.0, 3.0))
    assert sweep.halves(50, 4) == [7, 13, 25, 50]
    assert sweep.halves(50, 9, 20) == [25, 50]


def test_pictures(capsys, tmp_path):
    pytest.importorskip("matplotlib", reason="the bench extra is not installed")
    small = ["--docs", "60", "--dim", "8", "--queries", "4", "--k", "2", "--peers", "none", *QUICK]
    for extra in ([], ["--sweep", "n_docs"]):
        status, _, err = run(capsys, "bench", "search", *small, *extra, "--plot", tmp_path / "out.svg")
        assert status == 0, err
        assert "<svg" in (tmp_path / "out.svg").read_text()
        (tmp_path / "out.svg").unlink()


def test_shares_of_the_measured_peaks(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "READ_BYTES", 1 << 20)
    shape = ["--docs", "60", "--dim", "8", "--queries", "4", "--k", "2", "--peers", "none", "--repeats", "1"]
    file = tmp_path / "out.json"
    status, out, _ = run(capsys, "bench", "search", *shape, "--peak-seconds", "0.01", "--json", file, "--quiet")
    assert status == 0
    result = json.loads(file.read_text())
    kinds = (
        ["float32", "read"] if result["machine"]["isa"] in {"scalar", "avx2", "avx512"} else ["float32", "int8", "read"]
    )
    made = result["rows"][0]["systems"]["gplfast"]
    assert sorted(made["share_of_peak"]) == sorted(result["peaks"]) == kinds
    assert made["share_of_peak"]["float32"] == made["flop_per_second"] / result["peaks"]["float32"]
    assert made["share_of_peak"]["read"] == made["bytes_per_second"] / result["peaks"]["read"]
    assert "TFLOP/s float32" in out
    assert "of reading" in out


def test_no_peak_is_kept_when_it_is_not_asked_for():
    peaks = Peaks(1, 0.0)
    peaks.sample()
    assert peaks.best == {}
    assert peaks.share("float32", 1.0) is None


# ---- a wrong result is caught


@pytest.fixture(scope="module")
def problem():
    docs = workloads.clustered(200, 16, 0)
    return search.Problem(workloads.queries_near(docs, 6, 0), docs, 5, "ip", 1)


def wrong(change):
    def result(expected):
        found = expected.copy()
        change(found)
        return found

    return result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: ids.__setitem__((2, 4), ids[2, 0] ^ 1), r"query 2 place 4 names document .* more than rounding"),
        (lambda ids: ids.__setitem__((1, 4), ids[1, 3]), "names a document twice for query 1"),
        (lambda ids: ids.__setitem__((0, 0), 200), "names a document that is not one of the 200"),
        (lambda ids: ids.__setitem__((0, slice(0, 2)), ids[0, 1::-1].copy()), "query 0 place 0"),
    ],
    ids=["another", "twice", "outside", "order"],
)
def test_a_wrong_search_is_an_error(problem, change, message):
    expected = gplfast.search(problem.queries, problem.docs, problem.k).ids
    other = harness.System("other", {"": lambda: wrong(change)(expected)})
    with pytest.raises(harness.PeerError, match=message):
        harness.compare_and_time([search.ours(problem), other], search.check(problem), 1)


def test_ours_must_be_the_same_and_approximate_shows_recall(problem):
    docs = np.concatenate([problem.docs, problem.docs])  # every document twice: ties
    problem = search.Problem(problem.queries, docs, 5, "ip", 1)
    expected = gplfast.search(problem.queries, docs, 5).ids
    found = expected.copy()
    found[0, [0, 1]] = found[0, [1, 0]]
    check = search.check(problem)
    assert check(harness.System("other", {}), expected, found) == {"places_that_differ": 2}
    with pytest.raises(harness.PeerError, match="2 places differ from gplfast, which must be the same"):
        check(harness.System("gplfast scalar", {}), expected, found)
    found[0, 0] = -1
    assert check(harness.System("near", {}, exact=False), expected, found) == {"recall": 1 - 1 / expected.size}
    with pytest.raises(harness.PeerError, match=r"shape \(6, 4\)"):
        check(harness.System("other", {}), expected, found[:, :4])


def dedup_problem(rule="components"):
    docs = workloads.clustered(120, 16, 0)
    workloads.plant_copies(docs, 0.4, 0)
    return dedup.Problem(docs, 0.95, "cosine", rule, 1)


def true_pairs(problem):
    found = reference.similar_pairs(problem.docs, problem.threshold)
    assert len(found) > 20
    return tuple(np.array(found, np.int64).T)


def test_a_wrong_dedup_is_an_error():
    problem = dedup_problem()
    first, second = true_pairs(problem)

    def systems(first, second, **changes):
        found = dedup.Found(
            dedup.representatives(120, first, second, "components"), len(first), lambda _: (first, second)
        )
        found = harness.dataclasses.replace(found, **changes)
        return [dedup.ours(problem), harness.System("other", {"": lambda: found})]

    check = dedup.check(problem)
    made = harness.compare_and_time(systems(first, second), check, 1)
    assert made["other"].agreement == {"pairs_that_differ": 0}
    with pytest.raises(harness.PeerError, match=f"finds {len(first) - 1} pairs that reach"):
        harness.compare_and_time(systems(first[1:], second[1:]), check, 1)
    with pytest.raises(harness.PeerError, match="9 pairs differ from gplfast but rounding can move 0"):
        harness.compare_and_time(systems(first, second, n_pairs=len(first) + 9), check, 1)
    with pytest.raises(harness.PeerError, match="0 pairs differ from gplfast but"):
        harness.compare_and_time(systems(first, second, representative=np.arange(120)), check, 1)
    with pytest.raises(harness.PeerError, match="must be the same; report this"):
        harness.compare_and_time(systems(first, second, pairs=None, n_pairs=0), check, 1)


@pytest.mark.parametrize("rule", ["components", "greedy", "any-earlier"])
def test_rules_from_pairs_equal_reference(rule):
    rng = np.random.default_rng(0)
    for _ in range(20):
        docs = rng.standard_normal((40, 3), dtype=np.float32)
        pairs = np.array(reference.similar_pairs(docs, 0.9), np.int64).reshape(-1, 2)
        rng.shuffle(pairs)
        expected, n_pairs = reference.dedup(docs, 0.9, rule=rule)
        np.testing.assert_array_equal(dedup.representatives(40, *pairs.T, rule), expected)
        assert n_pairs == len(pairs)


def test_wrong_margins_are_an_error():
    problem = margins.Problem(workloads.ragged_scores(20, 5, 2, 0), "min", (0, None), {"max_score": 0.5}, 1)
    expected = margins.ours(problem).settings[""]()
    check, other = margins.check(problem), harness.System("other", {})
    assert check(other, expected, expected) == {"choices_that_differ": 0}
    changed = expected.margins.copy()
    changed[3] = np.nextafter(changed[3], np.float32(9))
    with pytest.raises(harness.PeerError, match="1 margins and 0 choices differ"):
        check(other, expected, (changed, *expected[1:]))
    with pytest.raises(harness.PeerError, match="0 margins and 100 choices differ"):
        check(other, expected, (expected.margins, ~expected.kept, expected.dropped))
    with pytest.raises(harness.PeerError, match=r"drops \{.*'max_score': 0.*\} but gplfast drops"):
        check(other, expected, (expected.margins, expected.kept, {**expected.dropped, "max_score": 0}))


def test_scores_in_float64():
    docs = np.array([[3, 4], [0, 0], [1, 0]], np.float32)
    rows, ids = np.array([0, 0, 0]), np.array([0, 1, 2])
    found = scores.pair_scores(docs, docs, rows, ids, "ip")
    np.testing.assert_array_equal(found, [[25, 0, 3], [25, 0, 5]])
    np.testing.assert_allclose(scores.pair_scores(docs, docs, rows, ids, "cosine"), [[1, 0, 0.6], [1, 1, 1]])


# ---- the parts


def test_memory_is_read_and_said(monkeypatch):
    assert memory.available_bytes() > 2**20
    assert memory.in_words(3 * 2**29) == "1.5 GiB"
    assert memory.in_words(1023) == "1023 bytes"
    monkeypatch.setattr(memory, "available_bytes", lambda: 2**30)
    memory.refuse_too_large("rows", 2**30, "ask for fewer")
    with pytest.raises(gplfast.errors.ConfigError, match=r"rows need 2.0 GiB of memory but 1.0 GiB are available; ask"):
        memory.refuse_too_large("rows", 2**31, "ask for fewer")


def test_a_call_s_memory_is_measured():
    if not memory.forget_peak():
        pytest.skip("the system does not let a process reset its peak")
    # In a process of its own: here freed memory may be kept, as training asks for, and used again.
    code = (
        "import numpy as np; from gplfast.bench import harness\n"
        "system = harness.System('large', {'': lambda: np.ones(2**24, np.float64).sum()})\n"
        "print(harness.compare_and_time([system], lambda *_: {}, 1)['large'].extra_bytes)"
    )
    made = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 2**26 < int(made.stdout) < 2**28


def test_the_fastest_setting_is_timed_and_threads_are_held():
    import time

    calls = []
    system = harness.System("s", {"slow": lambda: time.sleep(0.2), "fast": lambda: calls.append(1)})
    assert harness.compare_and_time([system], lambda *_: {}, 1)["s"].setting == "fast"
    assert len(calls) > 2
    torch = pytest.importorskip("torch", reason="the train extra is not installed")
    before = torch.get_num_threads()
    with harness.same_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_drawn_workloads_are_the_same_for_a_seed():
    docs = workloads.clustered(50, 8, 1)
    np.testing.assert_array_equal(docs, workloads.clustered(50, 8, 1))
    np.testing.assert_allclose(np.linalg.norm(docs, axis=1), 1, rtol=1e-5)
    before = docs.copy()
    workloads.plant_copies(docs, 0.2, 1)
    assert (docs != before).any(axis=1).sum() == 10
    assert inputs.DEFAULT_DIM == 384
    assert report.aligned([["a", "b"], ["long", "c"]]) == ["a     b", "----  -", "long  c"]
