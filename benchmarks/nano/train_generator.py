"""Train the nano query generator, a small T5, from scratch.

Three tasks share one input form (title + a window of a passage): write a span of the window (this teaches
copying, which questions are made of), write a clause of it with gaps, and write the question people asked.
Muon trains the matrices, Adam the embeddings and biases. Goes on from the last checkpoint when run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import re
import time
from pathlib import Path

import bm25s
import corpora
import numpy as np
import torch
import vocabulary
from bm25s.stopwords import STOPWORDS_EN
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

log = logging.getLogger("generator")
WORD = re.compile(r"\w+")
MAX_TARGET_TOKENS = 26
SPANS, TOPICS = 0.05, 0.4
"""Shares of the examples, once copying is learned, whose target is a span and a short topic; the rest are questions.

Short topical queries teach a retriever most: passages match them by degrees, so the teacher's margins differ. Of a
whole sentence the only good match is its own passage, and all negatives look alike.
"""
FINDABLE_RANK = 3


def build(data: Path, out: Path) -> None:
    """Write the untrained model, its tokenizer and the tokenised examples."""
    squad = corpora.passages(data, "squad_v1.1")
    passages = squad + corpora.passages(data, "pubmedqa") + corpora.passages(data, "perspectrum")
    pairs = [(q, "squad_v1.1") for q in corpora.questions(data, "squad_v1.1")]
    pairs += [(q, "pubmedqa") for s in ("train", "test") for q in corpora.questions(data, "pubmedqa", s)]
    texts = [f"{p.title} {p.text}" for p in passages] + [q.text for q, _ in pairs]
    core, source_ids = vocabulary.prune(texts, min_count=12, specials=["<pad>", "</s>", "[UNK]"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="</s>", unk_token="[UNK]", model_max_length=512
    )
    config = T5Config(
        vocab_size=len(source_ids),
        d_model=256,
        d_kv=64,
        num_heads=4,
        d_ff=1024,
        num_layers=4,
        num_decoder_layers=2,
        feed_forward_proj="relu",
        dropout_rate=0.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    model = T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.shared.weight.copy_(vocabulary.projected_embeddings(source_ids, config.d_model, seed=0))
    log.info("%d pieces, %.2f M parameters", len(source_ids), sum(p.numel() for p in model.parameters()) / 1e6)
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out / "init")
    tokenizer.save_pretrained(out / "init")

    encode = lambda xs: [np.asarray(e.ids, np.int32) for e in core.encode_batch(xs, add_special_tokens=False)]  # noqa: E731
    index = {p.id: i for i, p in enumerate(passages)}
    sentences: list[list[np.ndarray]] = []
    flat = [p.sentences() for p in passages]
    encoded = iter(encode([s for group in flat for s in group]))
    sentences = [[next(encoded) for _ in group] for group in flat]
    document_words = [[set(WORD.findall(s.lower())) for s in group] for group in flat]
    ranks = found_at([f"{p.title} {p.text}" for p in passages], [q.text for q, _ in pairs])
    examples = []
    for (question, _), ids, ranking in zip(pairs, encode([q.text for q, _ in pairs]), ranks, strict=True):
        place = index[question.positives[0]]
        words = set(WORD.findall(question.text.lower())) - set(STOPWORDS_EN)
        overlap = [len(words & s) for s in document_words[place]]
        # A question that does not say what it is about teaches to ask such questions.
        if overlap and 3 <= len(ids) < MAX_TARGET_TOKENS and place in ranking:
            examples.append((place, int(np.argmax(overlap)), ids))
    log.info("%d passages, %d questions", len(passages), len(examples))
    headlines = {
        index[q.positives[0]]: ids
        for (q, name), ids in zip(pairs, encode([q.text for q, _ in pairs]), strict=True)
        if name == "pubmedqa"
    }
    torch.save(
        {
            "titles": encode([p.title for p in passages]),
            "sentences": sentences,
            "questions": examples,
            "headlines": headlines,
        },
        out / "data.pt",
    )


def found_at(texts: list[str], queries: list[str]) -> np.ndarray:
    """BM25's first passages for each query."""
    index = bm25s.BM25(k1=1.2, b=0.75)
    index.index(bm25s.tokenize(texts, stopwords="en", show_progress=False), show_progress=False)
    tokens = bm25s.tokenize(queries, stopwords="en", show_progress=False, return_ids=False)
    return index.retrieve(tokens, k=FINDABLE_RANK, show_progress=False)[0]


class Batches:
    """Batches as a function of the step alone, so that a resumed run draws what an uninterrupted one would."""

    def __init__(self, data: dict, pieces: list[str], batch: int, total: int, copy_until: float) -> None:
        self.titles, self.sentences, self.questions = data["titles"], data["sentences"], data["questions"]
        self.headlines = data["headlines"]
        self.batch, self.total, self.copy_until = batch, total, copy_until
        self.inside = np.asarray([piece.startswith("##") for piece in pieces])
        self.mark = np.asarray([not piece[:1].isalnum() and not piece.startswith("##") for piece in pieces])
        self.function = (
            np.asarray([piece in STOPWORDS_EN or not piece[:1].isalnum() for piece in pieces]) & ~self.inside
        )
        self.long = [i for i, s in enumerate(self.sentences) if sum(map(len, s)) >= 20]

    def window(
        self, rng: np.random.Generator, place: int, sentence: int, budget: int, title: np.ndarray | None = None
    ) -> np.ndarray:
        """Title and whole sentences around `sentence`, at most `budget` tokens."""
        group, first, last = self.sentences[place], sentence, sentence + 1
        title = self.titles[place] if title is None else title
        room = budget - len(title) - len(group[sentence])
        while room > 0 and (first > 0 or last < len(group)):
            left = first > 0 and (last == len(group) or rng.random() < 0.5)
            extra = group[first - 1] if left else group[last]
            if len(extra) > room and rng.random() < 0.7:
                break
            first, last = (first - 1, last) if left else (first, last + 1)
            room -= len(extra)
        return np.concatenate([title, *group[first:last]])[:budget]

    def words(self, tokens: np.ndarray) -> list[np.ndarray]:
        """The tokens of each word."""
        begins = np.flatnonzero(~self.inside[tokens])
        return np.split(tokens, begins[begins > 0])

    def phrase(self, rng: np.random.Generator, tokens: np.ndarray, longest: int) -> list[np.ndarray]:
        """Of three draws the phrase with the most content words."""
        draws = [self._phrase(rng, tokens, longest) for _ in range(3)]
        return max(draws, key=lambda part: sum(not self.function[w[0]] for w in part))

    def _phrase(self, rng: np.random.Generator, tokens: np.ndarray, longest: int) -> list[np.ndarray]:
        """Words in a row, with or without the function words between them, at most `longest`."""
        words = self.words(tokens)
        length = int(rng.integers(min(3, longest), longest + 1))
        first = 0 if rng.random() < 0.5 else int(rng.integers(max(1, len(words) - length + 1)))
        part = words[first : first + length]
        drop = rng.random() < 0.3
        part = [w for w in part if not (drop and self.function[w[0]])] or part
        while len(part) > 1 and self.function[part[-1][0]]:
            part = part[:-1]
        while len(part) > 1 and self.function[part[0][0]]:
            part = part[1:]
        return part

    def topic(self, rng: np.random.Generator, place: int, budget: int) -> tuple[np.ndarray, np.ndarray]:
        """A window and a short query on what it is about: words of its headline, or its title and a phrase.

        The passages' own titles are names of one or two words, so a sentence stands in for the headlines of other
        collections.
        """
        group, title = self.sentences[place], self.titles[place]
        sentence = int(rng.integers(len(group)))
        headline = self.headlines.get(place)
        if headline is None and rng.random() < 0.6:
            fit = [s for s in group if 6 <= len(s) <= 28]
            headline = fit[rng.integers(len(fit))] if fit else None
        if headline is not None:
            source = self.window(rng, place, sentence, budget, headline)
            whole = len(headline) <= 16 and rng.random() < 0.4
            target = self.words(headline) if whole else self.phrase(rng, headline, 9)
        else:
            source = self.window(rng, place, sentence, budget)
            body = source[len(title) :] if len(source) > len(title) + 4 else source
            target = ([title] if len(title) else []) + self.phrase(rng, body[:40], 6)
        target = [w for w in target if len(w)]
        while len(target) > 1 and len(target[-1]) == 1 and self.mark[target[-1][0]]:
            target = target[:-1]
        return source, np.concatenate(target)[: MAX_TARGET_TOKENS - 1]

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((7, step))
        budget = int(rng.choice([64, 96, 96, 128]))
        copying = 1.0 if step < self.copy_until * self.total else SPANS
        rows = []
        for _ in range(self.batch):
            task = rng.random()
            if task < copying:
                place = self.long[rng.integers(len(self.long))]
                source = self.window(rng, place, int(rng.integers(len(self.sentences[place]))), budget)
                start = int(rng.integers(max(1, len(source) - 12)))
                target = source[start : start + int(rng.integers(5, 14))]
            elif task < copying + TOPICS:
                source, target = self.topic(rng, self.long[rng.integers(len(self.long))], budget)
            else:
                place, sentence, target = self.questions[rng.integers(len(self.questions))]
                source = self.window(rng, place, sentence, budget)
            rows.append((source, np.append(target, 1)))
        inputs = np.zeros((self.batch, max(len(s) for s, _ in rows)), np.int64)
        labels = np.full((self.batch, max(len(t) for _, t in rows)), -100, np.int64)
        for i, (source, target) in enumerate(rows):
            inputs[i, : len(source)] = source
            labels[i, : len(target)] = target
        return {
            "input_ids": torch.from_numpy(inputs),
            "attention_mask": torch.from_numpy((inputs != 0).astype(np.int64)),
            "labels": torch.from_numpy(labels),
        }


def optimizers(model: T5ForConditionalGeneration, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices, Adam for the rest.

    T5 folds the attention's 1/sqrt(d_kv) into the query projection, so its step is smaller by that factor.
    """
    query, matrices, rest = [], [], []
    for name, parameter in model.named_parameters():
        if ".q.weight" in name:
            query.append(parameter)
        elif parameter.ndim == 2 and "shared" not in name and "relative" not in name:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    muon = torch.optim.Muon(
        [{"params": matrices, "lr": lr}, {"params": query, "lr": lr / model.config.d_kv**0.5}], lr=lr, weight_decay=0.01
    )
    return [muon, torch.optim.AdamW(rest, lr=lr * 0.3, betas=(0.9, 0.98), weight_decay=0.0)]


def train(out: Path, *, total: int, batch: int, lr: float, copy_until: float, save_every: int) -> None:
    """Train to step `total`, saving the model and the optimizers' state every `save_every` steps."""
    checkpoint = out / "checkpoint.pt"
    model = T5ForConditionalGeneration.from_pretrained(out / "init", dtype=torch.float32)
    solvers = optimizers(model, lr)
    base = [[g["lr"] for g in s.param_groups] for s in solvers]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out / "init")
    pieces = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
    batches = Batches(torch.load(out / "data.pt", weights_only=False), pieces, batch, total, copy_until)
    step, losses = 0, []
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=False)
        model.load_state_dict(state["model"])
        for solver, saved in zip(solvers, state["solvers"], strict=True):
            solver.load_state_dict(saved)
        step = state["step"]
        log.info("going on from step %d", step)
    model.train()
    started, first = time.monotonic(), step
    while step < total:
        scale = min(1.0, (step + 1) / 200) * max(0.02, min(1.0, (total - step) / (0.4 * total)))
        for solver, rates in zip(solvers, base, strict=True):
            for group, rate in zip(solver.param_groups, rates, strict=True):
                group["lr"] = rate * scale
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(**batches(step)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for solver in solvers:
            solver.step()
            solver.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step += 1
        if step % 50 == 0:
            rate = (step - first) * batch / (time.monotonic() - started)
            log.info("step %d loss %.3f, %.0f examples/s", step, float(np.mean(losses[-50:])), rate)
        if step % save_every == 0 or step == total:
            state = {"model": model.state_dict(), "solvers": [s.state_dict() for s in solvers], "step": step}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    model.save_pretrained(out / "final")
    (out / "final.json").write_text(json.dumps({"steps": total, "batch": batch, "loss": float(np.mean(losses[-200:]))}))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with squad_v1.1, pubmedqa, perspectrum")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=96)
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--copy-until", type=float, default=0.1, help="share of the steps that only copy")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    if not (args.out / "data.pt").exists():
        build(args.data, args.out)
    train(
        args.out, total=args.steps, batch=args.batch, lr=args.lr, copy_until=args.copy_until, save_every=args.save_every
    )


if __name__ == "__main__":
    main()
