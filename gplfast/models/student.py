"""The student in training: sentence-transformers' model, trainer and losses, fed with rows instead of texts.

The only place besides export that imports torch, inside the functions. Texts are looked up batch by batch, so millions
of rows cost a few numbers each. Checkpoints carry optimizer, schedule, sampler and random state; only one that was
written whole, for the same manifest, is gone on from.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gplfast.errors import ArtifactError, MissingExtraError, ModelError, UnavailableError
from gplfast.models.allocator import keep_memory
from gplfast.models.session import default_threads
from gplfast.store.atomic import read_json, sync, write_json

if TYPE_CHECKING:
    from gplfast.config import TrainConfig

logger = logging.getLogger(__name__)

_MARK = "gplfast.json"
Progress = Callable[[int, int], None]


@dataclasses.dataclass(frozen=True)
class Examples:
    """Rows of training data; texts are looked up when a batch is made.

    Attributes:
        query_text: Text of a query row.
        passage_text: Text of a passage row.
        queries: int64 (n_rows,).
        positives: int64 (n_rows,).
        negatives: int64 (n_rows,), MarginMSE only.
        margins: float32 (n_rows,), MarginMSE only.
        query_groups: int64 (n_queries,), equal for queries of equal text; GenQ only.
        passage_groups: int64 (n_passages,), equal for passages of equal text; GenQ only.
    """

    query_text: Callable[[int], str]
    passage_text: Callable[[int], str]
    queries: npt.NDArray[np.int64]
    positives: npt.NDArray[np.int64]
    negatives: npt.NDArray[np.int64] | None = None
    margins: npt.NDArray[np.float32] | None = None
    query_groups: npt.NDArray[np.int64] | None = None
    passage_groups: npt.NDArray[np.int64] | None = None


@dataclasses.dataclass(frozen=True)
class Fit:
    """What a training run did."""

    n_steps: int
    precision: str
    losses: list[dict[str, float]]


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

    options: dict[str, Any] = {"similarity_fn_name": config.similarity, "device": _device()}
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
    matrices = []
    for text, rows, kind in (
        (examples.query_text, examples.queries, "query"),
        (examples.passage_text, examples.positives, "document"),
        (examples.passage_text, examples.negatives, "document"),
    ):
        texts = [_prompt(student, kind) + text(int(row)) for row in rows[:n_rows]]
        matrix = np.asarray(student.encode(texts, prompt="", show_progress_bar=False), np.float64)
        norms = np.linalg.norm(matrix, axis=1, keepdims=True) if similarity == "cosine" else np.ones((1, 1))
        matrices.append(matrix / np.maximum(norms, 1e-12))
    queries, positives, negatives = matrices
    difference: npt.NDArray[np.float32] = (queries * (positives - negatives)).sum(axis=1).astype(np.float32)
    return difference


def fit(
    student: Any,
    examples: Examples,
    checkpoints: Path,
    key: str,
    config: TrainConfig,
    *,
    n_steps: int,
    seed: int,
    progress: Progress | None = None,
) -> Fit:
    """Train in place, going on from the newest whole checkpoint of the same key and precision.

    MarginMSE when the examples have margins: rows in file order, dot or cosine as the configuration says. Otherwise
    MultipleNegativesRanking: shuffled per epoch, no passage (by text) twice in a batch.

    Raises:
        UnavailableError: bf16 was asked for and the device does not have it.
    """
    precision = resolve_precision(config.precision)
    mark = {"key": key, "precision": precision}
    whole = _usable_checkpoints(checkpoints, mark)
    trainer = _trainer_class()(
        model=student,
        args=_arguments(checkpoints, config, examples, n_steps=n_steps, seed=seed, precision=precision),
        train_dataset=_dataset(examples),
        loss=_loss(student, config, examples),
        data_collator=_collator(student, examples),
        callbacks=[_callback(mark, progress)],
    )
    for shown in ("ProgressCallback", "PrinterCallback"):
        for callback in [item for item in trainer.callback_handler.callbacks if type(item).__name__ == shown]:
            trainer.remove_callback(callback)
    trainer.train(resume_from_checkpoint=str(whole[-1]) if whole else None)
    losses = [{"step": row["step"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row]
    return Fit(int(trainer.state.global_step), precision, losses)


def save(student: Any, path: Path) -> None:
    """Write the model as a sentence-transformers directory (safetensors) that appears whole or not at all."""
    temporary = path.parent / f".{path.name}.{secrets.token_hex(6)}.tmp.d"
    for leftover in path.parent.glob(f".{path.name}.*.tmp.d"):
        shutil.rmtree(leftover)
    student.save_pretrained(str(temporary), create_model_card=False)
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


def _device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def _prompt(student: Any, kind: str) -> str:
    """The prompt that `BiEncoder` puts in front when it serves this model."""
    prompts = dict(student.prompts or {})
    names = {"query": ("query",), "document": ("document", "passage", "corpus")}[kind]
    found = (prompts[name] for name in (*names, student.default_prompt_name) if prompts.get(name))
    return str(next(found, ""))


def _dataset(examples: Examples) -> Any:
    """Row numbers instead of texts.

    For GenQ the rows of equal texts are one number, and queries are negative, because sentence-transformers' sampler
    keeps equal values of any column out of a batch.
    """
    from datasets import Dataset

    if examples.margins is not None:
        columns = {"query": examples.queries, "positive": examples.positives, "negative": examples.negatives}
        return Dataset.from_dict({**columns, "label": examples.margins.astype(np.float32)})
    queries = examples.queries if examples.query_groups is None else examples.query_groups[examples.queries]
    passages = examples.positives if examples.passage_groups is None else examples.passage_groups[examples.positives]
    return Dataset.from_dict({"query": -queries - 1, "positive": passages})


def _collator(student: Any, examples: Examples) -> Any:
    from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

    class RowCollator(SentenceTransformerDataCollator):  # type: ignore[misc, unused-ignore]
        """Looks the texts of a batch up, then tokenizes as usual."""

        def __call__(self, features: list[dict[str, Any]]) -> dict[str, Any]:
            batch: dict[str, Any] = super().__call__([_texts(row, examples) for row in features])
            return batch

    kinds = {"query": "query", "positive": "document", "negative": "document"}
    prompts = {column: prompt for column, kind in kinds.items() if (prompt := _prompt(student, kind))}
    return RowCollator(preprocess_fn=student.preprocess, prompts=prompts)


def _texts(row: dict[str, Any], examples: Examples) -> dict[str, Any]:
    query = int(row["query"])
    looked_up: dict[str, Any] = {"query": examples.query_text(query if query >= 0 else -query - 1)}
    looked_up["positive"] = examples.passage_text(int(row["positive"]))
    if "negative" in row:
        looked_up["negative"] = examples.passage_text(int(row["negative"]))
        looked_up["label"] = float(row["label"])
    return looked_up


def _loss(student: Any, config: TrainConfig, examples: Examples) -> Any:
    from sentence_transformers.sentence_transformer.losses import MarginMSELoss, MultipleNegativesRankingLoss
    from sentence_transformers.util import cos_sim, dot_score, pairwise_cos_sim, pairwise_dot_score

    cosine = config.similarity == "cosine"
    if examples.margins is not None:
        return MarginMSELoss(student, similarity_fct=pairwise_cos_sim if cosine else pairwise_dot_score)
    scale = config.scale if cosine or normalizes(student) else 1.0
    return MultipleNegativesRankingLoss(student, scale=scale, similarity_fct=cos_sim if cosine else dot_score)


def file_order(dataset: Any, batch_size: int, drop_last: bool, **options: Any) -> Any:
    """Batch sampler of MarginMSE: rows as they are, which is how the visits were drawn."""
    from sentence_transformers.base.sampler import DefaultBatchSampler
    from torch.utils.data import SequentialSampler

    return DefaultBatchSampler(SequentialSampler(dataset), batch_size=batch_size, drop_last=drop_last, **options)


def _arguments(
    directory: Path, config: TrainConfig, examples: Examples, *, n_steps: int, seed: int, precision: str
) -> Any:
    from sentence_transformers import SentenceTransformerTrainingArguments

    on_gpu = _device() == "cuda"
    return SentenceTransformerTrainingArguments(
        output_dir=str(directory),
        max_steps=n_steps,
        per_device_train_batch_size=config.batch_size,
        learning_rate=config.learning_rate,
        weight_decay=config.weight_decay,
        warmup_steps=config.n_warmup(n_steps),
        lr_scheduler_type="linear",
        optim="adamw_torch",
        max_grad_norm=config.max_grad_norm,
        batch_sampler=file_order if examples.margins is not None else "no_duplicates",
        # A last batch that is not full would have fewer negatives in GenQ; with less than one batch it is all there is.
        dataloader_drop_last=len(examples.queries) >= config.batch_size,
        dataloader_pin_memory=on_gpu,
        seed=seed % 2**32,
        bf16=precision == "bf16",
        use_cpu=not on_gpu,
        save_strategy="steps",
        save_steps=min(config.checkpoint_steps, n_steps),
        save_total_limit=2,
        logging_strategy="steps",
        logging_steps=max(1, n_steps // 50),
        report_to="none",
        disable_tqdm=True,
    )


def _callback(mark: dict[str, str], progress: Progress | None) -> Any:
    from transformers import TrainerCallback

    class Marker(TrainerCallback):  # type: ignore[misc, unused-ignore]
        """Marks a checkpoint as whole, after everything else of it was written, and reports progress."""

        def on_save(self, args: Any, state: Any, *_: Any, **__: Any) -> None:
            path = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_json(path / _MARK, {**mark, "step": int(state.global_step)})

        def on_step_end(self, args: Any, state: Any, *_: Any, **__: Any) -> None:  # noqa: ARG002
            if progress is not None:
                progress(int(state.global_step), int(state.max_steps))

    return Marker()


def _trainer_class() -> Any:
    from sentence_transformers import SentenceTransformerTrainer

    class Trainer(SentenceTransformerTrainer):  # type: ignore[misc, unused-ignore]
        def add_model_card_callback(self, default_args_dict: dict[str, Any]) -> None:
            """None: a model card would record dates and sample the row numbers as if they were texts."""

        def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ARG002
            self.model.save_pretrained(str(output_dir or self.args.output_dir), create_model_card=False)

    return Trainer


def _usable_checkpoints(directory: Path, mark: dict[str, str]) -> list[Path]:
    """Whole checkpoints with this mark, oldest first; others are deleted."""
    usable = []
    for path in sorted(directory.glob("checkpoint-*"), key=lambda item: int(item.name.rpartition("-")[2])):
        try:
            whole = mark.items() <= read_json(path / _MARK).items()
        except (FileNotFoundError, ArtifactError):
            whole = False
        if whole:
            usable.append(path)
        else:
            logger.info("%s: dropped, not whole or made with other settings", path)
            shutil.rmtree(path)
    return usable
