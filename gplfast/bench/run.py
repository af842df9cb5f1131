"""What `gplfast bench` does: make the workload, choose the peers, measure, and put the result together."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from gplfast.bench import dedup, figures, harness, inputs, margins, memory, search, serving, workloads
from gplfast.bench.flags import SERVING
from gplfast.bench.hardware import Peaks, machine
from gplfast.bench.sweep import sweep
from gplfast.errors import ConfigError
from gplfast.ops import available_threads, forced_isa

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping, Sequence

    from gplfast.bench.harness import Check, Peer, Report, System


def run(arguments: argparse.Namespace, report: Report = lambda *_: None) -> dict[str, Any]:
    """Do what the flags of `gplfast bench` say (`gplfast.bench.flags`).

    Args:
        arguments: Parsed.
        report: Called with (what, done, all).

    Returns:
        The result, ready for JSON: operation, machine, threads, peaks (operations and bytes a second),
        peak_rss_bytes, documents, missing (peers to the packages they need) and rows; of a sweep also sweep.

    Raises:
        ConfigError: A flag that is out of range or has no effect, or more memory than there is.
        DataError, DTypeError, ShapeError: An .npy file or a corpus that does not fit.
        ModelError, HubError: A checkpoint that cannot be served or found.
        UnavailableError: An instruction set, provider or precision that this machine or build does not have.
        MissingExtraError: A peer that was named is not installed.
        PeerError: A result is wrong.
    """
    threads = arguments.threads or available_threads()
    peaks = Peaks(threads, arguments.peak_seconds, of_networks=arguments.operation in SERVING)
    bench = Bench(arguments, threads, peaks, report)
    parts = _OPERATIONS[arguments.operation](bench)
    return {
        "operation": arguments.operation,
        "machine": machine(),
        "threads": threads,
        "peaks": bench.peaks.best,
        "peak_rss_bytes": memory.peak_bytes(),
        **parts,
    }


@dataclasses.dataclass(frozen=True)
class _Row:
    """One shape, measured; `work` is that of one call: flop, bytes, entries."""

    shape: dict[str, Any]
    work: dict[str, float]
    timings: dict[str, harness.Timing]


@dataclasses.dataclass(frozen=True)
class Bench:
    """One command: its flags, the threads of every system, the peaks, and where progress goes."""

    arguments: argparse.Namespace
    threads: int
    peaks: Peaks
    report: Report

    def measure(
        self,
        systems: Sequence[System],
        problem: Any,
        check: Check,
        work: dict[str, float],
        what: str,
        *,
        reference: Callable[[], Any] | None = None,
    ) -> _Row:
        """Compare and time."""
        with harness.same_threads(self.threads):
            timings = harness.compare_and_time(
                systems,
                check,
                self.arguments.repeats,
                reference=reference,
                between=self.peaks.sample,
                report=self.report,
                what=what,
            )
        return _Row(problem.shape, work, timings)

    def finished(self, rows: Sequence[_Row]) -> list[dict[str, Any]]:
        """Rows with rates and shares, now that the peaks are known."""
        return [
            {
                "shape": row.shape,
                "systems": {
                    name: figures.described(timing, row.work, self.peaks, next(iter(row.timings.values())).median)
                    for name, timing in row.timings.items()
                },
            }
            for row in rows
        ]


def _search(bench: Bench) -> dict[str, Any]:
    arguments = bench.arguments
    if arguments.sweep is not None:
        return _search_sweep(bench)
    peers, missing = _peers(search.PEERS, arguments)
    sizes = sorted(set(arguments.queries))
    docs, source = inputs.documents(arguments, peers, n_queries=sizes[-1], working_bytes=2 * search.SCORE_BYTES[-1])
    queries = inputs.queries(arguments, docs, sizes[-1])
    whole = search.Problem(queries, docs, arguments.k, arguments.metric, bench.threads)
    plain = whole.normalised() if peers else whole
    index = search.indexed(whole)
    rows = []
    for n in sizes:
        problem, for_peers = (dataclasses.replace(one, queries=one.queries[:n]) for one in (whole, plain))
        systems = [search.ours(problem), search.ours_indexed(problem, index)]
        systems += [search.ours(problem, isa) for isa in arguments.isas]
        systems += [peer.make(for_peers) for peer in peers]
        work = {"flop": problem.flop, "bytes": float(docs.nbytes)}
        rows.append(bench.measure(systems, problem, search.check(problem), work, f"search, {n} queries"))
    return {"documents": source, "metric": arguments.metric, "missing": missing, "rows": bench.finished(rows)}


def _search_sweep(bench: Bench) -> dict[str, Any]:
    arguments = bench.arguments
    for flag, given in (("peers", arguments.peers not in (None, ["none"])), ("isas", arguments.isas)):
        if given:
            raise ConfigError(f"bench: --{flag} has no effect: --sweep times gplfast alone; leave it out")
    n_queries = max(arguments.queries)
    docs, source = inputs.documents(arguments, [], n_queries=n_queries)
    queries = inputs.queries(arguments, docs, n_queries)
    whole = search.Problem(queries, docs, arguments.k, arguments.metric, bench.threads)
    made = sweep(whole, arguments, bench.peaks, bench.report)
    return {"documents": source, "metric": arguments.metric, "missing": {}, **made}


def _dedup(bench: Bench) -> dict[str, Any]:
    arguments = bench.arguments
    peers, missing = _peers(dedup.PEERS, arguments)
    working_bytes = dedup.BLOCKS[-1] * (arguments.docs or arguments.default_docs) * 8
    docs, source = inputs.documents(arguments, peers, working_bytes=working_bytes)
    if arguments.embeddings is None:
        workloads.plant_copies(docs, arguments.copies, arguments.seed)
        source += f", {100 * arguments.copies:g} % near copies"
    problem = dedup.Problem(docs, arguments.threshold, arguments.metric, arguments.rule, bench.threads)
    plain = problem.normalised() if peers else problem
    systems = [dedup.ours(problem, isa) for isa in ("", *arguments.isas)]
    systems += [peer.make(plain) for peer in peers]
    work = {"flop": problem.flop, "bytes": float(docs.nbytes)}
    row = bench.measure(systems, problem, dedup.check(problem), work, "dedup")
    return {"documents": source, "metric": arguments.metric, "missing": missing, "rows": bench.finished([row])}


def _margins(bench: Bench) -> dict[str, Any]:
    arguments = bench.arguments
    peers, missing = harness.choose(margins.PEERS, arguments.peers)
    n_negatives, n_positives = (arguments.queries * n for n in (arguments.negatives, arguments.positives))
    # Of a negative: its score, two results of 5 bytes, and what comparing them takes.
    needed = 24 * n_negatives + 12 * n_positives + 40 * arguments.queries + inputs.ALLOWANCE_BYTES
    remedy = "ask for fewer with --queries or --negatives"
    memory.refuse_too_large(f"{n_negatives} negatives and {n_positives} positives", needed, remedy)
    first, end = arguments.ranks or (0, None)
    if first < 0 or (end is not None and end <= first):
        raise ConfigError(f"bench: --ranks is {first} {end} but must be 0 <= FIRST < END")
    given = {name: getattr(arguments, name) for name in margins.LIMITS}
    limits = {name: value for name, value in given.items() if value is not None}
    lists = workloads.ragged_scores(arguments.queries, arguments.negatives, arguments.positives, arguments.seed)
    problem = margins.Problem(lists, arguments.reference, (first, end), limits, bench.threads)
    systems = [margins.ours(problem), *(peer.make(problem) for peer in peers)]
    work = {"entries": float(n_negatives), "bytes": float(problem.n_bytes)}
    row = bench.measure(systems, problem, margins.check(problem), work, "margins")
    return {"documents": "uniform scores", "missing": missing, "rows": bench.finished([row])}


def _peers(peers: Sequence[Peer], arguments: argparse.Namespace) -> tuple[list[Peer], dict[str, list[str]]]:
    """The peers to compare with; instruction sets that are not there are refused before anything is made."""
    for isa in arguments.isas:
        with forced_isa(isa):
            pass
    return harness.choose(peers, arguments.peers)


_OPERATIONS: Mapping[str, Callable[[Bench], dict[str, Any]]] = {
    "search": _search,
    "dedup": _dedup,
    "margins": _margins,
    "generate": serving.measure_generate,
    "score": serving.measure_score,
    "embed": serving.measure_embed,
}
