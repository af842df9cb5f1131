"""The formats that mining and export write, by name."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np

from gplfast.errors import ConfigError
from gplfast.interop import dpr, flag_embedding, gpl, negminer, sentence_transformers, tevatron, trec
from gplfast.interop.examples import examples
from gplfast.labelled_settings import FORMATS
from gplfast.mining.sampling import permutation
from gplfast.store.corpus import Queries
from gplfast.store.negatives import Negatives, RankedLists

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from gplfast.interop.sentence_transformers import Layout
    from gplfast.store.mined import Mined

logger = logging.getLogger(__name__)
_ST = "sentence-transformers-"


@dataclass(frozen=True)
class Output:
    """What is written, and how.

    Attributes:
        candidates: All candidates: what negminer's documented lines hold.
        kept: What the rule left of them: what all other files hold.
        dropped: By the rule, see `negminer.apply`. Empty: there was no rule; negminer's negatives then follow its own.
        doc_doc_cos: negminer's lines have the square matrix.
        scores: Datasets of sentence-transformers have scores where they are known.
        file_type: Of these, "parquet" or "jsonl".
        negatives: Per query; what an n-tuple has. 0: as many as half the queries have.
        seed: Of the order of GPL's training data.
    """

    candidates: Mined
    kept: Mined
    dropped: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    doc_doc_cos: bool = True
    scores: bool = True
    file_type: str = "parquet"
    negatives: int = 0
    seed: int = 0


def write(names: Sequence[str], folder: str | Path, output: Output) -> list[Path]:
    """Write some formats into a folder; each file is there whole or not at all.

    Returns:
        The files.

    Raises:
        ConfigError: A name is unknown, or what a format must have is not known (cosines, scores).
        DataError: An id cannot be held by a format.
    """
    check(names)
    files: list[Path] = []
    for name in dict.fromkeys(names):
        files += _WRITERS[name](Path(folder), output, name)
    return files


def check(names: Sequence[str], *, cosines: bool = True, scores: bool = True) -> None:
    """Refuse before any work what `write` would refuse after it.

    Args:
        names: The formats.
        cosines: Whether there will be cosines.
        scores: Whether there will be cosines or scores of a teacher.

    Raises:
        ConfigError: A name is unknown, or a format needs what there will not be.
    """
    for name in names:
        if name not in FORMATS:
            raise ConfigError(f"format is {name!r} but must be one of {', '.join(FORMATS)}")
        if name == "negminer" and not cosines:
            raise ConfigError(f"{name}: negminer's lines need cosines; mine judged queries with an encoder")
        if name in (f"{_ST}margins", "trec") and not scores:
            what = "a TREC run needs scores" if name == "trec" else "margins need scores"
            raise ConfigError(f"{name}: {what}; give a teacher, or mine judged queries with an encoder")


def _gpl(folder: Path, output: Output, name: str) -> list[Path]:
    """GPL's files; with teacher scores every negative is a row of the training data, once with each positive."""
    mined, folder = output.kept, folder / name
    queries, positives, negatives = Queries.from_lists(mined.ids, mined.texts), mined.positives, mined.negatives
    files = [folder / name for name in ("corpus.jsonl", gpl.QUERIES_FILE, gpl.QRELS_FILE, gpl.HARD_NEGATIVES_FILE)]
    gpl.write_corpus(files[0], mined.corpus)
    gpl.write_queries(files[1], queries)
    qrels = {
        name: {
            mined.corpus.ids[doc]: grade
            for doc, grade in zip(mined.docs[start:stop].tolist(), mined.grades[start:stop].tolist(), strict=True)
            if grade > 0
        }
        for name, start, stop in zip(mined.ids, mined.indptr[:-1].tolist(), mined.indptr[1:].tolist(), strict=True)
    }
    gpl.write_qrels(files[2], qrels)
    lists = {"mined": RankedLists(negatives.indptr, negatives.docs)}
    found = Negatives(np.arange(len(mined), dtype=np.int64), lists)
    gpl.write_hard_negatives(files[3], gpl.HardNegatives(found, positives), mined.corpus, queries)
    if mined.teacher is not None:
        files.append(folder / gpl.TRAINING_DATA_FILE)
        gpl.write_training_data(files[-1], _training_data(mined, output.seed), mined.corpus, queries)
    return files


def _training_data(mined: Mined, seed: int) -> gpl.TrainingData:
    """Every pair of a positive and a negative, in an order drawn at random: GPL trains in the order of the file."""
    positives, negatives = mined.positives, mined.negatives
    assert positives.scores is not None
    assert negatives.scores is not None
    counts = np.diff(positives.indptr) * np.diff(negatives.indptr)
    owners = np.repeat(np.arange(len(mined), dtype=np.int64), counts)
    within = np.arange(len(owners)) - np.repeat(np.cumsum(counts) - counts, counts)
    n_negatives = np.diff(negatives.indptr)[owners]
    at = positives.indptr[owners] + within // np.maximum(n_negatives, 1)
    against = negatives.indptr[owners] + within % np.maximum(n_negatives, 1)
    margins = positives.scores[at] - negatives.scores[against]
    order = permutation(seed, "gplrows", 0, len(margins))
    known = order[np.isfinite(margins[order])]
    columns = (owners[known], positives.docs[at][known], negatives.docs[against][known])
    return gpl.TrainingData(*columns, margins[known].astype(np.float32))


def _negminer(folder: Path, output: Output, _: str) -> list[Path]:
    files = [folder / negminer.CANDIDATES_FILE, folder / negminer.NEGATIVES_FILE]
    mined, kept, dropped = output.candidates, output.kept, output.dropped
    negminer.write_candidates(
        files[0], examples(mined, matrix=output.doc_doc_cos and mined.vectors is not None, empty=True)
    )
    if not dropped:
        kept, dropped = negminer.apply(negminer.Rule(), mined)
    negminer.write_negatives(files[1], examples(kept, empty=True), dropped)
    return files


def _sentence_transformers(folder: Path, output: Output, name: str) -> list[Path]:
    path = folder / f"{name}.{output.file_type}"
    layout = cast("Layout", name.removeprefix(_ST))
    scores = output.kept.scores is not None and (output.scores or layout == "margins")
    kept = _scored(output.kept) if scores else output.kept
    width = _width(path, kept, output.negatives) if layout == "n-tuple" else output.negatives
    sentence_transformers.write(path, examples(kept), layout, scores=scores, negatives=width)
    return [path]


def _width(path: Path, mined: Mined, wanted: int) -> int:
    """Negatives of an n-tuple: as many as are wanted, or as at least half the queries have; what is cut is said."""
    positives, counts = np.diff(mined.positives.indptr), np.diff(mined.negatives.indptr)
    counts = np.sort(counts[(positives > 0) & (counts > 0)])
    width = wanted or (int(counts[len(counts) // 2]) if len(counts) else 1)
    cut, short = int(np.maximum(counts - width, 0).sum()), int((counts < width).sum())
    if cut or short:
        logger.warning(
            "%s: tuples of %d negatives leave out %d negatives of other queries and %d of %d queries, which have fewer",
            path,
            width,
            cut,
            short,
            len(counts),
        )
    return width


def _scored(mined: Mined) -> Mined:
    """Without the candidates that the teacher gave no score: what reads scores needs one of each."""
    return mined if mined.scores is None else mined.only(np.isfinite(mined.scores))


def _flag_embedding(folder: Path, output: Output, _: str) -> list[Path]:
    flag_embedding.write(folder / flag_embedding.FILE, examples(_scored(output.kept)))
    return [folder / flag_embedding.FILE]


def _tevatron(folder: Path, output: Output, name: str) -> list[Path]:
    if name == "tevatron-legacy":
        tevatron.write_legacy(folder / tevatron.LEGACY_FILE, examples(output.kept))
        return [folder / tevatron.LEGACY_FILE]
    tevatron.write_corpus(folder / tevatron.CORPUS_FILE, output.kept.corpus)
    tevatron.write(folder / tevatron.TRAIN_FILE, examples(output.kept))
    return [folder / tevatron.TRAIN_FILE, folder / tevatron.CORPUS_FILE]


def _dpr(folder: Path, output: Output, _: str) -> list[Path]:
    dpr.write(folder / dpr.FILE, examples(output.kept))
    return [folder / dpr.FILE]


def _trec(folder: Path, output: Output, _: str) -> list[Path]:
    trec.write_run(folder / trec.RUN_FILE, examples(output.kept, empty=True))
    trec.write_qrels(folder / trec.QRELS_FILE, examples(output.kept, empty=True))
    return [folder / trec.RUN_FILE, folder / trec.QRELS_FILE]


_WRITERS: dict[str, Callable[[Path, Output, str], list[Path]]] = {
    "negminer": _negminer,
    "gpl": _gpl,
    **{f"{_ST}{layout}": _sentence_transformers for layout in sentence_transformers.LAYOUTS},
    "flag-embedding": _flag_embedding,
    "tevatron": _tevatron,
    "tevatron-legacy": _tevatron,
    "dpr": _dpr,
    "trec": _trec,
}
