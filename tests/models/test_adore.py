"""ADORE: the query encoder trained against all documents; the documents stay where they are."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import tiny

from gplfast.config import TrainConfig
from gplfast.models.training_rows import Examples
from gplfast.store.generated import GeneratedQueries

pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")

from gplfast import adapt  # noqa: E402
from gplfast.models import BiEncoder, adore, training_rows  # noqa: E402
from gplfast.models import student as students  # noqa: E402
from gplfast.models.checkpoint import fingerprint  # noqa: E402
from gplfast.stages import train  # noqa: E402

CONFIG = TrainConfig(
    loss="adore", similarity="dot", max_seq_length=16, precision="fp32", batch_size=6, warmup_steps=1, steps=30
)


def by_hand(scores, positives, top, cut):
    """Loops over ranks and pairs as the paper's code has them.

    Args:
        scores: (n, n_documents), of the query with every document.
        positives: for each query the set of its documents, the first its own.
    """
    losses = []
    for row, own in zip(scores, positives, strict=True):
        ranked = sorted(range(len(row)), key=lambda doc: (-row[doc], doc))[:top]
        if not set(ranked) & set(own):
            ranked.append(own[0])
        gains = [1 / rank if rank <= cut else 0.0 for rank in range(1, len(ranked) + 1)]
        pairs = [
            abs(gains[i] - gains[j]) * np.log1p(np.exp(row[other] - row[near]))
            for i, near in enumerate(ranked)
            for j, other in enumerate(ranked)
            if near in own and other not in own
        ]
        losses.append(np.mean(pairs))
    return np.mean(losses)


def test_a_ranking_by_hand():
    """Positive at rank 2 of 3: (1 - 1/2) log(1 + e^(3-2)) and (1/2 - 1/3) log(1 + e^(1-2)), their mean."""
    import torch

    scores = torch.tensor([[3.0, 2.0, 1.0, 2.0]])
    near = torch.tensor([[False, True, False, False]])
    far = torch.tensor([[True, False, True, False]])
    wanted = (0.5 * np.log1p(np.exp(1)) + (1 / 2 - 1 / 3) * np.log1p(np.exp(-1))) / 2
    assert float(adore.pair_loss(scores, near, far, 3)) == pytest.approx(wanted, rel=1e-6)
    beyond = (0.5 * np.log1p(np.exp(1)) + 1 / 2 * np.log1p(np.exp(-1))) / 2  # rank 3 counts as 0
    assert float(adore.pair_loss(scores, near, far, 2)) == pytest.approx(beyond, rel=1e-6)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize(("top", "cut"), [(3, 3), (5, 2), (40, 200), (200, 10)])
def test_the_loss_is_that_of_the_full_ranking(world, similarity, top, cut):
    import torch

    config = dataclasses.replace(CONFIG, similarity=similarity, search_top=top, metric_cut=cut)
    queries, passages = tiny.texts(6, seed=1), tiny.texts(40, seed=2)
    students.prepare(0, 1)
    student = students.open_student(world.student, config).eval()
    documents, vectors = (np.asarray(student.encode(part), np.float32) for part in (passages, queries))
    groups = np.arange(40)
    groups[[7, 9]] = 3  # three passages say the same
    own = np.array([3, 0, 11, 20, 39, 9])
    rows = Examples(
        queries.__getitem__, passages.__getitem__, np.arange(6), own, passage_groups=groups, documents=documents
    )
    data = training_rows.dataset(rows, config)
    assert data.column_names == ["query", "label"]
    batch = training_rows.collator(student, rows)([data[i] for i in range(6)])
    label = batch.pop("label")
    features = {key.removeprefix("query_"): tensor for key, tensor in batch.items() if key.endswith(("ids", "mask"))}
    with torch.no_grad():
        found = float(training_rows.loss(student, config, rows)([features], label))
    scores = vectors.astype(np.float64) @ documents.astype(np.float64).T
    if similarity == "cosine":
        scores /= np.linalg.norm(vectors, axis=1)[:, None] * np.linalg.norm(documents, axis=1)[None]
        scores *= 20.0
    same = [[int(groups[doc]), *np.flatnonzero(groups == groups[doc]).tolist()] for doc in own]
    assert found == pytest.approx(by_hand(scores, same, top, cut), rel=1e-3)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
@pytest.mark.parametrize("lost", [5, 39])
def test_a_document_without_a_vector_is_no_negative(world, similarity, lost):
    """A search for more than there are ends in -1, which indexes the last document."""
    import torch

    config = dataclasses.replace(CONFIG, similarity=similarity, search_top=40, metric_cut=40)
    queries, passages = tiny.texts(6, seed=1), tiny.texts(40, seed=2)
    students.prepare(0, 1)
    student = students.open_student(world.student, config).eval()
    documents = np.asarray(student.encode(passages), np.float32)
    documents[lost] = np.nan

    def of(documents, own):
        rows = Examples(queries.__getitem__, passages.__getitem__, np.arange(6), own, documents=documents)
        data = training_rows.dataset(rows, config)
        batch = training_rows.collator(student, rows)([data[i] for i in range(6)])
        label = batch.pop("label")
        features = {key.removeprefix("query_"): part for key, part in batch.items() if key.endswith(("ids", "mask"))}
        with torch.no_grad():
            return float(training_rows.loss(student, config, rows)([features], label))

    own = np.array([3, 0, 11, 20, 38, 9])
    found, wanted = of(documents, own), of(np.delete(documents, lost, axis=0), own - (own > lost))
    assert np.isfinite(wanted)
    assert found == pytest.approx(wanted, rel=1e-6)
    own[2] = lost  # nothing is learnt from a query whose positive has none
    assert 0 < of(documents, own) < np.inf


def test_the_passage_that_a_query_was_cut_from_is_no_negative(world):
    import torch

    config = dataclasses.replace(CONFIG, search_top=40, metric_cut=1)  # only pairs with the first rank weigh
    queries, passages = tiny.texts(6, seed=1), tiny.texts(40, seed=2)
    students.prepare(0, 1)
    student = students.open_student(world.student, config).eval()
    documents, vectors = (np.asarray(student.encode(part), np.float32) for part in (passages, queries))
    first, own = np.argmax(vectors @ documents.T, axis=1), np.argmin(vectors @ documents.T, axis=1)

    def of(sources):
        rows = Examples(
            queries.__getitem__, passages.__getitem__, np.arange(6), own, source_groups=sources, documents=documents
        )
        data = training_rows.dataset(rows, config)
        batch = training_rows.collator(student, rows)([data[i] for i in range(6)])
        label = batch.pop("label")
        features = {key.removeprefix("query_"): part for key, part in batch.items() if key.endswith(("ids", "mask"))}
        with torch.no_grad():
            return float(training_rows.loss(student, config, rows)([features], label))

    assert of(own) == of(None) > 0
    assert of(first) == 0


def test_training_moves_queries_towards_documents_that_stay(tmp_path, world):
    """The model that is written encodes documents as the base did, and queries better; kill and resume are GenQ's."""
    corpus, queries = tiny.corpus(12), GeneratedQueries(tiny.texts(6, seed=3), np.arange(6, dtype=np.int64))
    config = dataclasses.replace(CONFIG, learning_rate=1e-3)
    wanted = train.manifest({}, fingerprint(world.student), config, "adore", 0)
    seen = []

    def documents(path):
        seen.append(path)
        encoder = BiEncoder.open(path, cache_dir=world.cache, threads=1)
        return encoder.encode(corpus.texts(range(12)), kind="document")

    path = train.train(
        lambda: train.from_queries(corpus, queries),
        world.student,
        tmp_path,
        wanted,
        config,
        seed=0,
        threads=1,
        documents=documents,
    )
    assert seen == [tmp_path / "documents"]
    assert not seen[0].exists()
    losses = [step["loss"] for step in json.loads((tmp_path / "training.json").read_text())["losses"]]
    assert np.mean(losses[-6:]) < 0.8 * np.mean(losses[:6])
    after = BiEncoder.open(path, cache_dir=world.cache, threads=1)
    before = BiEncoder.open(path / "documents", cache_dir=world.cache, threads=1)
    texts = corpus.texts(range(12))
    assert np.array_equal(after.encode(texts, kind="document"), before.encode(texts, kind="document"))
    assert not np.allclose(after.encode(queries.texts, kind="query"), before.encode(queries.texts, kind="query"))
    assert after.fingerprint.endswith(f" documents={before.fingerprint}")

    def ranks(encoder):
        scores = encoder.encode(queries.texts, kind="query") @ before.encode(texts, kind="document").T
        return (scores > scores[np.arange(6), np.arange(6)][:, None]).sum(axis=1).mean()

    assert ranks(after) < ranks(before)


def test_a_whole_run_measures_queries_and_documents_each_with_their_own_encoder(tmp_path, world, cache):
    settings = world.settings(genq={"loss": "adore", "search_top": 10}, students=["genq"])
    made = adapt(world.corpus, work=tmp_path, config=settings, evaluate=True)
    assert (made.model / "documents" / "modules.json").is_file()
    assert set(made.report["systems"]) >= {"zero-shot", "genq"}
    embedded = sorted(path.name for path in (tmp_path / "embeddings").iterdir())
    adapt(world.corpus, work=tmp_path, config=settings, evaluate=True)
    assert embedded == sorted(path.name for path in (tmp_path / "embeddings").iterdir())
