"""GPL outside training (generate, mine, label) on SciFact with the bundled models: gplfast's pipeline against one that
is written plainly with transformers, sentence-transformers and torch. Written to results/gpl.json and gpl.png.

    python benchmarks/bench_gpl.py --data ../shared/data --passages 300

Both read the same passages with the same checkpoints. Each part of the reference starts from what gplfast made before
it (queries, negatives, pairs), so that both do the same work: as many queries are sampled, as many texts embedded and
searched, and the same different pairs scored, each once. The reference sorts by length, and takes the size of batch and
the precision (fp32, bf16) that are fastest on a few of its texts. Its models are open before the clock starts;
gplfast's parts include opening the exported models and writing to disk.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import machine
import numpy as np
import torch
import transformers
from sentence_transformers import CrossEncoder, SentenceTransformer

from gplfast.bench.harness import same_threads
from gplfast.config import load_config
from gplfast.models import BiEncoder, QueryGenerator, resolve
from gplfast.models import CrossEncoder as OurCrossEncoder
from gplfast.ops import available_threads
from gplfast.pipeline import Pipeline
from gplfast.store.corpus import load_corpus

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RESULT = Path(__file__).parent / "results" / "gpl.json"
PARTS = ("generate", "mine", "label")
BATCHES = (32, 64, 128)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
TRIED = 64  # texts that batch size and precision are chosen with
TOP_K, TOP_P, TEMPERATURE, NEW_TOKENS, PASSAGE_TOKENS, PAIR_TOKENS = 25, 0.95, 1.0, 32, 128, 256


def settings(negatives: int) -> dict[str, Any]:
    """Of the pipeline: what a plain reference can do as well, so no BM25, no windows and no filter by score."""
    return {
        "generate": {
            "queries_per_passage": 3, "max_queries": 0, "window": "head", "temperature": TEMPERATURE, "top_k": TOP_K,
            "top_p": TOP_P, "max_new_tokens": NEW_TOKENS, "passage_tokens": PASSAGE_TOKENS,
            "copied": "keep", "extra_draws": 0.0,
        },
        "mine": {"retrievers": ["nano:student"], "negatives_per_query": negatives, "exclude_duplicates": False},
        "label": {"keep_share": 1.0, "max_seq_length": PAIR_TOKENS},
    }  # fmt: skip


def ours(passages: list[str], config: Any, work: Path) -> tuple[dict[str, float], Pipeline]:
    """Seconds of each part, and the pipeline with what it made."""
    QueryGenerator.open("nano:generator")  # exports, so that no part has to
    BiEncoder.open("nano:student")
    OurCrossEncoder.open("nano:teacher")
    pipeline = Pipeline(passages, work, config)
    with pipeline.work:
        for part in PARTS:
            pipeline.step(part)
    return {part: pipeline.seconds()[part] for part in PARTS}, pipeline


def fastest(
    candidates: dict[str, Callable[[Sequence[Any]], Any]], tried: Sequence[Any]
) -> tuple[str, Callable[[Sequence[Any]], Any]]:
    """The candidate that is fastest on a few inputs, each called twice."""
    seconds = {}
    for name, call in candidates.items():
        call(tried[:8])
        started = time.perf_counter()
        call(tried)
        seconds[name] = time.perf_counter() - started
    best = min(seconds, key=seconds.__getitem__)
    return best, candidates[best]


def variants(make: Callable[[torch.dtype], Any], call: Callable[..., Any]) -> dict[str, Callable[[Sequence[Any]], Any]]:
    """`call(model, batch_size, inputs)` for each precision and size of batch."""
    models = {name: make(dtype) for name, dtype in DTYPES.items()}

    def bound(model: Any, size: int) -> Callable[[Sequence[Any]], Any]:
        return lambda inputs: call(model, size, inputs)

    return {f"{name}, batches of {n}": bound(models[name], n) for name, n in itertools.product(models, BATCHES)}


def generators() -> dict[str, Callable[[Sequence[str]], Any]]:
    """transformers.generate over batches sorted by length."""
    directory = resolve("nano:generator")
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    tokenizer.pad_token_id = tokenizer.pad_token_id or 0

    def make(dtype: torch.dtype) -> Any:
        return transformers.AutoModelForSeq2SeqLM.from_pretrained(directory).to(dtype).eval()

    @torch.inference_mode()
    def call(model: Any, size: int, texts: Sequence[str]) -> list[str]:
        order = sorted(range(len(texts)), key=lambda i: -len(texts[i]))
        queries: list[str] = []
        for start in range(0, len(order), size):
            batch = [texts[i] for i in order[start : start + size]]
            inputs = tokenizer(batch, padding=True, truncation=True, max_length=PASSAGE_TOKENS, return_tensors="pt")
            made = model.generate(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], do_sample=True, top_k=TOP_K,
                top_p=TOP_P, temperature=TEMPERATURE, num_return_sequences=3, num_beams=1, max_new_tokens=NEW_TOKENS,
            )  # fmt: skip
            queries += tokenizer.batch_decode(made, skip_special_tokens=True)
        return queries

    return variants(make, call)


def encoders() -> dict[str, Callable[[Sequence[str]], Any]]:
    """SentenceTransformer.encode, normalised, as float32."""

    def make(dtype: torch.dtype) -> Any:
        return SentenceTransformer(str(resolve("nano:student")), device="cpu").to(dtype)

    def call(model: Any, size: int, texts: Sequence[str]) -> torch.Tensor:
        vectors = model.encode(list(texts), batch_size=size, show_progress_bar=False, convert_to_tensor=True)
        return torch.nn.functional.normalize(vectors.float(), dim=1)

    return variants(make, call)


def teachers() -> dict[str, Callable[[Sequence[tuple[str, str]]], Any]]:
    """CrossEncoder.predict with raw logits; it sorts by length itself."""

    def make(dtype: torch.dtype) -> Any:
        directory = str(resolve("nano:teacher"))
        return CrossEncoder(directory, device="cpu", max_length=512, activation_fn=torch.nn.Identity()).to(dtype)

    def call(model: Any, size: int, pairs: Sequence[tuple[str, str]]) -> Any:
        return model.predict(list(pairs), batch_size=size, show_progress_bar=False, convert_to_tensor=True).float()

    return variants(make, call)


def different_pairs(pipeline: Pipeline, passages: list[str]) -> list[tuple[str, str]]:
    """The pairs of the pipeline's margins, each once, cut as the pipeline cuts them."""
    margins, teacher = pipeline.margins(), OurCrossEncoder.open("nano:teacher")
    both = np.stack([np.tile(margins.queries, 2), np.concatenate([margins.positives, margins.negatives])], axis=1)
    rows = np.unique(both, axis=0)
    queries, texts = (teacher.cut(part, PAIR_TOKENS) for part in (pipeline.queries().texts, passages))
    return [(queries[query], texts[passage]) for query, passage in rows.tolist()]


def reference(
    pipeline: Pipeline, passages: list[str], negatives: int
) -> tuple[dict[str, float], dict[str, str], dict[str, int]]:
    """Seconds, chosen settings, and counts of each part."""
    seconds: dict[str, float] = {}
    chosen: dict[str, str] = {}
    queries = pipeline.queries()

    def timed(part: str, work: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        made = work()
        seconds[part] = time.perf_counter() - started
        return made

    chosen["generate"], generate = fastest(generators(), passages[:TRIED])
    drawn = timed("generate", lambda: generate(passages))
    chosen["mine"], encode = fastest(encoders(), passages[:TRIED])
    positives = torch.from_numpy(np.array(queries.passages))

    def mine() -> torch.Tensor:
        scores = encode(queries.texts) @ encode(passages).T
        scores[torch.arange(len(positives)), positives] = -torch.inf
        return torch.topk(scores, min(negatives, len(passages) - 1)).indices

    found = timed("mine", mine)
    pairs = different_pairs(pipeline, passages)
    chosen["label"], score = fastest(teachers(), pairs[:TRIED])
    scores = timed("label", lambda: score(pairs))
    ours_found = pipeline.negatives().union()[0]
    counts = {
        "passages": len(passages), "queries_drawn": len(drawn), "queries": len(queries), "pairs": len(scores),
        "negatives": int(found.numel()), "negatives_gplfast": int(ours_found[-1]),
    }  # fmt: skip
    return seconds, chosen, counts


def plot(result: dict[str, Any], path: Path) -> None:
    """A stacked bar for each side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 2.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    names, left = list(result["seconds"]), np.zeros(len(result["seconds"]))
    for part in PARTS:
        seconds = np.array([result["seconds"][name][part] for name in names])
        axes.barh(names, seconds, left=left, label=part)
        left += seconds
    for row, total in enumerate(left):
        axes.text(total, row, f" {total:.1f} s", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.12)
    axes.set_xlabel("seconds")
    axes.legend(fontsize=8, loc="upper right")
    place, counts = result["machine"], result["counts"]
    axes.set_title(
        f"{counts['passages']} passages of SciFact, {result['threads']} threads of {place['cpu']}", fontsize=9
    )
    figure.savefig(path, dpi=150)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with scifact")
    parser.add_argument("--passages", type=int, default=300, help="sample of the corpus, for both (default 300)")
    parser.add_argument("--negatives", type=int, default=50, help="of each query (default 50)")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    texts = load_corpus(args.data / "scifact").texts()
    if not TRIED <= args.passages <= len(texts):
        sys.exit(f"bench_gpl: --passages is {args.passages} but must be from {TRIED} to {len(texts)}")
    passages = [texts[row] for row in np.sort(np.random.default_rng(0).permutation(len(texts))[: args.passages])]
    config = load_config(preset="nano", overrides=settings(args.negatives))
    torch.manual_seed(0)
    threads = available_threads()
    with tempfile.TemporaryDirectory() as work, same_threads(threads):
        seconds, pipeline = ours(passages, config, Path(work))
        other, chosen, counts = reference(pipeline, passages, args.negatives)
    result = {
        "machine": machine.describe(), "threads": threads, "counts": counts, "settings": chosen,
        "seconds": {"gplfast": seconds, "reference": other},
        "times_gplfast": sum(other.values()) / sum(seconds.values()),
    }  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    plot(result, args.out.with_suffix(".png"))
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
