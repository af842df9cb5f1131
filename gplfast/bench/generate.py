"""Query generation: ours, and transformers and CTranslate2 sampling as many queries from the same passages."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.bench.checkpoints import FP32, system_name
from gplfast.bench.harness import Peer, PeerError, System
from gplfast.models.batching import mask_of, pad
from gplfast.models.export.t5 import T5
from gplfast.models.query_generator import special_tokens
from gplfast.models.sampling import Sampling
from gplfast.models.tokenization import Tokenizer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from gplfast.bench.checkpoints import Served

    # Of each passage its queries' token ids, without the end and padding.
    Rows = list[list[list[int]]]

BATCHES = (16, 32, 64)  # passages of a batch of a peer; all are tried
GREEDY_PASSAGES = 8  # compared token by token
GREEDY_TOKENS = 16
# Logits of the tokens where two float32 networks part may be this far apart, relative to the largest: a tie.
TIE = 1e-3
# Mean lengths of two samples may be this many standard errors apart, and half a token.
MOST_ERRORS = 5.0


@dataclasses.dataclass(frozen=True)
class Problem:
    """Queries for passages.

    Attributes:
        served: The checkpoint.
        texts: The passages.
        n_samples: Queries of each.
        sampling: How tokens are drawn.
        max_input_tokens: Passages are cut to so many.
        seed: Of the draws.
    """

    served: Served
    texts: Sequence[str]
    n_samples: int
    sampling: Sampling
    max_input_tokens: int
    seed: int

    @property
    def shape(self) -> dict[str, Any]:
        """As the result names it."""
        return {
            "model": self.served.name,
            "n_passages": len(self.texts),
            "n_samples": self.n_samples,
            "max_new_tokens": self.sampling.max_new_tokens,
            "max_input_tokens": self.max_input_tokens,
        }

    @property
    def special(self) -> tuple[int, int]:
        """Ids of padding and of the end."""
        found = special_tokens(self.served.checkpoint)
        return found.pad, found.end[0]

    @property
    def greedy(self) -> Problem:
        """The first passages, one most likely query each."""
        sampling = Sampling(greedy=True, max_new_tokens=min(GREEDY_TOKENS, self.sampling.max_new_tokens))
        return dataclasses.replace(self, texts=self.texts[:GREEDY_PASSAGES], n_samples=1, sampling=sampling)

    def tokenizer(self) -> Tokenizer:
        """The checkpoint's, for the peers: what each system reads is the same."""
        checkpoint = self.served.checkpoint
        return Tokenizer(checkpoint, vocabulary_rows=T5(checkpoint).input_rows, end_id=self.special[1])


@dataclasses.dataclass(frozen=True)
class Generated:
    """A result.

    Attributes:
        rows: The queries.
        greedy: Gives the rows of `Problem.greedy`.
        gap: Of (greedy passage, tokens so far, token, other token) how far the two logits are apart, relative to the
            largest; None where the system does not say.
    """

    rows: Rows
    greedy: Callable[[], Rows]
    gap: Callable[[int, list[int], int, int], float] | None = None

    @property
    def lengths(self) -> np.ndarray[Any, np.dtype[np.float64]]:
        """Tokens of each query."""
        return np.array([len(row) for queries in self.rows for row in queries], np.float64)


def ours(problem: Problem, precision: str) -> System:
    """Our generator in one precision."""
    model = problem.served.open(precision)

    def draw(part: Problem) -> Rows:
        made: Rows = model.generate_ids(
            part.texts,
            part.n_samples,
            sampling=part.sampling,
            seed=part.seed,
            items=range(len(part.texts)),
            max_input_tokens=part.max_input_tokens,
        )
        return made

    greedy = functools.cache(lambda: draw(problem.greedy))
    name = system_name(precision)
    return System(name, {precision: lambda: Generated(draw(problem), greedy)}, exact=precision == FP32)


def _transformers(problem: Problem) -> System:
    return _transformers_system("transformers", problem, "float32")


def _transformers_bf16(problem: Problem) -> System:
    return _transformers_system("transformers-bf16", problem, "bfloat16")


def _transformers_system(name: str, problem: Problem, dtype: str) -> System:
    import torch
    import transformers

    model = transformers.AutoModelForSeq2SeqLM.from_pretrained(problem.served.directory).to(getattr(torch, dtype))
    model.eval()
    tokenizer, (padding, end) = problem.tokenizer(), problem.special

    @torch.inference_mode()
    def draw(batch_size: int, part: Problem) -> Rows:
        torch.manual_seed(part.seed)
        ids = tokenizer.encode(part.texts, part.max_input_tokens)
        rows: Rows = [[] for _ in part.texts]
        options: dict[str, Any] = {"num_beams": 1, "max_new_tokens": part.sampling.max_new_tokens}
        options |= {"do_sample": not part.sampling.greedy, "num_return_sequences": part.n_samples}
        if not part.sampling.greedy:
            options |= {name: getattr(part.sampling, name) for name in ("top_k", "top_p", "temperature")}
        order = np.argsort(-ids.lengths, kind="stable")
        for batch in (order[start : start + batch_size] for start in range(0, len(order), batch_size)):
            inputs = [ids.ids[row] for row in batch]
            tensors = (torch.from_numpy(values).long() for values in (pad(inputs, padding), mask_of(inputs)))
            made = model.generate(**dict(zip(("input_ids", "attention_mask"), tensors, strict=True)), **options)
            for i, row in enumerate(made[:, 1:].tolist()):
                rows[batch[i // part.n_samples]].append(row[: row.index(end)] if end in row else row)
        return rows

    @torch.inference_mode()
    def gap(passage: int, before: list[int], token: int, other: int) -> float:
        (ids,) = tokenizer.encode([problem.texts[passage]], problem.max_input_tokens).ids
        start = model.generation_config.decoder_start_token_id
        decoder = torch.tensor([[padding if start is None else start, *before]])
        logits = model(input_ids=torch.from_numpy(ids).long()[None], decoder_input_ids=decoder).logits[0, -1].float()
        return float(abs(logits[token] - logits[other]) / max(1.0, float(logits.abs().max())))

    return _system(name, problem, draw, gap=gap, exact=dtype == "float32")


def _system(
    name: str,
    problem: Problem,
    draw: Callable[[int, Problem], Rows],
    *,
    gap: Callable[[int, list[int], int, int], float] | None = None,
    exact: bool,
) -> System:
    """A peer with one setting for each size of batch."""
    greedy = functools.cache(lambda: draw(BATCHES[0], problem.greedy))

    def call(batch_size: int) -> Generated:
        return Generated(draw(batch_size, problem), greedy, gap)

    sizes = [size for i, size in enumerate(BATCHES) if i == 0 or BATCHES[i - 1] < len(problem.texts)]
    return System(name, {f"{size} passages a batch": functools.partial(call, size) for size in sizes}, exact=exact)


def _ctranslate2(problem: Problem) -> System:
    return _ctranslate2_system("ctranslate2", problem, "float32")


def _ctranslate2_int8(problem: Problem) -> System:
    return _ctranslate2_system("ctranslate2-int8", problem, "int8")


def _ctranslate2_system(name: str, problem: Problem, compute_type: str) -> System:
    """CTranslate2 sorts and splits by itself. It draws from top-k, then top-p, as transformers does."""
    import ctranslate2
    from ctranslate2.converters import TransformersConverter

    with tempfile.TemporaryDirectory() as folder:
        converted = Path(TransformersConverter(str(problem.served.directory)).convert(f"{folder}/model"))
        cores = problem.served.threads
        models = [
            ctranslate2.Translator(str(converted), compute_type=compute_type, inter_threads=inter, intra_threads=intra)
            for inter, intra in dict.fromkeys([(1, cores), (cores, 1)])
        ]
        pieces: list[str] = json.loads((converted / "shared_vocabulary.json").read_text(encoding="utf-8"))
    ids, tokenizer = {piece: i for i, piece in enumerate(pieces)}, problem.tokenizer()

    def draw(model: Any, batch_size: int, part: Problem) -> Rows:
        ctranslate2.set_random_seed(part.seed)
        encoded = tokenizer.encode(part.texts, part.max_input_tokens).ids
        options: dict[str, Any] = {"beam_size": 1, "num_hypotheses": part.n_samples, "max_batch_size": batch_size}
        options |= {"max_decoding_length": part.sampling.max_new_tokens, "min_decoding_length": 0}
        if not part.sampling.greedy:
            options |= {"sampling_topk": part.sampling.top_k or len(pieces), "sampling_topp": part.sampling.top_p}
            options["sampling_temperature"] = part.sampling.temperature
        made = model.translate_batch([[pieces[i] for i in row] for row in encoded], max_input_length=0, **options)
        return [[[ids[piece] for piece in row] for row in found.hypotheses] for found in made]

    systems = [
        _system(name, problem, functools.partial(draw, model), exact=compute_type == "float32") for model in models
    ]
    # One batch on all cores, or one on each: whichever is faster here.
    settings = {
        f"{setting}, {words}": call
        for system, words in zip(systems, ("all cores a batch", "one core a batch"), strict=False)
        for setting, call in system.settings.items()
    }
    return dataclasses.replace(systems[0], settings=settings)


PEERS: Sequence[Peer] = (
    Peer("transformers", ("transformers", "torch"), _transformers),
    Peer("transformers-bf16", ("transformers", "torch"), _transformers_bf16),
    Peer("ctranslate2", ("ctranslate2", "transformers", "torch"), _ctranslate2),
    Peer("ctranslate2-int8", ("ctranslate2", "transformers", "torch"), _ctranslate2_int8),
)


def check(problem: Problem) -> Callable[[System, Any, Any], dict[str, float]]:
    """What another's queries have in common with those of ours in float32.

    Of a float32 system the most likely tokens of a few passages must be ours up to ties, and sampled queries must be as
    long as ours on average; of others both are shown.
    """

    def compare(system: System, expected: Generated, found: Generated) -> dict[str, float]:
        wanted, own = expected.greedy(), found.greedy()
        differ = [passage for passage in range(len(wanted)) if wanted[passage] != own[passage]]
        a, b = expected.lengths, found.lengths
        if len(a) != len(b):
            raise PeerError(f"{system.name}: gives {len(b)} queries but {len(a)} are asked for")
        if system.exact:
            _refuse_other_tokens(system.name, wanted, own, differ, found.gap)
            _refuse_other_lengths(system.name, a, b)
        return {
            "greedy_that_differ": len(differ),
            "greedy_compared": len(wanted),
            "query_tokens": float(b.mean()),
            "cut_queries": float((b >= problem.sampling.max_new_tokens).mean()),
        }

    return compare


def _refuse_other_tokens(
    name: str,
    wanted: Rows,
    own: Rows,
    differ: list[int],
    gap: Callable[[int, list[int], int, int], float] | None,
) -> None:
    if gap is None:
        if 2 * len(differ) > len(wanted):
            raise PeerError(f"{name}: the most likely query differs for {len(differ)} of {len(wanted)} passages")
        return
    for passage in differ:
        (first,), (second,) = wanted[passage], own[passage]
        at = next((i for i, pair in enumerate(zip(first, second, strict=False)) if pair[0] != pair[1]), None)
        if at is None:  # one ends where the other goes on
            raise PeerError(
                f"{name}: the most likely query of passage {passage} has {len(second)} tokens but ours {len(first)}"
            )
        apart = gap(passage, first[:at], first[at], second[at])
        if apart > TIE:
            raise PeerError(
                f"{name}: token {at} of the most likely query of passage {passage} is {second[at]} but ours is "
                f"{first[at]}, and their logits are {apart:.2g} apart, which is no tie"
            )


def _refuse_other_lengths(name: str, a: Any, b: Any) -> None:
    error = float(np.sqrt(a.var() / len(a) + b.var() / len(b)))
    if abs(a.mean() - b.mean()) > MOST_ERRORS * error + 0.5:
        raise PeerError(
            f"{name}: queries have {b.mean():.1f} tokens on average but ours {a.mean():.1f}, which is more than chance "
            f"(standard error {error:.2f}): the two do not sample alike"
        )
