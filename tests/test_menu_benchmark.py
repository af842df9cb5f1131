"""benchmarks/menu.py with tiny models: rows are kept as they are made, and a second call makes what is missing."""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path

import pytest

from gplfast.config import load_config

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(not (BENCHMARKS / "menu.py").is_file(), reason="benchmarks/ is not part of this installation"),
]


@pytest.fixture
def menu(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    for name in ("machine", "menu_variants", "menu", "report"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield importlib.import_module("menu")
    for name in ("machine", "menu_variants", "menu", "report"):
        sys.modules.pop(name, None)


def call(menu, monkeypatch, world, tmp_path, *arguments):
    settings = world.settings(mine={"retrievers": ["bm25"]})
    (tmp_path / "tiny.yaml").write_text(json.dumps(settings))
    flags = {"--data": world.corpus.parent, "--collection": world.corpus.name, "--work": tmp_path / "work"}
    flags |= {"--out": tmp_path / "menu.json", "--config": tmp_path / "tiny.yaml", "--steps": 4}
    monkeypatch.setattr(sys, "argv", ["menu.py", *(str(part) for pair in flags.items() for part in pair), *arguments])
    menu.main()
    return json.loads((tmp_path / "menu.json").read_text()) if (tmp_path / "menu.json").is_file() else None


def test_rows_are_made_once_and_shown(menu, monkeypatch, world, cache, tmp_path):
    names = ["zero-shot", "GPL", "R-GPL, 3 refreshes", "GPL from it, the other half", "GPL, best of ten steps"]
    made = call(menu, monkeypatch, world, tmp_path, "--only", *names)
    rows = {row["name"]: row for row in made["rows"]}
    # The row that another one starts from is made too, in the menu's order.
    assert list(rows) == [*names[:3], "GenQ, half the steps", *names[3:]]
    assert rows["GPL"]["counts"]["train: steps"] == 4
    assert rows["GenQ, half the steps"]["counts"]["train: steps"] == 2
    assert rows["GPL"]["p"] is None
    assert 0 <= rows["GPL, best of ten steps"]["p"] <= 1
    assert 0 <= rows["GPL"]["false_negatives"] <= 1
    assert set(rows["GPL"]["seconds"]) == {"mine", "label", "train"}
    assert rows["R-GPL, 3 refreshes"]["counts"]["train: refreshes"] == 3
    assert "train: best step" in rows["GPL, best of ten steps"]["counts"]
    table = importlib.import_module("report").menu(made)
    assert all(f"| {name} | {rows[name]['nDCG@10']:.3f} |" in table for name in rows)
    monkeypatch.setattr(menu.Menu, "run", lambda *_: pytest.fail("made a second time"))
    assert call(menu, monkeypatch, world, tmp_path, "--only", *names) == made


def test_negatives_of_a_row_are_those_that_it_was_trained_on(menu, world, cache, tmp_path):
    budget = menu.Budget(4, 60, 4)
    (tmp_path / "tiny.yaml").write_text(json.dumps(world.settings(mine={"retrievers": ["bm25"]})))
    rows = menu.Menu(world.corpus, tmp_path, tmp_path / "menu.json", budget, tmp_path / "tiny.yaml")
    gpl = next(variant for variant in menu.VARIANTS if variant.name == "GPL")
    pipeline = menu.Pipeline(world.corpus, tmp_path / "work", rows.config(gpl))
    with pipeline.work:
        pipeline.run()
        margins = pipeline.margins()
        assert menu.trained_rows(pipeline, "gpl").tolist() == [
            list(row) for row in zip(margins.queries, margins.positives, margins.negatives, strict=True)
        ]
        audited = menu.audit(pipeline, "gpl")
        assert audited["false_negatives"] == pytest.approx((margins.margins <= 0).mean())
        assert audited["positive_score"] - audited["negative_score"] == pytest.approx(margins.margins.mean(), abs=1e-4)
        in_batch = menu.trained_rows(pipeline, "genq")
        assert (pipeline.queries().passages[in_batch[:, 0]] == in_batch[:, 1]).all()
        assert (in_batch[:, 1] != in_batch[:, 2]).all()


def test_every_row_has_a_name_of_its_own_and_settings_that_exist(menu):
    names = [variant.name for variant in menu.VARIANTS]
    assert len(set(names)) == len(names)
    rows = menu.Menu(Path("collection"), Path("work"), Path("menu.json"), menu.Budget(100, 1500), None)
    for variant in menu.VARIANTS:
        config = rows.config(variant)
        assert config.train.batch_size in (32, 128)
        assert config != load_config()
    assert {variant.base for variant in menu.VARIANTS} <= {"", *names}


def test_an_unknown_row_is_refused(menu, monkeypatch, world, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(menu, monkeypatch, world, tmp_path, "--only", "dence")
    assert "no row is named dence" in capsys.readouterr().err
