"""Runs of the step generate that the tests of its methods share."""

from __future__ import annotations

import pyarrow as pa
import tiny

from gplfast.config import GenerateConfig
from gplfast.positive_settings import METHODS, T5
from gplfast.stages import generate
from gplfast.store.corpus import load_corpus
from gplfast.store.manifest import Manifest

OTHERS = ("neighbours", "spans", "bm25")


WITHOUT = [method for method in METHODS if method != T5]


def stories(n=12, n_words=40, n_parts=3):
    """Documents of parts in a row under one title: sentences of random words, and one phrase in all parts."""
    texts = []
    for row in range(n):
        sentences = [" ".join(text.split()[:-1]).capitalize() for text in tiny.texts(n_words // 6, seed=row)]
        sentences.insert(row % 4, f"Here the red king of house {row // n_parts} was")
        texts.append(". ".join(sentences) + ".")
    titles = [f"Story number {row // n_parts}" for row in range(n)]
    return load_corpus(pa.table({"_id": [f"d{row}" for row in range(n)], "title": titles, "text": texts}))


def run(corpus, folder, method, *, seed=0, given=None, open_model=None, **options):
    config = GenerateConfig(method=method, **{"queries_per_passage": 3, **options})
    model = "encoder" if open_model is not None else ""
    wanted = generate.manifest(
        corpus.fingerprint, model, config, seed, given="" if given is None else given.fingerprint
    )
    found = generate.generate(corpus, folder, wanted, config, open_model or no_model, seed=seed, given=given)
    return found, Manifest.read(folder)


def no_model():
    raise AssertionError("a model was asked for")


def encoder():
    return tiny.HashEncoder()


def options(method):
    return {"open_model": encoder, "salient_by": "encoder"} if method == "salient" else {}
