"""From flags to what is measured of a checkpoint: generating, scoring, embedding."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gplfast.bench import checkpoints, embed, generate, harness, network, score
from gplfast.bench.checkpoints import FP32, Served
from gplfast.errors import ConfigError, DataError, MissingExtraError
from gplfast.models.sampling import Sampling
from gplfast.stages import evaluate
from gplfast.store.corpus import load_corpus, load_queries
from gplfast.store.qrels import load_qrels

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

    from gplfast.bench.harness import Check, Peer, System
    from gplfast.bench.run import Bench
    from gplfast.stages.evaluate import Judged
    from gplfast.store.corpus import Corpus

# What is drawn of a corpus that has more, unless the flags say another number.
PASSAGES, TEXTS = 64, 256


def measure_generate(bench: Bench) -> dict[str, Any]:
    """`gplfast bench generate`: its part of the result."""
    arguments, served, peers, missing, corpus = _read(bench, generate.PEERS)
    texts = checkpoints.sample(corpus, arguments.passages, PASSAGES, arguments.seed, "--passages")
    sampling = Sampling(
        top_k=arguments.top_k,
        top_p=arguments.top_p,
        temperature=arguments.temperature,
        max_new_tokens=arguments.max_new_tokens,
    )
    model = served.reference
    limit = min(arguments.passage_tokens or model.max_input_tokens, model.max_input_tokens)
    problem = generate.Problem(served, texts, arguments.samples, sampling, limit, arguments.seed)
    work = {"passages": float(len(texts)), "queries": float(len(texts) * arguments.samples)}
    check = generate.check(problem)
    return _measured(bench, problem, generate, peers=peers, check=check, work=work, missing=missing)


def measure_score(bench: Bench) -> dict[str, Any]:
    """`gplfast bench score`: its part of the result."""
    arguments, served, peers, missing, corpus = _read(bench, score.PEERS)
    queries, passages, origin = checkpoints.pairs(corpus, arguments.corpus, arguments.pairs, arguments.seed)
    model = served.reference
    lengths = served.tokenizer().encode_pairs(queries, passages, model.max_tokens).lengths
    problem = score.Problem(served, queries, passages, lengths, model.max_tokens)
    work = {"pairs": float(len(queries)), **_network_work(served, lengths)}
    return _measured(
        bench, problem, score, peers=peers, check=score.check, work=work, missing=missing, origin=f", {origin}"
    )


def measure_embed(bench: Bench) -> dict[str, Any]:
    """`gplfast bench embed`: its part of the result."""
    arguments, served, peers, missing, corpus = _read(bench, embed.PEERS)
    texts = checkpoints.sample(corpus, arguments.texts, TEXTS, arguments.seed, "--texts")
    judged = None if arguments.qrels is None else _judged(corpus, arguments)
    model = served.reference
    prompt = model.prompts["document"]
    lengths = served.tokenizer().encode([prompt + text for text in texts], model.max_tokens).lengths
    problem = embed.Problem(served, texts, lengths, model.similarity, judged)
    work = {"texts": float(len(texts)), **_network_work(served, lengths)}
    check = embed.check(problem)
    return _measured(bench, problem, embed, peers=peers, check=check, work=work, missing=missing)


def _read(
    bench: Bench, known: Sequence[Peer]
) -> tuple[argparse.Namespace, Served, list[Peer], dict[str, list[str]], Corpus]:
    """What all three need, cheapest first: a wrong flag shows before a model is loaded."""
    arguments = bench.arguments
    if len(set(arguments.precision)) < len(arguments.precision):
        raise ConfigError(f"bench: --precision names one twice: {' '.join(arguments.precision)}")
    peers, missing = harness.choose(known, arguments.peers)
    corpus = load_corpus(arguments.corpus, split_words=arguments.split_words)
    served = Served.find(arguments.operation, arguments.model, arguments.provider, bench.threads)
    return arguments, served, peers, missing, corpus


def _network_work(served: Served, lengths: Any) -> dict[str, float]:
    flop = network.encoder_flop(served.checkpoint.config, lengths)
    return {"tokens": float(lengths.sum()), "flop": flop}


def _measured(
    bench: Bench,
    problem: Any,
    operation: Any,
    *,
    peers: Sequence[Peer],
    check: Check,
    work: dict[str, float],
    missing: dict[str, list[str]],
    origin: str = "",
) -> dict[str, Any]:
    """Ours in each precision, then the peers; all are compared with ours in float32."""
    systems: list[System] = [operation.ours(problem, precision) for precision in bench.arguments.precision]
    systems += [peer.make(problem) for peer in peers]
    (reference,) = operation.ours(problem, FP32).settings.values()
    row = bench.measure(systems, problem, check, work, bench.arguments.operation, reference=reference)
    source = f"{bench.arguments.corpus.name or bench.arguments.corpus}{origin}"
    return {"documents": source, "missing": missing, "rows": bench.finished([row])}


def _judged(corpus: Corpus, arguments: argparse.Namespace) -> Judged:
    """The judged queries.

    Raises:
        DataError: No queries or judgements, or they do not fit the corpus.
    """
    folder = Path(arguments.corpus)
    if not folder.is_dir():
        raise DataError(
            f"bench: --qrels needs queries.jsonl beside the corpus but {folder} is no folder; give a folder"
        )
    try:
        import ir_measures  # noqa: F401 - before minutes of embedding
    except ImportError as error:
        raise MissingExtraError("bench: --qrels needs ir-measures; pip install 'gplfast[eval]'") from error
    queries = load_queries(folder)
    return evaluate.judged(corpus, queries, load_qrels(arguments.qrels, arguments.split, corpus, queries), "")
