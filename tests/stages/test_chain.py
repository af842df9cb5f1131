"""A step on its own takes what is on disk, but only where each artifact was made from the ones that are there."""

from __future__ import annotations

import pytest
import tiny

from gplfast.artifacts import Artifacts
from gplfast.config import load_config
from gplfast.errors import ArtifactError
from gplfast.store.manifest import Manifest


def made(work, corpus, step, seed, **inputs):
    manifest = Manifest(step, inputs={"corpus": corpus.fingerprint, **inputs}, config={"seed": seed})
    (work / step).mkdir(exist_ok=True)
    manifest.write(work / step)
    return manifest.key


@pytest.fixture
def chain(tmp_path):
    """Finished artifacts of three steps, as manifests only, and the view of a step on its own."""
    corpus = tiny.corpus(5)
    queries = made(tmp_path, corpus, "generate", 0)
    negatives = made(tmp_path, corpus, "mine", 0, queries=queries)
    made(tmp_path, corpus, "label", 0, queries=queries, negatives=negatives)
    return tmp_path, corpus, Artifacts(corpus, tmp_path, load_config(), alone=True)


def test_a_whole_chain_is_taken(chain):
    _, corpus, view = chain
    assert view._input("label").inputs["corpus"] == corpus.fingerprint


def test_negatives_of_other_queries_are_not_labelled(chain):
    """generate, mine, generate --seed 1, label: old negatives would have been scored for new queries."""
    work, corpus, view = chain
    queries = made(work, corpus, "generate", 1)
    for look, step in (
        (view.wanted, "label"),
        (view._input, "mine"),
        (view._input, "label"),
        (view.wanted, "train gpl"),
    ):
        with pytest.raises(ArtifactError, match=r"was made from other queries; run `gplfast (mine|label)` again"):
            look(step)
    negatives = made(work, corpus, "mine", 0, queries=queries)
    assert view._input("mine").key == negatives
    with pytest.raises(ArtifactError, match=r"label was made from other queries; run `gplfast label` again"):
        view._input("label")


def test_margins_of_other_negatives_are_not_trained_on(chain):
    work, corpus, view = chain
    made(work, corpus, "mine", 1, queries=view._input("generate").key)
    with pytest.raises(ArtifactError, match=r"label was made from other negatives; run `gplfast label` again"):
        view.wanted("train gpl")


def test_margins_whose_negatives_are_made_from_other_queries_are_not_trained_on(chain):
    work, corpus, view = chain
    queries = view._input("generate").key
    negatives = made(work, corpus, "mine", 0, queries="other")
    made(work, corpus, "label", 0, queries=queries, negatives=negatives)
    with pytest.raises(ArtifactError, match=r"mine was made from other queries; run `gplfast mine` again"):
        view.wanted("train gpl")
