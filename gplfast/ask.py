"""Looking before trusting numbers: the top passages of a question, models side by side."""

from __future__ import annotations

import dataclasses
import shutil
import textwrap
from collections.abc import Callable, Sequence
from itertools import zip_longest
from typing import TYPE_CHECKING

from gplfast.store.corpus import Corpus, load_corpus

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from gplfast.models import BiEncoder

Report = Callable[[str, int, int], None]
_SHOWN_CHARACTERS = 240


@dataclasses.dataclass(frozen=True)
class Answer:
    """What one model finds.

    Attributes:
        model: Its name as given.
        passages: (score, id, text), best first.
    """

    model: str
    passages: list[tuple[float, str, str]]


def ask(
    question: str,
    models: Sequence[str],
    corpus: str | Path | Corpus,
    k: int = 5,
    *,
    work: str | Path | None = None,
    threads: int = 0,
    provider: str = "auto",
    precision: str = "auto",
    report: Report | None = None,
) -> list[Answer]:
    """The k best passages of each model for a question.

    Args:
        question: The query.
        models: Bi-encoders.
        corpus: What `load_corpus` takes, or a `Corpus`.
        k: Passages per model.
        work: Work directory whose embeddings are used and kept; without it passages are embedded in memory each time.
        threads: CPU threads, 0 for all.
        provider: What runs the models, see `BiEncoder.open`.
        precision: With it.
        report: Called with (what, done, all).

    Raises:
        ModelError: A model gives no vectors: a cross-encoder, a generator.
    """
    from gplfast import preflight
    from gplfast.mining import dense
    from gplfast.models import BiEncoder
    from gplfast.models.resolve import resolve

    for name in models:
        preflight.bi_encoder(resolve(name), "ask")
    passages = corpus if isinstance(corpus, Corpus) else load_corpus(corpus)
    answers = []
    for name in models:
        encoder = BiEncoder.open(name, threads=threads or None, provider=provider, precision=precision)
        docs = _embeddings(encoder, passages, name, work, report)
        query = encoder.encode([question], kind="query")
        hits = dense.search(query, docs, min(k, len(passages)), metric=encoder.similarity, threads=threads)
        found = zip(hits.scores[0].tolist(), hits.ids[0].tolist(), strict=True)
        answers.append(
            Answer(name, [(score, passages.ids[row], passages.text(row)) for score, row in found if row >= 0])
        )
    return answers


def side_by_side(answers: Sequence[Answer], width: int | None = None) -> str:
    """Answers as text, one column per model.

    Args:
        answers: One per model.
        width: Characters of a line; by default the terminal's.
    """
    whole = width or max(shutil.get_terminal_size((120, 24)).columns, 60)
    column = (whole - 3 * (len(answers) - 1)) // len(answers)
    lines = [
        _row([answer.model[-column:] for answer in answers], column),
        _row(["-" * column for _ in answers], column),
    ]
    for rank, passages in enumerate(zip_longest(*(answer.passages for answer in answers)), start=1):
        cells = [_cell(rank, passage, column) for passage in passages]
        lines += [_row(list(parts), column) for parts in zip_longest(*cells, fillvalue="")]
    return "\n".join(line.rstrip() for line in lines)


def _embeddings(
    encoder: BiEncoder, corpus: Corpus, name: str, work: str | Path | None, report: Report | None
) -> npt.NDArray[np.float32]:
    from gplfast.mining import dense
    from gplfast.store.workdir import WorkDir

    show = None if report is None else lambda done, total: report(f"embed passages ({name})", done, total)
    if work is None:
        return encoder.encode(corpus.texts(), progress=show)
    with WorkDir(work) as directory:
        return dense.embed(
            encoder,
            corpus.texts,
            len(corpus),
            directory.path("embeddings"),
            texts_fingerprint=corpus.fingerprint,
            kind="document",
            progress=show,
        )


def _cell(rank: int, passage: tuple[float, str, str] | None, width: int) -> list[str]:
    if passage is None:
        return []
    score, name, text = passage
    shown = textwrap.shorten(text, _SHOWN_CHARACTERS, placeholder=" ...")
    return [f"{rank}. {score:.4f}  {name}"[:width], *textwrap.wrap(shown, width), ""]


def _row(cells: Sequence[str], width: int) -> str:
    return " | ".join(cell.ljust(width) for cell in cells)
