"""Train the nano query generator, a small T5, from scratch.

Three tasks share one input form (title + a window of a passage): write a span of the window (this teaches
copying, which questions are made of), write one of its sentences, and write the question SQuAD's annotators asked.
Muon trains the matrices, Adam the embeddings and biases. Goes on from the last checkpoint when run again.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import re
import time
from pathlib import Path

import corpora
import numpy as np
import torch
import vocabulary
from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

log = logging.getLogger("generator")
WORD = re.compile(r"\w+")
MAX_TARGET_TOKENS = 26
STATEMENTS = 0.4
"""Share of the examples whose target is a short sentence of the window: people also search with statements, and a
sentence that is copied is a better query than a question that is garbled."""


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
    frequency: dict[str, int] = {}
    for group in document_words:
        for word in set().union(*group) if group else ():
            frequency[word] = frequency.get(word, 0) + 1
    idf = {w: math.log(len(passages) / n) for w, n in frequency.items()}
    examples = []
    for (question, _), ids in zip(pairs, encode([q.text for q, _ in pairs]), strict=True):
        place = index[question.positives[0]]
        words = set(WORD.findall(question.text.lower()))
        overlap = [sum(idf.get(w, 0.0) for w in words & s) for s in document_words[place]]
        if overlap and 3 <= len(ids) < MAX_TARGET_TOKENS and max(overlap) > 4.0:
            examples.append((place, int(np.argmax(overlap)), ids))
    log.info("%d passages, %d questions", len(passages), len(examples))
    torch.save(
        {"titles": encode([p.title for p in passages]), "sentences": sentences, "questions": examples}, out / "data.pt"
    )


class Batches:
    """Batches as a function of the step alone, so that a resumed run draws what an uninterrupted one would."""

    def __init__(self, data: dict, batch: int, total: int, copy_until: float) -> None:
        self.titles, self.sentences, self.questions = data["titles"], data["sentences"], data["questions"]
        self.batch, self.total, self.copy_until = batch, total, copy_until
        self.statements = [
            (place, i)
            for place, group in enumerate(self.sentences)
            for i, sentence in enumerate(group)
            if len(group) > 1 and 8 <= len(sentence) <= MAX_TARGET_TOKENS
        ]
        self.long = [i for i, s in enumerate(self.sentences) if sum(map(len, s)) >= 20]

    def window(self, rng: np.random.Generator, place: int, sentence: int, budget: int) -> np.ndarray:
        """Title and whole sentences around `sentence`, at most `budget` tokens."""
        group, first, last = self.sentences[place], sentence, sentence + 1
        room = budget - len(self.titles[place]) - len(group[sentence])
        while room > 0 and (first > 0 or last < len(group)):
            left = first > 0 and (last == len(group) or rng.random() < 0.5)
            extra = group[first - 1] if left else group[last]
            if len(extra) > room and rng.random() < 0.7:
                break
            first, last = (first - 1, last) if left else (first, last + 1)
            room -= len(extra)
        return np.concatenate([self.titles[place], *group[first:last]])[:budget]

    def __call__(self, step: int) -> dict[str, torch.Tensor]:
        rng = np.random.default_rng((7, step))
        budget = int(rng.choice([64, 96, 96, 128]))
        copying = 1.0 if step < self.copy_until * self.total else 0.05
        rows = []
        for _ in range(self.batch):
            task = rng.random()
            if task < copying:
                place = self.long[rng.integers(len(self.long))]
                source = self.window(rng, place, int(rng.integers(len(self.sentences[place]))), budget)
                start = int(rng.integers(max(1, len(source) - 12)))
                target = source[start : start + int(rng.integers(5, 14))]
            elif task < copying + STATEMENTS:
                place, sentence = self.statements[rng.integers(len(self.statements))]
                source, target = self.window(rng, place, sentence, budget), self.sentences[place][sentence][:-1]
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
    batches = Batches(torch.load(out / "data.pt", weights_only=False), batch, total, copy_until)
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
