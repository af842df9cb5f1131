"""The student as sentence-transformers' model: opened, looked at, written.

This module, `training` and `training_rows` are the only ones besides export that import torch, inside the functions.
"""

from __future__ import annotations

import logging
import os
import secrets
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gplfast.errors import MissingExtraError, ModelError, UnavailableError
from gplfast.models.allocator import keep_memory
from gplfast.models.checkpoint import DOCUMENTS
from gplfast.models.session import default_threads
from gplfast.store.atomic import sync

if TYPE_CHECKING:
    from gplfast.config import TrainConfig
    from gplfast.models.training_rows import Examples

logger = logging.getLogger(__name__)


def prepare(seed: int, threads: int = 0) -> None:
    """Check that training is installed, seed every generator, and set the threads and the C library's allocator.

    Args:
        seed: Of every generator.
        threads: CPU threads, 0 for all that this process may use.

    Raises:
        MissingExtraError: sentence-transformers' training parts are not installed.
    """
    # The trainer looks for experiment trackers and would reach for the network through some of them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        import accelerate  # noqa: F401 - only to see whether it is there
        import datasets
        import sentence_transformers  # noqa: F401 - only to see whether it is there
        import torch
        import transformers
    except ImportError as error:
        raise MissingExtraError(f"training needs {error.name}: pip install 'gplfast[train]'") from error
    # torch counts the CPUs of the affinity but not the container's quota.
    torch.set_num_threads(threads or min(torch.get_num_threads(), default_threads()))
    if not torch.cuda.is_available():
        keep_memory()
    transformers.set_seed(seed % 2**32)
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]


def open_student(base: Path, config: TrainConfig) -> Any:
    """Load the student: a sentence-transformers model as it is, a plain language model with pooling on top.

    Raises:
        ModelError: The directory cannot be loaded.
    """
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    options: dict[str, Any] = {"similarity_fn_name": config.similarity, "device": device()}
    try:
        if (base / "modules.json").is_file():
            student = SentenceTransformer(str(base), local_files_only=True, **options)
        else:
            body = Transformer(str(base))
            pooling = Pooling(body.get_embedding_dimension(), pooling_mode=config.pooling)
            student = SentenceTransformer(modules=[body, pooling], **options)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(f"cannot load the student {base}: {' '.join(str(error).split())}") from error
    if config.max_seq_length:
        longest = getattr(getattr(student[0].auto_model, "config", None), "max_position_embeddings", None)
        student.max_seq_length = min(config.max_seq_length, longest) if longest else config.max_seq_length
    return student.float()


def normalizes(student: Any) -> bool:
    """Whether the model ends in a normalization, so that its dot products are cosines."""
    return type(student[-1]).__name__ == "Normalize"


def margins(student: Any, examples: Examples, similarity: str, n_rows: int) -> npt.NDArray[np.float32]:
    """The student's own margins sim(q, p+) - sim(q, p-) on the first rows, float32."""
    if examples.negatives is None:
        return np.empty(0, np.float32)
    # Of several negatives the first: they were drawn alike, so its margins are spread as the others' are.
    negatives = examples.negatives.reshape(len(examples.negatives), -1)[:, 0]
    matrices: list[npt.NDArray[np.float64]] = []
    for text, rows, kind in (
        (examples.query_text, examples.queries, "query"),
        (examples.passage_text, examples.positives, "document"),
        (examples.passage_text, negatives, "document"),
    ):
        texts = [prompt(student, kind) + text(int(row)) for row in rows[:n_rows]]
        matrix = np.asarray(student.encode(texts, prompt="", show_progress_bar=False), np.float64)
        norms = np.linalg.norm(matrix, axis=1, keepdims=True) if similarity == "cosine" else np.ones((1, 1))
        matrices.append(matrix / np.maximum(norms, 1e-12))
    asked, near, far = matrices
    difference: npt.NDArray[np.float32] = (asked * (near - far)).sum(axis=1).astype(np.float32)
    return difference


def save(student: Any, path: Path, *, documents: Path | None = None) -> None:
    """Write the model as a sentence-transformers directory (safetensors) that appears whole or not at all.

    Args:
        student: The model.
        path: The directory.
        documents: Directory of another model that encodes the documents for this one, copied into it.
    """
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp.d"
    for leftover in path.parent.glob(f".{path.name}.*.tmp.d"):
        shutil.rmtree(leftover)
    student.save_pretrained(str(temporary), create_model_card=False)
    if documents is not None:
        shutil.copytree(documents, temporary / DOCUMENTS)
    for item in (*sorted(temporary.rglob("*")), temporary):
        sync(item)
    if path.exists():
        shutil.rmtree(path)
    temporary.rename(path)


def resolve_precision(wanted: str) -> str:
    """Choose "fp32" or "bf16": auto takes bf16 where the device multiplies in it (5x faster than fp32 on Zen 5).

    Raises:
        UnavailableError: bf16 was asked for and the device does not have it.
    """
    import torch

    if torch.cuda.is_available():
        available = torch.cuda.is_bf16_supported()
    else:
        flags = _cpu_flags()
        available = "avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags
    if wanted == "bf16" and not available:
        raise UnavailableError("precision is bf16 but this device does not compute in it; use fp32 or auto")
    return "bf16" if available and wanted != "fp32" else "fp32"


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return set()  # not Linux: nothing known about the instruction set, fp32 is always right
    return {flag for line in lines if line.startswith(("flags", "Features")) for flag in line.split(":", 1)[1].split()}


def device() -> str:
    """Where torch trains: "cuda" or "cpu"."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def prompt(student: Any, kind: str) -> str:
    """The prompt that `BiEncoder` puts in front when it serves this model."""
    prompts = dict(student.prompts or {})
    names = {"query": ("query",), "document": ("document", "passage", "corpus")}[kind]
    found = (prompts[name] for name in (*names, student.default_prompt_name) if prompts.get(name))
    return str(next(found, ""))
