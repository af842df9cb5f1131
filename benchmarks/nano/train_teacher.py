"""Train the nano teacher: all-MiniLM-L6-v2 as a cross-encoder, distilled from BM25 + MiniLM and SQuAD's labels.

Labels of one domain alone make a teacher that fails in another, so most of the signal is a target that needs
no labels: for queries of many kinds (questions, claims, sentences) and the best documents of two retrievers, the
sum of MiniLM's cosine and of BM25 as a share of what the query could reach. A labelled positive gets a bonus on top.
Goes on from the last checkpoint when run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import bm25s
import corpora
import numpy as np
import torch
import vocabulary
from sentence_transformers import SentenceTransformer
from transformers import AutoModelForSequenceClassification, AutoTokenizer

log = logging.getLogger("teacher")
POOL = 50
SHARES = {"pubmedqa": 4}
COSINE_WEIGHT, LEXICAL_WEIGHT, OFFSET, LABEL_BONUS = 10.0, 12.0, 8.0, 2.0


def query_sets(data: Path, seed: int) -> list[tuple[str, list[corpora.Passage], list[corpora.Question]]]:
    """(name, passages, queries) per corpus: labelled questions, claims, and sentences without their own passage."""
    rng = np.random.default_rng(seed)
    sets = []
    for name, n_questions, n_sentences in (
        ("squad_v1.1", 16000, 6000),
        ("pubmedqa", 1000, 3000),
        ("perspectrum", 907, 0),
    ):
        passages = corpora.passages(data, name)
        splits = {"squad_v1.1": ["train"], "pubmedqa": ["train", "test"], "perspectrum": ["train", "dev", "test"]}[name]
        labelled = [q for s in splits for q in corpora.questions(data, name, s)]
        chosen = [labelled[i] for i in rng.permutation(len(labelled))[:n_questions]]
        for i in rng.integers(len(passages), size=n_sentences):
            sentences = [s for s in passages[i].sentences() if 5 <= len(s.split()) <= 40]
            if sentences:
                chosen.append(corpora.Question(sentences[rng.integers(len(sentences))], ("-" + passages[i].id,)))
        sets.append((name, passages, chosen))
    return sets


def lexical(texts: list[str], queries: list[str], k: int) -> tuple[bm25s.BM25, np.ndarray, np.ndarray, np.ndarray]:
    """BM25's top k and, per query, the sum of its terms' best possible weights."""
    index = bm25s.BM25(k1=1.2, b=0.75)
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(queries, stopwords="en", show_progress=False, return_ids=False)
    ids, scores = index.retrieve(tokens, k=min(k, len(texts)), show_progress=False)
    return index, ids, scores, tokens


def build(data: Path, out: Path, seed: int) -> None:
    """Score a pool of candidates for every query with both retrievers and save the targets."""
    encoder = SentenceTransformer(str(vocabulary.minilm_dir()), device="cpu")
    encoder.max_seq_length = 256
    groups = []
    for name, passages, queries in query_sets(data, seed):
        texts = [f"{p.title} {p.text}".strip() for p in passages]
        with torch.autocast("cpu", torch.bfloat16):
            docs = torch.nn.functional.normalize(
                encoder.encode(texts, batch_size=64, convert_to_tensor=True).float(), dim=1
            ).numpy()
            asked = torch.nn.functional.normalize(
                encoder.encode([q.text for q in queries], batch_size=128, convert_to_tensor=True).float(), dim=1
            ).numpy()
        log.info("%s: %d passages and %d queries encoded", name, len(texts), len(queries))
        index, found, _, tokens = lexical(texts, [q.text for q in queries], POOL)
        idf = {}
        row = {p.id: i for i, p in enumerate(passages)}
        rng = np.random.default_rng((seed, len(texts)))
        for i, query in enumerate(queries):
            cosines = docs @ asked[i]
            bm25 = np.asarray(index.get_scores(tokens[i]), np.float64)
            dense = np.argpartition(-cosines, min(POOL, len(texts) - 1))[:POOL]
            dropped = [row[p[1:]] for p in query.positives if p.startswith("-")]
            positives = [row[p] for p in query.positives if not p.startswith("-")]
            pool = np.setdiff1d(np.union1d(np.union1d(found[i], dense), rng.integers(len(texts), size=4)), dropped)
            pool = np.union1d(pool, positives[:3]).astype(np.int64)
            best = sum(idf.setdefault(t, _best_weight(index, t)) for t in set(tokens[i])) or 1.0
            target = COSINE_WEIGHT * cosines[pool] + LEXICAL_WEIGHT * bm25[pool] / best - OFFSET
            labelled = np.isin(pool, positives)
            target = target + LABEL_BONUS * labelled
            groups.append((name, query.text, pool.astype(np.int32), target.astype(np.float32), labelled))
    torch.save(
        {
            "groups": groups,
            "texts": {n: [f"{p.title} {p.text}".strip() for p in ps] for n, ps, _ in query_sets(data, seed)},
        },
        out / "data.pt",
    )


def _best_weight(index: bm25s.BM25, token: str) -> float:
    """The largest weight the token has in any document: what a query can reach at best."""
    column = index.vocab_dict.get(token)
    if column is None:
        return 0.0
    first, last = index.scores["indptr"][column], index.scores["indptr"][column + 1]
    return float(index.scores["data"][first:last].max()) if last > first else 0.0


class Batches:
    """Groups of candidates of a few queries, drawn as a function of the step alone."""

    def __init__(self, out: Path, tokenizer: object, *, queries: int, docs: int, seed: int) -> None:
        state = torch.load(out / "data.pt", weights_only=False)
        self.groups, self.texts = state["groups"], state["texts"]
        self.tokenizer, self.queries, self.docs, self.seed = tokenizer, queries, docs, seed
        # SQuAD's 22,000 queries would drown the abstracts of pubmedqa, whose long scientific text is harder to score
        places = [i for i, group in enumerate(self.groups) for _ in range(SHARES.get(group[0], 1))]
        self.order = np.random.default_rng(seed).permutation(places)

    def __call__(self, step: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        rng = np.random.default_rng((self.seed, step))
        first, pairs, targets = step * self.queries, [], []
        for place in range(first, first + self.queries):
            name, query, pool, target, labelled = self.groups[self.order[place % len(self.order)]]
            # half of the group from the top of the fused ranking, half from anywhere in the pool
            ranked = np.argsort(-target, kind="stable")
            top, rest = ranked[:10], ranked[10:]
            chosen = list(rng.permutation(top)[: self.docs // 2])
            chosen += [i for i in np.flatnonzero(labelled)[:1] if i not in chosen]
            chosen += list(rng.permutation(rest)[: self.docs - len(chosen)])
            if len(chosen) < self.docs:
                chosen += list(rng.choice(len(pool), self.docs - len(chosen)))
            pairs += [(query, self.texts[name][pool[i]]) for i in chosen]
            targets.append(target[chosen])
        limit = int(rng.choice([96, 144, 192, 256], p=[0.25, 0.25, 0.25, 0.25]))
        encoded = self.tokenizer(
            [q for q, _ in pairs],
            [d for _, d in pairs],
            truncation="only_second",
            max_length=limit,
            padding=True,
            return_tensors="pt",
        )
        return dict(encoded), torch.from_numpy(np.stack(targets))


def train(out: Path, *, total: int, lr: float, queries: int, docs: int, layers: int, save_every: int) -> None:
    """Train to step `total`."""
    tokenizer = AutoTokenizer.from_pretrained(vocabulary.minilm_dir())
    tokenizer.model_max_length = 512
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(
        vocabulary.minilm_dir(),
        num_labels=1,
        num_hidden_layers=layers,
        dtype=torch.float32,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    solver = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    batches = Batches(out, tokenizer, queries=queries, docs=docs, seed=1)
    log.info("%d queries", len(batches.groups))
    checkpoint, step, losses = out / "checkpoint.pt", 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        solver.load_state_dict(state["solver"])
        step = state["step"]
        log.info("going on from step %d", step)
    model.train()
    started, first = time.monotonic(), step
    while step < total:
        for group in solver.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 150) * max(0.02, 1 - step / total)
        inputs, target = batches(step)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**inputs).logits
        scores = logits.float().view(target.shape)
        margins = (scores - scores.mean(1, keepdim=True)) - (target - target.mean(1, keepdim=True))
        divergence = torch.nn.functional.kl_div(
            scores.log_softmax(1), target.log_softmax(1), log_target=True, reduction="batchmean"
        )
        loss = margins.square().mean() + 0.1 * (scores - target).square().mean() + divergence
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        solver.step()
        solver.zero_grad(set_to_none=True)
        losses.append((margins.square().mean().item(), divergence.item()))
        step += 1
        if step % 50 == 0:
            margin, kl = np.mean(losses[-50:], axis=0)
            rate = (step - first) * target.numel() / (time.monotonic() - started)
            log.info(
                "step %d margin %.3f (of %.3f) kl %.3f, %.0f pairs/s",
                step,
                margin,
                float((target - target.mean(1, keepdim=True)).square().mean()),
                kl,
                rate,
            )
        if step % save_every == 0 or step == total:
            torch.save(
                {"model": model.state_dict(), "solver": solver.state_dict(), "step": step},
                checkpoint.with_suffix(".tmp"),
            )
            checkpoint.with_suffix(".tmp").replace(checkpoint)
            model.save_pretrained(out / "latest")
            tokenizer.save_pretrained(out / "latest")
    model.save_pretrained(out / "final")
    tokenizer.save_pretrained(out / "final")
    (out / "final.json").write_text(json.dumps({"steps": total, "loss": np.mean(losses[-200:], axis=0).tolist()}))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3500)
    parser.add_argument("--lr", type=float, default=8e-5)
    parser.add_argument("--queries", type=int, default=4, help="queries a batch")
    parser.add_argument("--docs", type=int, default=8, help="documents a query")
    parser.add_argument("--layers", type=int, default=6)
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "data.pt").exists():
        build(args.data, args.out, seed=3)
    train(
        args.out,
        total=args.steps,
        lr=args.lr,
        queries=args.queries,
        docs=args.docs,
        layers=args.layers,
        save_every=args.save_every,
    )


if __name__ == "__main__":
    main()
