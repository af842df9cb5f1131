"""Mining for labelled data: queries with judgements in place of generated ones."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gplfast.errors import DataError
from gplfast.mining import dense
from gplfast.mining.lists import from_sequences
from gplfast.mining.scoring import scorer_of, stores_of
from gplfast.pipeline import Pipeline
from gplfast.report import BM25
from gplfast.stages import candidates
from gplfast.store.corpus import load_queries
from gplfast.store.labelled import LabelledQueries
from gplfast.store.manifest import Manifest
from gplfast.store.mined import Vectors
from gplfast.store.qrels import load_qrels

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from gplfast.artifacts import Report
    from gplfast.config import RunConfig
    from gplfast.labelled_settings import LabelledConfig
    from gplfast.mining.scoring import PairScorer
    from gplfast.stages.candidates import Judged
    from gplfast.store.mined import Mined

logger = logging.getLogger(__name__)
_UNCUT = 1 << 30  # tokens, more than any text has: the teacher cuts the pair where its own window ends


class Sources(NamedTuple):
    """Where labelled data are.

    Attributes:
        corpus: As of `load_corpus`.
        queries: As of `load_queries`; None: the corpus' folder.
        qrels: A file, or a folder with qrels/<split>.tsv; None: the queries' folder, else the corpus'.
    """

    corpus: Any
    queries: str | Path | None = None
    qrels: str | Path | None = None


class Labelled(Pipeline):
    """The steps `mine` and `candidates` of labelled queries, in the folder labelled/ of a work directory.

    Embeddings and scores of the teacher are where all steps have them, so a run of the pipeline uses them too.
    """

    def __init__(
        self,
        sources: Sources,
        work: str | Path,
        config: RunConfig,
        labelled: LabelledConfig,
        *,
        teacher: bool = False,
        report: Report | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            sources: Where the data are.
            work: The work directory.
            config: The settings of a run; `mine`, `filter`, `label` and the general ones are used, but for
                `label.max_seq_length`, which is GPL's: here `labelled.teacher_tokens` says it.
            labelled: The settings beside them.
            teacher: Whether candidates are scored with the model of `label`.
            report: Called with (what, done, all) as work goes on.
        """
        label = dataclasses.replace(config.label, max_seq_length=labelled.teacher_tokens or _UNCUT)
        super().__init__(sources.corpus, work, dataclasses.replace(config, label=label), report=report)
        self.sources, self.labelled, self.teacher = sources, labelled, teacher

    @functools.cached_property
    def _judged_queries(self) -> tuple[LabelledQueries, Judged]:
        """The queries that have a positive, in the order of the judgements, and what is judged of them."""
        found = load_queries(self._folder(self.sources.queries, "queries"))
        split, unknown = self.labelled.split, self.labelled.allow_unknown
        qrels = load_qrels(self._qrels(), split, self.corpus, found, allow_unknown=unknown)
        rows = self._rows_by_id()
        ids: list[str] = []
        grades: list[int] = []
        positives, judged = [], []
        for query, docs in qrels.items():
            own = _ordered(docs, rows, judged=self.labelled.judged)
            if found.has(query) and any(grade > 0 for grade in own.values()):
                ids.append(query)
                positives.append([row for row, grade in own.items() if grade > 0])
                judged.append(list(own))
                grades += own.values()
        if not ids:
            raise DataError(f"{self._qrels()}: no query has a positive (grade above 0) with text; give at least one")
        if left_out := len(qrels) - len(ids):
            logger.warning("%d of %d judged queries left out: no positive with text", left_out, len(qrels))
        lists = from_sequences(positives)
        queries = LabelledQueries(ids, [found.text(found.row(name)) for name in ids], lists.indptr, lists.rows)
        return queries, candidates.Judged(from_sequences(judged), np.array(grades, np.int64))

    def queries(self) -> LabelledQueries:  # type: ignore[override]
        """The queries that have a positive."""
        return self._judged_queries[0]

    def _rows_by_id(self) -> Mapping[str, list[int]]:
        """Of each id of the source its rows: one, or the pieces where passages were split."""
        rows: dict[str, list[int]] = {}
        for row, name in enumerate(self.corpus.parent_ids):
            rows.setdefault(name, []).append(row)
        return rows

    def _folder(self, given: str | Path | None, what: str) -> str | Path:
        if given is not None:
            return given
        if not isinstance(self.sources.corpus, (str, Path)):
            raise DataError(f"a corpus in memory says nothing of {what}; give the file of the {what}")
        path = Path(self.sources.corpus)
        return path if path.is_dir() else path.parent

    def _qrels(self) -> Path:
        if self.sources.qrels is not None:
            return Path(self.sources.qrels)
        queries = self.sources.queries
        beside = None if queries is None else Path(queries) if Path(queries).is_dir() else Path(queries).parent
        if beside is not None and (beside / "qrels").is_dir():
            return beside
        return Path(self._folder(None, "qrels"))

    # ---- what the pipeline asks, answered for labelled queries

    def directory(self, step: str) -> Path:
        """Where the artifact of a step is or will be."""
        return self.work.path("/".join(["labelled", *step.split()]))

    def _input(self, step: str) -> Manifest:
        if step == "generate":
            return Manifest("labelled queries", inputs={"queries": self.queries().fingerprint})
        return super()._input(step)

    def _reading(self) -> dict[str, Any]:
        given = self.labelled
        prompts = {"query_prompt": given.query_prompt, "doc_prompt": given.doc_prompt}
        return {**prompts, "max_tokens": given.encoder_tokens}

    def _retriever_fingerprints(self) -> dict[str, str]:
        changed = {name: value for name, value in self._reading().items() if value}
        suffix = f" {sorted(changed.items())}" if changed else ""
        found = super()._retriever_fingerprints()
        return {name: text if text == BM25 else text + suffix for name, text in found.items()}

    def opener(self, short: str, name: str) -> Callable[[], Any] | None:
        """As for generated queries, reading as many tokens and with the prompts that are asked for."""
        opener = super().opener(short, name)
        return None if opener is None else functools.cache(lambda: opener().reading(**self._reading()))

    # ---- the whole

    def check_labelled(self) -> None:
        """Find what is missing or of the wrong kind before anything is written.

        Raises:
            GplfastError: One of its children.
        """
        _ = self._judged_queries
        self.check(["mine", "label"] if self.teacher else ["mine"])

    def candidates(self) -> Mined:
        """Mine, join with the judgements and score, doing only what is not done yet."""
        queries, judged = self._judged_queries
        negatives = self.step("mine")
        logger.info("%s", self.describe("mine"))
        encoder = next((short for short, name in self.retrievers().items() if name != BM25), None)
        vectors = None if encoder is None else self._vectors(queries, encoder)
        models = {} if encoder is None else {"encoder": self._retriever_fingerprints()[encoder]}
        wanted = candidates.manifest(
            {
                "corpus": self.corpus.fingerprint,
                "queries": queries.fingerprint,
                "judgements": hashlib.sha256(judged.lists.rows.tobytes() + judged.grades.tobytes()).hexdigest(),
                "negatives": self.wanted("mine").key,
            },
            models | ({"teacher": self._served(self.config.label.model)} if self.teacher else {}),
            self.config.label,
        )
        return candidates.candidates(
            self.corpus,
            queries,
            judged,
            negatives,
            directory=self.directory("candidates"),
            wanted=wanted,
            vectors=vectors,
            scorer=scorer(self) if self.teacher else None,
            threads=self.config.threads,
            report=self.report,
        )

    def _vectors(self, queries: LabelledQueries, short: str) -> Vectors:
        opener = self.opener(short, self.retrievers()[short])
        assert opener is not None
        embed = functools.partial(
            dense.embed, opener(), root=self.work.path("embeddings"), batch_size=self.config.mine.batch_size
        )
        corpus, key = self.corpus, self._input("generate").key
        docs = embed(corpus.texts, len(corpus), texts_fingerprint=corpus.fingerprint, kind="document")
        texts = dense.text_rows(queries.texts)
        return Vectors(embed(texts, len(queries), texts_fingerprint=key, kind="query"), docs)


def scorer(pipeline: Pipeline) -> PairScorer:
    """The teacher of a pipeline, over the scores in its work directory."""
    return scorer_of(pipeline.config.label, pipeline.opener_of_teacher(0), stores_of(pipeline.work.path("scores")))


def _ordered(docs: Mapping[str, int], rows: Mapping[str, list[int]], *, judged: bool) -> dict[int, int]:
    """Row to grade: positives in the order of the judgements, then the others that are judged, when wanted.

    A passage that is not in the corpus (it is empty) has no row.
    """
    graded = [(row, grade) for name, grade in docs.items() for row in rows.get(name, ())]
    positives = {row: grade for row, grade in graded if grade > 0}
    return positives | ({row: grade for row, grade in graded if grade <= 0} if judged else {})
