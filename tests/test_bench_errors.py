from __future__ import annotations

import json
import re
import sys

import numpy as np
import pytest
from tiny import run_cli as run

# The peers' own warnings are theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["search", "--docs", "0"], "--docs: '0' is not a whole number of at least 1"),
        (["search", "--threads", "two"], "--threads: 'two' is not a whole number of at least 1"),
        (["dedup", "--threshold", "nan"], "--threshold: 'nan' is not a finite number"),
        (["dedup", "--copies", "1"], "--copies is 1.0 but must be from 0 to below 1"),
        (["search", "--docs", "9", "--k", "10"], "--k is 10 but there are 9 documents; ask for at most as many"),
        (["search", "--docs", "9", "--k", "3", "--isas", "sse9"], "instruction set 'sse9' is not available here"),
        (["search", "--peers", "fais"], "--peers names fais but must be one of faiss, torch"),
        (["search", "--sweep", "k", "--isas", "scalar"], "--isas has no effect: --sweep times gplfast alone"),
        (["search", "--docs", "9", "--k", "1", "--sweep", "k"], "leaves 1 value but needs 2"),
        (["search", "--query-embeddings", "q.npy"], "--query-embeddings is given but --embeddings is not"),
        (["search", "--embeddings", "no.npy"], "no.npy: No such file"),
        (["search", "--embeddings", "text.npy"], "text.npy: is no .npy file"),
        (["search", "--embeddings", "double.npy"], "double.npy: has dtype float64 but float32 in C order is needed"),
        (["search", "--embeddings", "line.npy"], r"line.npy: has shape \(3,\) but needs rows and columns"),
        (["search", "--embeddings", "nan.npy", "--k", "1"], "nan.npy: row 1 has NaN or infinity"),
        (["search", "--embeddings", "nan.npy", "--dim", "3"], "--dim has no effect"),
        (["margins", "--ranks", "3", "3"], "--ranks is 3 3 but must be 0 <= FIRST < END"),
        (["search", "--json", "nowhere/out.json"], "--json is nowhere/out.json but there is no folder nowhere"),
        (["search", "--plot", "out.bmp"], "--plot is out.bmp but must end in .png, .svg, .pdf"),
        (["search", "--docs", "10000000000"], "10000000000 documents x 384 need .* GiB of memory but .* available"),
        (["margins", "--queries", "100000000000"], "5000000000000 negatives .* ask for fewer with --queries"),
        (["sort"], "argument operation: invalid choice: 'sort'"),
        ([], "the following arguments are required: operation"),
    ],
)
def test_bad_arguments_are_one_line_and_status_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.npy").write_text("no vectors")
    np.save("double.npy", np.zeros((2, 2)))
    np.save("line.npy", np.zeros(3, np.float32))
    np.save("nan.npy", np.array([[1, 2], [np.nan, 1]], np.float32))
    before = sorted(tmp_path.iterdir())
    peers = ["--peers", "none"] if arguments[:1] in (["search"], ["dedup"]) and "--peers" not in arguments else []
    peers = [] if "--sweep" in arguments else peers
    status, out, err = run(capsys, "bench", *arguments, *peers, "--quiet")
    assert (status, out, err.count("\n")) == (2, "", 1), err
    assert re.search(message, err), err
    assert sorted(tmp_path.iterdir()) == before


def test_query_files_that_do_not_fit(capsys, tmp_path):
    np.save(tmp_path / "docs.npy", np.ones((9, 4), np.float32))
    np.save(tmp_path / "q.npy", np.ones((2, 4), np.float32))
    np.save(tmp_path / "wide.npy", np.ones((2, 5), np.float32))
    common = ["bench", "search", "--embeddings", tmp_path / "docs.npy", "--k", "2", "--peers", "none", "--quiet"]
    _, _, err = run(capsys, *common, "--query-embeddings", tmp_path / "q.npy", "--queries", "1", "3")
    assert "--queries asks for 3 but" in err
    _, _, err = run(capsys, *common, "--query-embeddings", tmp_path / "wide.npy", "--queries", "1")
    assert "wide.npy has dim=5 but the documents have dim=4" in err


def test_a_peer_that_is_not_installed(capsys, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "usearch", None)
    small = ["search", "--docs", "30", "--dim", "8", "--queries", "2", "--k", "2"]
    file = tmp_path / "out.json"
    _, out, _ = run(capsys, "bench", *small, "--repeats", "1", "--peak-seconds", "0", "--quiet", "--json", file)
    assert json.loads(file.read_text())["missing"]["usearch"] == ["usearch"]
    assert "not compared: usearch (pip install usearch, or 'gplfast[bench]')" in out
    status, _, err = run(capsys, "bench", *small, "--peers", "usearch", "--quiet")
    assert status == 2
    assert "--peers names usearch but usearch cannot be imported; install gplfast[bench] or leave it out" in err
