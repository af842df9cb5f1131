"""Where negatives come from: `dense@10-210:15 bm25:25 random:5` as a plan, one column of the artifact per source."""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from gplfast.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from gplfast.config import MineConfig

BM25 = "bm25"
DENSE = "dense"
RANDOM, GOLD, EXPLICIT = "random", "gold", "explicit"
DRAWN = (RANDOM, GOLD)
SEMI_HARD = "semi-hard"
# What the student in training is called among the retrievers.
STUDENT = "student"
_RANKS = re.compile(r"(\d+)-(\d+)")
# What people look for here and is set elsewhere.
_ELSEWHERE = {
    "in-batch": "is what the loss makes of a batch: see docs/losses.md",
    "in-batch-hard": "is what the loss makes of a batch: see docs/losses.md",
    "cross-batch": "is what the loss makes of several batches: see docs/losses.md",
    "ance": "is a refresh during training: see docs/rgpl.md",
    "denoised": "is a filter by the teacher over any source: see docs/filters.md",
}


class Source(NamedTuple):
    """One source of negatives.

    Attributes:
        column: Its name in the artifact: the retriever's where it is its best passages, else with what is special.
        retriever: Short name of the retriever that ranks, "" for those that do not rank.
        n: Negatives per query.
        first: Rank of the first candidate, from 0; positives have no rank.
        depth: Rank after the last candidate; of sources that do not rank, how many candidates are drawn.
        semi_hard: Candidates are the best below the query's lowest positive, and ranks count from there.
    """

    column: str
    retriever: str
    n: int
    first: int
    depth: int
    semi_hard: bool = False

    @property
    def windowed(self) -> bool:
        """Whether its ranks were asked for as such, so that they are no matter of how many are dropped."""
        return "@" in self.column and not self.semi_hard


def short_names(retrievers: Sequence[str]) -> dict[str, str]:
    """Short name (the last part of a path or hub name) to the name that was given, in order."""
    short: dict[str, str] = {}
    for name in retrievers:
        base = Path(name).name or name
        number = 2
        while base in short:
            base, number = f"{Path(name).name}-{number}", number + 1
        short[base] = name
    return short


def plan(config: MineConfig) -> list[Source]:
    """The sources of some settings, in order; without `sources` each retriever's best `negatives_per_query`.

    `dense` stands for every bi-encoder of `retrievers`, each with the full number (their union, as GPL); `bm25` needs
    not be among them.

    Raises:
        ConfigError: A source that is unknown, malformed or given twice, the message quotes it; or none has a retriever
            and another setting needs one.
    """
    short = short_names(config.retrievers)
    if not config.sources:
        found = [_ranked(name, name, "", config.negatives_per_query, config) for name in short]
    else:
        words = [word.strip() for given in config.sources for word in given.split(",")]
        found = [source for word in words for source in _parse(word, short, config)]
    columns = [source.column for source in found]
    for column in columns:
        if columns.count(column) > 1:
            raise ConfigError(f"[mine] sources names {column} {columns.count(column)} times; give each source once")
    if (EXPLICIT in columns) != bool(config.explicit):
        raise ConfigError(
            "[mine] sources has explicit but no file is given; add --explicit FILE"
            if EXPLICIT in columns
            else f"[mine] explicit is {config.explicit} but no source uses it; add explicit:N to sources"
        )
    if not any(source.retriever for source in found):
        _needs_no_retriever(config)
    return found


def _needs_no_retriever(config: MineConfig) -> None:
    wrong = ["positives is hard"] if config.positives != "all" else []
    wrong += [f"round_trip_top is {config.round_trip_top}"] if config.round_trip_top else []
    if wrong:
        raise ConfigError(f"[mine] {wrong[0]} but no source has a retriever; add dense or bm25 to sources")


def used_retrievers(config: MineConfig) -> dict[str, str]:
    """Short name to given name of the retrievers that the sources use, in the order of `retrievers`."""
    short = short_names(config.retrievers)
    used = {source.retriever for source in plan(config)} - {""}
    return {name: short.get(name, name) for name in dict.fromkeys([*short, BM25]) if name in used}


def check_scored(scored: Sequence[str], config: MineConfig) -> None:
    """Check the names in `[filter] scored`: columns or retrievers of the sources, or the student in training.

    Raises:
        ConfigError: Another name; the message quotes it.
    """
    known = {STUDENT} | {
        name for source in plan(config) if source.retriever for name in (source.column, source.retriever)
    }
    for name in scored:
        if name not in known:
            raise ConfigError(
                f"[filter] scored names {name!r} but the retrievers of [mine] are {', '.join(sorted(known))}; "
                "give one of these"
            )


def draws(config: MineConfig) -> bool:
    """Whether the seed matters."""
    return any(source.column in DRAWN for source in plan(config)) or config.sampling == "random"


def n_candidates(n: int, config: MineConfig) -> int:
    """How many candidates a source without ranks of its own has for `n` negatives: the only place that says so."""
    return max(n, config.candidates)


def canonical(sources: Sequence[Source]) -> list[str]:
    """The sources as a manifest records them, however they were written."""
    return [f"{source.column}:{source.n}" for source in sources]


def _parse(word: str, short: dict[str, str], config: MineConfig) -> list[Source]:
    where = f"[mine] sources: {word!r}"
    given = {name: kept for kept, name in short.items()}
    known = {*short, *given, DENSE, BM25, RANDOM, GOLD, EXPLICIT}
    named, _, ranks = word.rpartition("@")
    whole = word in known or (named in known and ":" not in ranks)  # names may hold colons
    head, colon, count = (word, "", "") if whole else word.rpartition(":")
    if not colon:  # "dense" or "dense@10-210": as many as negatives_per_query
        head, count = word, str(config.negatives_per_query)
    if not (count.isascii() and count.isdigit()) or int(count) < 1:
        raise ConfigError(f"{where} has {count!r} after the colon but must have a whole number, at least 1")
    name, at, window = (head, "", "") if head in known else head.rpartition("@")
    if not at:
        name = head
    if name not in known:
        raise ConfigError(f"{where}: {name!r} {_hint(name, sorted({*short, DENSE, BM25, RANDOM, GOLD, EXPLICIT}))}")
    n = int(count)
    if name in (RANDOM, GOLD, EXPLICIT):
        if at:
            raise ConfigError(f"{where} has @{window} but {name} has no ranks; leave it out")
        return [Source(name, "", n, 0, n_candidates(n, config))]
    dense = [kept for kept in short if kept != BM25]
    if name == DENSE and not dense:
        raise ConfigError(f"{where} needs a bi-encoder but retrievers has only bm25; add one")
    names = dense if name == DENSE else [given.get(name, name)]
    return [_ranked(kept, where, window if at else "", n, config) for kept in names]


def _ranked(name: str, where: str, window: str, n: int, config: MineConfig) -> Source:
    if not window:
        return Source(name, name, n, 0, n_candidates(n, config))
    if window == SEMI_HARD:
        return Source(f"{name}@{window}", name, n, 0, n_candidates(n, config), semi_hard=True)
    ranks = _RANKS.fullmatch(window)
    if ranks is None:
        raise ConfigError(f"{where} has @{window} but must have ranks such as @10-210 (10 to 209), or @{SEMI_HARD}")
    first, stop = int(ranks[1]), int(ranks[2])
    if stop - first < n:
        raise ConfigError(
            f"{where} asks for {n} of the {max(stop - first, 0)} ranks from {first} to {stop} (not included); "
            "widen the window or ask for fewer"
        )
    return Source(f"{name}@{first}-{stop}", name, n, first, stop)


def _hint(name: str, known: list[str]) -> str:
    if name.lower() in _ELSEWHERE:
        return _ELSEWHERE[name.lower()]
    close = difflib.get_close_matches(name, known, n=1)
    return f"is no source; {f'did you mean {close[0]}?' if close else 'there is ' + ', '.join(known)}"
