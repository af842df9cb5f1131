"""Mining for labelled data: queries with judgements instead of generated ones, from files to files of other tools."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import logging
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gplfast.config import RunConfig, load_config
from gplfast.errors import ConfigError, DataError
from gplfast.interop import formats, negminer
from gplfast.labelled_settings import LabelledConfig
from gplfast.mining import dense
from gplfast.mining.lists import from_sequences
from gplfast.mining.scoring import PairScorer, teacher_identity
from gplfast.pipeline import Pipeline, as_config
from gplfast.report import BM25
from gplfast.stages import candidates
from gplfast.store.corpus import load_queries
from gplfast.store.labelled import LabelledQueries
from gplfast.store.manifest import Manifest
from gplfast.store.mined import Mined, Vectors
from gplfast.store.qrels import load_qrels
from gplfast.store.scores import ScoreStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from gplfast.artifacts import Report
    from gplfast.stages.candidates import Judged
    from gplfast.steps import CorpusSource
    from gplfast.store.qrels import Qrels

logger = logging.getLogger(__name__)


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
            config: The settings of a run; `mine`, `label` and the general ones are used.
            labelled: The settings beside them.
            teacher: Whether candidates are scored with the model of `label`.
            report: Called with (what, done, all) as work goes on.
        """
        super().__init__(sources.corpus, work, config, report=report)
        self.sources, self.labelled, self.teacher = sources, labelled, teacher

    @functools.cached_property
    def _judged_queries(self) -> tuple[LabelledQueries, Judged]:
        """The queries that have a positive, in the order of the judgements, and what is judged of them."""
        found = load_queries(self._folder(self.sources.queries, "queries"))
        split, unknown = self.labelled.split, self.labelled.allow_unknown
        qrels = load_qrels(self._qrels(), split, self.corpus, found, allow_unknown=unknown)
        rows = self._rows_by_id()
        ids, positives, judged, grades = [], [], [], []
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

    def _folder(self, given: str | Path | None, what: str) -> Any:
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

    def _opener(self, short: str, name: str) -> Callable[[], Any] | None:
        opener = super()._opener(short, name)
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
        dense_names = [short for short, name in self.retrievers().items() if name != BM25]
        vectors = self._vectors(queries, dense_names[0]) if dense_names else None
        models = {name: self._retriever_fingerprints()[name] for name in dense_names[:1]}
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
        opener = self._opener(short, self.retrievers()[short])
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
    label = pipeline.config.label
    return PairScorer(
        lambda teacher: ScoreStore(
            pipeline.work.path("scores"), teacher_identity(teacher, label.activation, label.relevance_label)
        ),
        pipeline._open_teacher,
        max_tokens=label.max_seq_length,
        activation=label.activation,
        keep_nan=label.nan == "drop",
        batch_size=label.batch_size,
    )


def rule(given: LabelledConfig) -> negminer.Rule | None:
    """What the settings keep of the candidates; None where they keep all."""
    off = given.dup_threshold >= 1.0 and given.pos_neg_threshold is None and given.pos_threshold is None
    if off and not given.keep:
        return None
    return negminer.Rule(given.dup_threshold, given.pos_neg_threshold, given.pos_threshold, given.keep)


def run(pipeline: Labelled, names: Sequence[str], output: Path | None) -> tuple[Mined, list[Path]]:
    """Mine, and write the formats into a folder; returns what was kept and the files."""
    mined, given = pipeline.candidates(), pipeline.labelled
    found = rule(given)
    kept, dropped = (mined, {}) if found is None else negminer.apply(found, mined, threads=pipeline.config.threads)
    for name, counts in dropped.items():
        logger.info("%s: %d", name.replace("_", " "), counts.sum())
    if output is None:
        return kept, []
    written = formats.Output(
        mined, kept, dropped, given.doc_doc_cos, given.scores, given.file_type, negatives=given.keep
    )
    return kept, formats.write(names, output, written)


def mine_labelled(
    corpus: CorpusSource,
    queries: str | Path | None = None,
    qrels: str | Path | None = None,
    *,
    encoder: str | Sequence[str] | None = None,
    teacher: str | None = None,
    output: str | Path | None = None,
    formats: Sequence[str] = ("negminer",),
    work: str | Path | None = None,
    labelled: LabelledConfig | Mapping[str, Any] | None = None,
    preset: str | None = None,
    config: RunConfig | Mapping[str, Any] | str | Path | None = None,
    report: Report | None = None,
) -> Mined:
    """Hard negatives for queries with known positives, and files for other tools: what negminer does, in one call.

    Queries with a positive are searched, their positives left out inside the search; all candidates get cosines and,
    with a teacher, its scores. A second call with the same work directory goes on where the first was interrupted.

    Args:
        corpus: A BEIR folder, a folder of text files, a table file, an Arrow table or a list of texts.
        queries: A file or BEIR folder of queries; by default the corpus' folder.
        qrels: A file of judgements, or a folder with qrels/<split>.tsv; by default beside the queries.
        encoder: Bi-encoders (directory, hub name, nano:student) or "bm25", one or several; by default the preset's.
        teacher: Cross-encoder that scores every candidate; by default none does.
        output: Folder for the files; by default none are written.
        formats: Names of `gplfast.interop.formats.FORMATS`.
        work: Directory of embeddings, scores and artifacts. By default "work" in `output`, or without that a temporary
            one, which is removed at the end.
        labelled: Settings beside those of a run, see `LabelledConfig`.
        preset: As of `adapt`.
        config: As of `adapt`.
        report: Called with (what, done, all) as work goes on.

    Returns:
        The queries with what was kept of their candidates: `ids`, `texts`, `positives`, `negatives`, `scores`.

    Raises:
        GplfastError: One of its children; the message says what to do.
    """
    settings = as_config(config, preset)
    if encoder is not None:
        names = (encoder,) if isinstance(encoder, str) else tuple(encoder)
        settings = dataclasses.replace(settings, mine=dataclasses.replace(settings.mine, retrievers=names))
    if teacher is not None:
        settings = dataclasses.replace(settings, label=dataclasses.replace(settings.label, model=teacher))
    given = labelled if isinstance(labelled, LabelledConfig) else _settings(labelled or {})
    return mine_files(
        Sources(corpus, queries, qrels), settings, given, formats, teacher is not None, output, work, report=report
    )[0]


def _settings(values: Mapping[str, Any]) -> LabelledConfig:
    known = {item.name for item in dataclasses.fields(LabelledConfig)}
    for name in values:
        if name not in known:
            raise ConfigError(f"labelled: {name} is not a setting; there is {', '.join(sorted(known))}")
    return LabelledConfig(**values)
