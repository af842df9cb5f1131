"""The preset nano and the demo's collection, as they are in the package."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import gplfast
from gplfast.store.corpus import load_corpus, load_queries
from gplfast.store.qrels import load_qrels

PRESETS = Path(gplfast.__file__).parent / "presets"
LIMIT_BYTES = 48_000_000

SAMPLES = [
    "Gravity Gravity is the force by which a planet draws objects toward its center. It keeps the planets in orbit.",
    "Bread Bread is a staple food prepared from a dough of flour and water, usually by baking it in an oven.",
]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of its own: the models are unpacked and exported as on a new machine."""
    return tmp_path_factory.mktemp("cache")


def test_bundle_is_small_and_documented() -> None:
    nano = PRESETS / "nano"
    size = sum(path.stat().st_size for path in nano.rglob("*") if path.is_file())
    assert size <= LIMIT_BYTES
    card = (nano / "README.md").read_text(encoding="utf-8")
    for word in ("Licence", "CC BY-SA", "Apache-2.0", "MIT", "train_generator.py"):
        assert word in card


def test_bundle_has_no_pickles_and_is_readable() -> None:
    for path in (PRESETS / "nano").rglob("*"):
        assert path.suffix not in {".bin", ".pt", ".pkl"}
        assert path.stat().st_mode & 0o044, f"{path} is readable by its owner only"


def test_teacher_prefers_the_passage_that_answers(cache: Path) -> None:
    from gplfast.models import CrossEncoder

    teacher = CrossEncoder.open("nano:teacher", cache_dir=cache)
    query = "what keeps the planets in orbit"
    scores = teacher.score([query, query], SAMPLES)
    assert scores[0] > scores[1] + 1


def test_student_prefers_the_passage_that_answers(cache: Path) -> None:
    from gplfast.models import BiEncoder

    student = BiEncoder.open("nano:student", cache_dir=cache)
    assert student.similarity == "cosine"
    passages = student.encode(SAMPLES, kind="document")
    queries = student.encode(["how is bread made", "what keeps the planets in orbit"], kind="query")
    hits = gplfast.search(queries, passages, 1, metric="cosine")
    np.testing.assert_array_equal(hits.ids, [[1], [0]])


def test_generator_writes_about_its_passage(cache: Path) -> None:
    from gplfast.models import QueryGenerator, Sampling

    generator = QueryGenerator.open("nano:generator", cache_dir=cache)
    drawn = generator.generate(SAMPLES, 4, sampling=Sampling(max_new_tokens=32), seed=0, items=[0, 1])
    for passage, queries in zip(SAMPLES, drawn, strict=True):
        words = set(passage.lower().replace(".", "").split()) - {"the", "of", "a", "is", "and", "by", "it", "in"}
        assert all(queries)
        assert sum(bool(words & set(query.split())) for query in queries) >= 3


def test_demo_collection_is_whole() -> None:
    corpus = load_corpus(PRESETS / "demo")
    queries = load_queries(PRESETS / "demo")
    qrels = load_qrels(PRESETS / "demo", "test", corpus, queries)
    assert len(corpus) == len(queries) == len(qrels) == 1088
    assert "CC BY 4.0" in (PRESETS / "demo" / "README.md").read_text(encoding="utf-8")
