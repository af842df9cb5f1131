"""Files of other tools: mined for labelled queries in one call, or exported from a work directory."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gplfast import preflight
from gplfast.errors import ConfigError
from gplfast.interop import negminer, sentence_transformers
from gplfast.interop.formats import Output, check, write
from gplfast.labelled import Labelled, Sources, scorer
from gplfast.labelled_settings import LabelledConfig
from gplfast.mining.sources import used_retrievers
from gplfast.pipeline import Pipeline, as_config
from gplfast.report import BM25
from gplfast.settings_file import read_settings_file
from gplfast.stages import candidates
from gplfast.steps import export_gpl, scored_margins
from gplfast.store.manifest import Manifest
from gplfast.store.mined import Mined

if TYPE_CHECKING:
    from collections.abc import Container, Sequence

    from gplfast.artifacts import Report
    from gplfast.config import RunConfig
    from gplfast.mining.scoring import PairScorer
    from gplfast.steps import CorpusSource

logger = logging.getLogger(__name__)
_MARGINS = "sentence-transformers-margins"


def rule(given: LabelledConfig) -> negminer.Rule | None:
    """What the settings keep of the candidates; None where they keep all."""
    off = given.dup_threshold >= 1.0 and given.pos_neg_threshold is None and given.pos_threshold is None
    if off and not given.keep:
        return None
    return negminer.Rule(given.dup_threshold, given.pos_neg_threshold, given.pos_threshold, given.keep)


def mine_files(
    sources: Sources,
    config: RunConfig,
    labelled: LabelledConfig,
    *,
    formats: Sequence[str],
    output: str | Path | None,
    work: str | Path | None,
    teacher: bool,
    report: Report | None = None,
) -> tuple[Mined, list[Path]]:
    """What `mine_labelled` does; returns what was kept and the files."""
    _check_mining(sources, config, labelled, formats if output is not None else (), teacher=teacher)
    with ExitStack() as stack:
        if work is None and output is not None:
            work = Path(output) / "work"
            logger.info("%s: embeddings and scores, for another run; delete it when done", work)
        elif work is None:
            work = stack.enter_context(tempfile.TemporaryDirectory())
        pipeline = Labelled(sources, work, config, labelled, teacher=teacher, report=report)
        pipeline.check_labelled()  # before the work directory is made
        stack.enter_context(pipeline.work)
        mined, found = pipeline.candidates(), rule(labelled)
        kept, dropped = (mined, {}) if found is None else negminer.apply(found, mined, threads=config.threads)
        for name, counts in dropped.items():
            logger.info("%s: %d", name.replace("_", " "), counts.sum())
        if output is None:
            return kept, []
        form = (labelled.doc_doc_cos, labelled.scores, labelled.file_type)
        given = Output(mined, kept, dropped, *form, negatives=labelled.keep, seed=config.seed)
        return kept, write(formats, output, given)


def explicit_label(config: RunConfig | Mapping[str, Any] | str | Path | None) -> Mapping[str, Any]:
    """The settings of [label] that a mapping or a file names; a `RunConfig` does not say which were named.

    Raises:
        ConfigError: The file cannot be read, or names one that labelled mining does not read.
    """
    values = read_settings_file(Path(config)) if isinstance(config, (str, Path)) else config
    named = values.get("label") if isinstance(values, Mapping) else None
    if not isinstance(named, Mapping):
        return {}
    if "max_seq_length" in named:
        raise ConfigError("[label] max_seq_length has no effect on labelled queries; leave it out, give teacher_tokens")
    return named


def _check_mining(
    sources: Sources, config: RunConfig, labelled: LabelledConfig, formats: Sequence[str], *, teacher: bool
) -> None:
    """Refuse before any work what cannot be written, and settings that would have no effect."""
    encoder = any(name != BM25 for name in used_retrievers(config.mine).values())
    check(formats, cosines=encoder, scores=encoder or teacher)
    if labelled.dup_threshold < 1.0 and not encoder:
        raise ConfigError("duplicates by cosine need an encoder among the retrievers; add one, or set no dup_threshold")
    for name in () if teacher else ("pos_neg_threshold", "pos_threshold"):
        if getattr(labelled, name) is not None:
            raise ConfigError(f"{name} compares scores of a teacher but none is asked; give a teacher, or leave it out")
    if config.label.more_models:
        raise ConfigError("[label] more_models has no effect on labelled queries: one teacher scores; leave it out")
    if labelled.split != LabelledConfig().split and sources.qrels is not None and Path(sources.qrels).is_file():
        raise ConfigError(
            f"split is {labelled.split!r} but {sources.qrels} is a file, which is read whole; leave split out, or give "
            "the folder that has qrels/"
        )


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
        teacher: Cross-encoder that scores every candidate; by default the one that a mapping or file `config` names
            ([label] model), else none does.
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
    settings, named = as_config(config, preset), explicit_label(config)
    if encoder is not None:
        names = (encoder,) if isinstance(encoder, str) else tuple(encoder)
        settings = dataclasses.replace(settings, mine=dataclasses.replace(settings.mine, retrievers=names))
    if teacher is not None:
        settings = dataclasses.replace(settings, label=dataclasses.replace(settings.label, model=teacher))
    given = labelled if isinstance(labelled, LabelledConfig) else _settings(labelled or {})
    sources, asked = Sources(corpus, queries, qrels), teacher is not None or "model" in named
    return mine_files(
        sources, settings, given, formats=formats, output=output, work=work, teacher=asked, report=report
    )[0]


def as_labelled(config: RunConfig, work: str | Path, given: Container[str] = ()) -> RunConfig:
    """The settings with the teacher asked as the step label of a work directory asked it, so that its scores are found.

    Args:
        config: The settings.
        work: The work directory; where label was not run they stay as they are.
        given: Names of settings of [label] that stay as they are in any case.
    """
    try:
        made = Manifest.read(Path(work) / "label").config
    except FileNotFoundError:
        return config
    names = ("max_seq_length", "activation", "relevance_label", "nan")
    found = {name: made[name] for name in names if name not in given}
    return dataclasses.replace(config, label=dataclasses.replace(config.label, **found))


def export(
    pipeline: Pipeline, folder: str | Path, formats: Sequence[str] = ("gpl",), *, teacher: bool = False
) -> list[Path]:
    """Write the generated queries of a work directory, with their negatives, as files of other tools.

    Args:
        pipeline: Over what is in the work directory (`alone`).
        folder: Created when missing.
        formats: Names of `gplfast.labelled_settings.EXPORTED`. "gpl" holds what each step made, its lists by retriever
            and the margins that training uses; "sentence-transformers-margins" these margins. The others hold the
            negatives of all retrievers as one list. "trec" needs the teacher.
        teacher: Score every positive and negative with the model of `label` (pairs that it scored before cost
            nothing, see `as_labelled`), for formats with scores; "sentence-transformers-margins" then has all pairs.

    Returns:
        The files.

    Raises:
        GplfastError: One of its children; the message says what to do.
    """
    others = [name for name in formats if name != "gpl"]
    margins = not teacher and _MARGINS in others
    if margins:
        others.remove(_MARGINS)
    _check_export(pipeline, others, teacher=teacher, margins=margins)
    files = export_gpl(pipeline, folder) if "gpl" in formats else []
    if margins:
        files += _export_margins(pipeline, Path(folder))
    if not others:
        return files
    if not teacher:
        return files + write(others, folder, _output(_generated(pipeline)))
    with pipeline.work:  # scores are kept
        return files + write(others, folder, _output(_generated(pipeline, scorer(pipeline))))


def _check_export(pipeline: Pipeline, formats: Sequence[str], *, teacher: bool, margins: bool) -> None:
    """Refuse before any file what cannot be written for generated queries: some formats, or the training's margins."""
    check(formats, cosines=False, scores=teacher)
    if teacher and pipeline.config.label.more_models:
        raise ConfigError("[label] more_models has no effect on exported scores, which are one teacher's; leave it out")
    if margins:
        scored_margins(pipeline)
    if formats:
        pipeline.negatives()
    if teacher:
        preflight.teacher(pipeline.model(pipeline.config.label.model).path, pipeline.config.label)


def _export_margins(pipeline: Pipeline, folder: Path) -> list[Path]:
    path = folder / f"{_MARGINS}.parquet"
    sentence_transformers.write_margins(path, pipeline.corpus, pipeline.queries().texts, scored_margins(pipeline))
    return [path]


def _output(mined: Mined) -> Output:
    return Output(mined, mined)


def _generated(pipeline: Pipeline, teacher: PairScorer | None = None) -> Mined:
    """The candidates of generated queries, made anew: they are no artifact of the pipeline."""
    queries, negatives, n = pipeline.queries(), pipeline.negatives(), len(pipeline.corpus)
    joined = candidates.join(candidates.positives_only(queries), negatives, n)
    scores = None
    if teacher is not None:
        scores = candidates.teacher_scores(teacher, pipeline.corpus, queries.texts, joined.lists, pipeline.report)
    return Mined(pipeline.corpus, queries.ids, queries.texts, *joined.lists, joined.grades, None, scores)


def _settings(values: Mapping[str, Any]) -> LabelledConfig:
    known = {item.name for item in dataclasses.fields(LabelledConfig)}
    for name in values:
        if name not in known:
            raise ConfigError(f"labelled: {name} is not a setting; there is {', '.join(sorted(known))}")
    return LabelledConfig(**values)
