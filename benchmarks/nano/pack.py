"""Bundle trained models as the preset nano: int8 matrices, 48 MB at most in all."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import torch
import vocabulary
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, T5ForConditionalGeneration

from gplfast.models.bundle import pack

PRESET = Path(__file__).parent.parent.parent / "gplfast" / "presets" / "nano"
LIMIT_BYTES = 48 * 1000 * 1000
TEACHER_PIECES = 26_500
"""The teacher keeps the pieces up to this id of BERT's vocabulary, which is sorted by frequency."""


def generator(trained: Path, target: Path) -> None:
    """The newest checkpoint with its tokenizer."""
    model = T5ForConditionalGeneration.from_pretrained(trained / "init")
    model.load_state_dict(torch.load(trained / "checkpoint.pt", weights_only=False)["model"])
    model.save_pretrained(target)
    AutoTokenizer.from_pretrained(trained / "init").save_pretrained(target)


def teacher(trained: Path, target: Path) -> None:
    """The newest checkpoint with its tokenizer."""
    config = AutoConfig.from_pretrained(trained / "latest")
    model = AutoModelForSequenceClassification.from_config(config)
    model.load_state_dict(torch.load(trained / "checkpoint.pt", weights_only=False)["model"])
    tokenizer, kept = vocabulary.drop_pieces(trained / "latest", TEACHER_PIECES)
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(model.get_input_embeddings().weight[kept]))
    model.config.vocab_size = len(kept)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def student(trained: Path, target: Path) -> None:
    """The trained sentence-transformers model."""
    shutil.copytree(trained / "final", target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("README.md"))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trained", type=Path, required=True, help="folder with gen, teacher, student")
    parser.add_argument("parts", nargs="*", default=["generator", "teacher", "student"])
    args = parser.parse_args()
    parts = {"generator": (generator, "gen"), "teacher": (teacher, "teacher"), "student": (student, "student")}
    for part in args.parts:
        make, folder = parts[part]
        with tempfile.TemporaryDirectory() as work:
            make(args.trained / folder, Path(work))
            shutil.rmtree(PRESET / part, ignore_errors=True)
            pack(work, PRESET / part)
    size = sum(p.stat().st_size for p in PRESET.rglob("*") if p.is_file())
    sys.stdout.write(f"{size / 1e6:.1f} MB of {LIMIT_BYTES / 1e6:.0f} MB\n")
    if size > LIMIT_BYTES:
        sys.exit("nano is larger than a bundle may be")


if __name__ == "__main__":
    main()
