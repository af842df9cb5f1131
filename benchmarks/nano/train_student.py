"""Train the nano student: the first layers of all-MiniLM-L6-v2, a general retriever with room to adapt.

A few minutes of SQuAD's questions with in-batch negatives join layers that were not neighbours and make what a
zero-shot model is: usable everywhere, at home nowhere.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from pathlib import Path

import corpora
import numpy as np
import torch
import vocabulary
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

log = logging.getLogger("student")
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def texts(data: Path) -> tuple[list[str], list[tuple[str, int]]]:
    """All passages, and (question, row of its passage)."""
    passages, pairs = [], []
    for name in ("squad_v1.1", "pubmedqa", "perspectrum"):
        own = corpora.passages(data, name)
        row = {p.id: len(passages) + i for i, p in enumerate(own)}
        passages += [f"{p.title} {p.text}".strip() for p in own]
        for split in {"squad_v1.1": ["train"], "pubmedqa": ["train", "test"], "perspectrum": ["train", "dev", "test"]}[
            name
        ]:
            pairs += [(q.text, row[p]) for q in corpora.questions(data, name, split) for p in q.positives[:2]]
    return passages, pairs


def initial(data: Path, out: Path, layers: list[int], max_tokens: int) -> None:
    """Write the untrained student: pruned vocabulary, the chosen layers, mean pooling."""
    from tokenizers import processors

    passages, pairs = texts(data)
    core, source_ids = vocabulary.prune(passages + [q for q, _ in pairs], min_count=12, specials=SPECIALS)
    core.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=512,
    )
    weights = load_file(vocabulary.minilm_dir() / "model.safetensors")
    config = BertConfig.from_pretrained(
        vocabulary.minilm_dir(), num_hidden_layers=len(layers), vocab_size=len(source_ids)
    )
    model = BertModel(config, add_pooling_layer=False)
    state = {k: v for k, v in weights.items() if k.startswith("embeddings.") and "position_ids" not in k}
    state["embeddings.word_embeddings.weight"] = state["embeddings.word_embeddings.weight"][source_ids]
    for new, old in enumerate(layers):
        prefix = f"encoder.layer.{old}."
        state |= {
            f"encoder.layer.{new}." + k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)
        }
    missing, unexpected = model.load_state_dict(state, strict=False)
    if unexpected or [m for m in missing if "position_ids" not in m]:
        raise ValueError(f"student: weights do not fit: missing {missing}, unexpected {unexpected}")
    model.save_pretrained(out / "backbone")
    tokenizer.save_pretrained(out / "backbone")
    transformer = Transformer(str(out / "backbone"), max_seq_length=max_tokens)
    SentenceTransformer(
        modules=[transformer, Pooling(config.hidden_size, pooling_mode="mean"), Normalize()]
    ).save_pretrained(str(out / "init"))


def train(data: Path, out: Path, *, total: int, batch: int, lr: float) -> None:
    """Train on the questions for `total` steps."""
    model = SentenceTransformer(str(out / "init"), device="cpu")
    passages, pairs = texts(data)
    rng = np.random.default_rng(5)
    chosen = [pairs[i] for i in rng.permutation(len(pairs))[: total * batch]]
    solver = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    model.train()
    started, losses = time.monotonic(), []
    for step in range(total):
        for group in solver.param_groups:
            group["lr"] = lr * min(1.0, (step + 1) / 50) * max(0.02, 1 - step / total)
        part = slice(step * batch, (step + 1) * batch)
        rows = [row for _, row in chosen[part]]

        def embed(xs: list[str]) -> torch.Tensor:
            features = model.preprocess(xs) if hasattr(model, "preprocess") else model.tokenize(xs)
            return model(features)["sentence_embedding"].float()

        with torch.autocast("cpu", torch.bfloat16):
            asked, found = embed([q for q, _ in chosen[part]]), embed([passages[r] for r in rows])
        same = torch.tensor(rows)[:, None] == torch.tensor(rows)[None, :]
        logits = (20 * asked @ found.T).masked_fill(same & ~torch.eye(len(rows), dtype=torch.bool), -1e9)
        loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(rows)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        solver.step()
        solver.zero_grad(set_to_none=True)
        losses.append(loss.item())
        if (step + 1) % 25 == 0:
            rate = (step + 1) * batch / (time.monotonic() - started)
            log.info("step %d loss %.4f, %.0f pairs/s", step + 1, float(np.mean(losses[-25:])), rate)
    model.save_pretrained(str(out / "final"))
    (out / "final.json").write_text(json.dumps({"steps": total, "loss": float(np.mean(losses[-50:]))}))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 2, 5])
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(args.threads)
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "init").exists():
        initial(args.data, args.out, args.layers, args.max_tokens)
    train(args.data, args.out, total=args.steps, batch=args.batch, lr=args.lr)


if __name__ == "__main__":
    main()
