"""One function per step for Python: each does its step alone, on what is in the work directory."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypedDict, Unpack

import numpy as np

from gplfast import ranks
from gplfast.errors import ConfigError
from gplfast.pipeline import Pipeline, as_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import pyarrow as pa

    from gplfast.config import RunConfig
    from gplfast.store.corpus import Corpus
    from gplfast.store.generated import GeneratedQueries
    from gplfast.store.margins import Margins
    from gplfast.store.negatives import Negatives

    CorpusSource: TypeAlias = str | Path | Corpus | pa.Table | Sequence[str]


logger = logging.getLogger(__name__)


class Options(TypedDict, total=False):
    """Arguments that every step takes, as `adapt` does."""

    preset: str | None
    config: RunConfig | Mapping[str, Any] | str | Path | None
    report: Callable[[str, int, int], None] | None


def generate(corpus: CorpusSource, *, work: str | Path, **options: Unpack[Options]) -> GeneratedQueries:
    """Only the step `generate` of `adapt`; takes its `preset`, `config` and `report`."""
    found: GeneratedQueries = _alone("generate", corpus, work, options)
    return found


def mine(corpus: CorpusSource, *, work: str | Path, **options: Unpack[Options]) -> Negatives:
    """Only the step `mine` of `adapt`, on the queries that are in the work directory."""
    found: Negatives = _alone("mine", corpus, work, options)
    return found


def label(corpus: CorpusSource, *, work: str | Path, **options: Unpack[Options]) -> Margins:
    """Only the step `label` of `adapt`, on the negatives that are in the work directory."""
    found: Margins = _alone("label", corpus, work, options)
    return found


def train(corpus: CorpusSource, *, work: str | Path, student: str = "gpl", **options: Unpack[Options]) -> Path:
    """Only the step `train` of `adapt`: "gpl" from the margins, "rgpl", or "genq"; the model's directory."""
    found: Path = _alone(f"train {student}", corpus, work, options)
    return found


def evaluate(
    corpus: CorpusSource,
    *,
    work: str | Path,
    models: Mapping[str, str] | None = None,
    judgements: str | Path | None = None,
    **options: Unpack[Options],
) -> dict[str, Any]:
    """Only the step `evaluate` of `adapt`, on the students in the work directory and `models` (name to model).

    Under `torchrun` the first process evaluates; the others get nothing.
    """
    if not ranks.first():
        return {}
    settings = as_config(options.get("config"), options.get("preset"))
    pipeline = Pipeline(corpus, work, settings, judgements=judgements, report=options.get("report"), alone=True)
    pipeline.check([], evaluate=True, extra=(models or {}).values())
    with pipeline.work:
        return pipeline.evaluate(models)


def _alone(step: str, corpus: CorpusSource, work: str | Path, options: Options) -> Any:
    """Of several processes (torchrun) all train, and the first one does every other step: None for the others."""
    if step.startswith("train"):
        from gplfast.models import meeting

        meeting.meet()  # before that the first one may still make what is trained on
    elif not ranks.first():
        return None
    settings = as_config(options.get("config"), options.get("preset"))
    pipeline = Pipeline(corpus, work, settings, report=options.get("report"), alone=True)
    pipeline.check([step])  # before the work directory is made
    with pipeline.work.together():
        return pipeline.step(step)


def scored_margins(pipeline: Pipeline) -> Margins:
    """The margins of a work directory, one negative each.

    Raises:
        ConfigError: They were made for a loss that reads none, so nothing was scored.
    """
    margins = pipeline.margins().one_negative_each()
    if len(margins) and np.isnan(margins.margins).all():
        raise ConfigError(
            f"{pipeline.directory('label')} has rows without the teacher's margins: they were drawn for a loss that "
            "reads none; run `gplfast label` with --train-loss margin-mse, or export other formats"
        )
    return margins


def export_gpl(pipeline: Pipeline, folder: str | Path) -> list[Path]:
    """Write corpus, queries, qrels, hard negatives and training data as GPL's files; what is not made is left out.

    Returns:
        The files that were written.
    """
    from gplfast.interop import gpl
    from gplfast.mining.lists import single
    from gplfast.store.negatives import RankedLists

    root, corpus, generated = Path(folder), pipeline.corpus, pipeline.queries()
    queries = generated.as_queries()
    written = [root / "corpus.jsonl", root / gpl.QUERIES_FILE, root / gpl.QRELS_FILE]
    gpl.write_corpus(written[0], corpus)
    gpl.write_queries(written[1], queries)
    qrels = {name: {corpus.ids[row]: 1} for name, row in zip(queries.ids, generated.passages.tolist(), strict=True)}
    gpl.write_qrels(written[2], qrels)
    if (pipeline.directory("mine") / "manifest.json").is_file():
        positives = RankedLists(*single(generated.passages))
        written.append(root / gpl.HARD_NEGATIVES_FILE)
        found = gpl.HardNegatives(pipeline.negatives(), positives)
        gpl.write_hard_negatives(written[-1], found, corpus, queries)
    if (pipeline.directory("label") / "manifest.json").is_file():
        try:
            margins = scored_margins(pipeline)
        except ConfigError as error:
            logger.warning("%s is left out: %s", gpl.TRAINING_DATA_FILE, error)
            return written
        written.append(root / gpl.TRAINING_DATA_FILE)
        data = gpl.TrainingData(margins.queries, margins.positives, margins.negatives, margins.margins)
        gpl.write_training_data(written[-1], data, corpus, queries)
    return written
