"""What `gplfast bench generate|score|embed` reads: the user's checkpoint, and texts of the user's corpus."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.bench.harness import OURS
from gplfast.errors import ConfigError
from gplfast.models import BiEncoder, CrossEncoder, QueryGenerator, resolve
from gplfast.models.checkpoint import Checkpoint
from gplfast.models.cross_encoder import vocabulary_rows
from gplfast.models.tokenization import Tokenizer
from gplfast.store.corpus import load_queries

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from gplfast.store.corpus import Corpus

AUTO, FP32 = "auto", "fp32"
_QUERY_WORDS = 8  # of a query made from a passage, where the corpus has none
_CLASSES: dict[str, Any] = {"generate": QueryGenerator, "score": CrossEncoder, "embed": BiEncoder}


@dataclasses.dataclass(frozen=True)
class Served:
    """A checkpoint that is measured.

    Attributes:
        operation: "generate", "score" or "embed".
        name: As the user gave it.
        directory: Where its files are.
        provider: As `--provider` says.
        threads: Of every system.
    """

    operation: str
    name: str
    directory: Path
    provider: str
    threads: int

    @classmethod
    def find(cls, operation: str, name: str, provider: str, threads: int) -> Served:
        """Resolve a directory, a bundled model or a hub name.

        Raises:
            ModelError, HubError, MissingExtraError: As `gplfast.models.resolve`.
        """
        return cls(operation, name, resolve(name), provider, threads)

    @functools.cached_property
    def checkpoint(self) -> Checkpoint:
        """Its configuration and weights."""
        return Checkpoint(self.directory)

    @functools.cached_property
    def reference(self) -> Any:
        """Our model of it in float32: what every result is compared with."""
        return self.open(FP32)

    def open(self, precision: str) -> Any:
        """Our model of it in a precision, or in what "auto" chooses.

        Raises:
            ModelError: It cannot be served as this.
            MissingExtraError, UnavailableError: This machine does not serve it so.
        """
        if precision == FP32 and "reference" in self.__dict__:
            return self.reference
        options: dict[str, Any] = {"threads": self.threads, "precision": precision, "provider": self.provider}
        return _CLASSES[self.operation].open(self.directory, **options)

    def tokenizer(self) -> Tokenizer:
        """The tokenizer of an encoder's checkpoint."""
        return Tokenizer(self.checkpoint, vocabulary_rows=vocabulary_rows(self.checkpoint))


def system_name(precision: str) -> str:
    """Of ours, as the table shows it: the precision is named where one was asked for."""
    return OURS if precision == AUTO else f"{OURS} {precision}"


def sample(corpus: Corpus, wanted: int | None, default: int, seed: int, flag: str) -> list[str]:
    """Texts of the corpus, drawn without repeats: as many as wanted, or `default` of them, or all where it has fewer.

    Raises:
        ConfigError: More are wanted than it has.
    """
    n = wanted or min(default, len(corpus))
    if n > len(corpus):
        raise ConfigError(f"bench: {flag} is {n} but the corpus has {len(corpus)} passages; ask for fewer")
    return corpus.texts(np.random.default_rng(seed).permutation(len(corpus))[:n])


def pairs(corpus: Corpus, source: Path, n: int, seed: int) -> tuple[list[str], list[str], str]:
    """Different (query, passage) pairs: queries in turn, passages drawn.

    Args:
        corpus: The passages.
        source: The corpus' folder or file; queries are those of its queries.jsonl where there is one, else the first
            words of passages.
        n: How many.
        seed: Of the draw.

    Returns:
        n queries, n passages, and where the queries come from.

    Raises:
        ConfigError: There are not so many different pairs.
    """
    random = np.random.default_rng(seed)
    if source.is_dir() and any((source / f"queries.jsonl{end}").is_file() for end in ("", ".gz")):
        queries, origin = load_queries(source).texts, "its queries"
    else:
        rows = random.permutation(len(corpus))[:n]
        queries = [" ".join(text.split()[:_QUERY_WORDS]) for text in corpus.texts(rows)]
        origin = f"queries of {_QUERY_WORDS} words"
    if n > len(queries) * len(corpus):
        raise ConfigError(
            f"bench: --pairs is {n} but {len(queries)} queries and {len(corpus)} passages make "
            f"{len(queries) * len(corpus)}; ask for fewer"
        )
    of_query = np.arange(n) % len(queries)
    passages = _distinct(of_query, len(queries), len(corpus), random)
    return [queries[row] for row in of_query], corpus.texts(passages), origin


def _distinct(
    of_query: NDArray[np.int64], n_queries: int, n_passages: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """A passage for each entry, never the same twice for one query: a random start for each query, then steps."""
    start = random.integers(0, n_passages, n_queries)
    turn = np.arange(len(of_query)) // n_queries
    order = random.permutation(n_passages).astype(np.int64)
    chosen: NDArray[np.int64] = order[(start[of_query] + turn) % n_passages]
    return chosen
