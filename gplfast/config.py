"""The settings of every step: frozen dataclasses, presets, and how a file and flags are merged over a preset.

Precedence, lowest first: the defaults below, the preset, the file (TOML or YAML), flags or keyword arguments. Every
setting carries its help text and limits in the field, so the command line is generated from here.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gplfast import positive_settings
from gplfast.errors import ConfigError
from gplfast.filter_settings import FilterConfig, check_filter
from gplfast.loss_settings import LossConfig, check_loss
from gplfast.preset_settings import AUTO, PRESETS
from gplfast.settings import Checked, coerce, field_types, setting
from gplfast.settings_file import read_settings_file

_PROVIDERS, _PRECISIONS = ("auto", "cpu", "openvino", "cuda"), ("auto", "fp32", "fp16", "bf16", "int8")
STUDENTS = ("gpl", "rgpl", "genq")
_ACTIVATIONS = ("identity", "sigmoid", "softmax", "default")


@dataclasses.dataclass(frozen=True)
class InputConfig(Checked):
    """How the corpus is read."""

    split_words: int = setting(
        0,
        "split passages longer than this many words on load (0: never); an English word is about 1.3 tokens, in "
        "technical text 1.6, so 150 to 190 words fill a window of 256 tokens",
        low=0,
    )
    id_column: str = setting("_id", "column of the ids (CSV, Parquet, JSON lines)", output=False)
    title_column: str = setting("title", "column of the titles", output=False)
    text_column: str = setting("text", "column of the texts", output=False)


@dataclasses.dataclass(frozen=True)
class GenerateConfig(positive_settings.PositiveSettings):
    """Queries from passages: with a T5 generator (nucleus sampling, as GPL), or by another `method`."""

    model: str = setting(
        "nano:generator", "t5: query generator: a directory, a hub name or nano:generator", output=False
    )
    queries_per_passage: int = setting(AUTO, "queries per passage (0: 250000 / passages, at least 3)", low=0)
    max_queries: int = setting(
        0, "most queries in all (0: any number): fewer of each passage where that is auto, then fewer passages", low=0
    )
    copied: str = setting("drop", "t5: what becomes of queries copied from their passage", choices=("drop", "keep"))
    extra_draws: float = setting(1.0, "share of queries_per_passage to draw more for dropped ones (0: none)", low=0.0)
    top_k: int = setting(25, "t5: sample among the k likeliest tokens (0: all)", low=0)
    top_p: float = setting(0.95, "t5: sample among the likeliest tokens that hold this share", low=1e-6, high=1.0)
    temperature: float = setting(1.0, "t5: divide the logits by this", low=1e-6)
    max_new_tokens: int = setting(64, "t5: longest query, in tokens", low=1)
    passage_tokens: int = setting(0, "t5: passage tokens the generator reads (0: all of its window)", low=0)
    window: str = setting("head", "t5: which part of a long passage a query is made from", choices=("head", "random"))
    prefix: str = setting("", "t5: text put before each passage, e.g. 'generate query: '")
    batch_size: int = setting(32, "t5: passages per batch", low=1, output=False)

    @property
    def needed_model(self) -> str:
        """The name of the model that the method needs, "" where it needs none."""
        if self.method == positive_settings.T5:
            return self.model
        return self.salient_model if positive_settings.uses_encoder(self) else ""


@dataclasses.dataclass(frozen=True)
class MineConfig(Checked):
    """Hard negatives: the best passages of several retrievers, positives excluded."""

    retrievers: tuple[str, ...] = setting(
        ("nano:student", "bm25"), "bi-encoders (directory, hub name, nano:student) and/or bm25"
    )
    metrics: tuple[str, ...] = setting(("cosine",), "similarity, one for all or one each", choices=("cosine", "dot"))
    negatives_per_query: int = setting(50, "negatives per query and retriever", low=1)
    exclude_duplicates: bool = setting(True, "also exclude passages with the same text as the positive")
    round_trip_top: int = setting(0, "skip queries whose passage is in no retriever's best so many (0: none)", low=0)
    batch_size: int = setting(AUTO, "texts per batch at most (0: as many as fit by tokens)", low=0, output=False)
    sources: tuple[str, ...] = setting(
        (),
        "where negatives come from, each with how many per query: dense:50 (each bi-encoder), bm25:25, a retriever's "
        "name, random:5, gold:5 (positives of other queries), explicit:10; ranks: dense@10-210:15 (10 to 209), "
        "dense@semi-hard:20 (best below the positive); empty: negatives_per_query of each retriever",
        added=True,
    )
    sampling: str = setting(
        "top",
        "which of a source's candidates are taken: the best, or drawn at random",
        choices=("top", "random"),
        added=True,
    )
    candidates: int = setting(
        0, "candidates per source that negatives are taken from (0: as many as needed)", low=0, added=True
    )
    explicit: str = setting("", "JSON lines of your own negatives: {qid, neg: [document ids]}", output=False)
    positives: str = setting(
        "all",
        "of several positives of a query: all, or hard: the one that the first retriever ranks lowest",
        choices=("all", "hard"),
        added=True,
    )
    search: str = setting(
        "exact",
        "how bi-encoders find candidates; FAISS is approximate, its recall is counted",
        choices=("exact", "faiss-hnsw", "faiss-ivf"),
        added=True,
    )
    nprobe: int = setting(16, "lists that faiss-ivf looks into per query", low=1, added=True)


@dataclasses.dataclass(frozen=True)
class LabelConfig(Checked):
    """Margins of a cross-encoder teacher, or of several averaged, one positive and its negatives per visit."""

    model: str = setting("nano:teacher", "cross-encoder: a directory, a hub name or nano:teacher", output=False)
    more_models: tuple[str, ...] = setting(
        (), "more cross-encoders, whose scores are averaged with the first one's", output=False
    )
    average: str = setting(
        "scaled",
        "of several teachers; scaled: each brought to the first one's mean |margin|; raw: scores as they are",
        choices=("scaled", "raw"),
        added=True,
    )
    max_seq_length: int = setting(350, "query and passage are each cut to this many teacher tokens", low=1)
    activation: str = setting("identity", "identity: raw logits; default: as the model says", choices=_ACTIVATIONS)
    relevance_label: str = setting("", "of a teacher with several labels: the relevance, by name or number")
    keep_share: float = setting(1.0, "use this share of the queries, by their passage's score", low=0.001, high=1.0)
    nan: str = setting("error", "when the teacher gives NaN: stop, or drop these rows", choices=("error", "drop"))
    batch_size: int = setting(AUTO, "pairs per batch at most (0: as many as fit by tokens)", low=0, output=False)

    def asks_teacher(self, loss: LossConfig) -> bool:
        """Whether labels for a loss are made of the teacher's scores: it reads them, or queries are kept by them."""
        return loss.reads_scores or self.keep_share < 1.0


@dataclasses.dataclass(frozen=True)
class TrainConfig(LossConfig):
    """The student, by default trained with MarginMSE (GPL) or MultipleNegativesRanking (GenQ)."""

    base: str = setting("nano:student", "the student before training: directory, hub name, nano:student", output=False)
    similarity: str = setting("dot", "the student's similarity", choices=("dot", "cosine"))
    pooling: str = setting("mean", "pooling when the base is a plain language model", choices=("mean", "cls", "max"))
    max_seq_length: int = setting(350, "tokens the student reads (0: as the base has it)", low=0)
    steps: int = setting(AUTO, "optimizer steps (0: visits_per_query x queries / batch size)", low=0)
    visits_per_query: float = setting(18.0, "how often each query is seen when steps is 0", low=0.001)
    max_steps: int = setting(0, "upper limit of the automatic number of steps (0: none)", low=0)
    batch_size: int = setting(32, "examples per step", low=1)
    learning_rate: float = setting(2e-5, "peak learning rate of AdamW", low=0.0)
    weight_decay: float = setting(0.01, "weight decay of AdamW", low=0.0)
    warmup_steps: int = setting(1000, "linear warm-up, in steps (0: by warmup_share)", low=0)
    warmup_share: float = setting(0.1, "warm-up as a share of the steps, if warmup_steps is 0", low=0.0, high=1.0)
    max_grad_norm: float = setting(1.0, "gradients are clipped to this norm", low=0.0)
    rescale: str = setting(
        "auto",
        "margins before training; auto: for a cosine student scaled to label_mean and clipped at label_clip, "
        "for dot as they are",
        choices=("auto", "none"),
    )
    rescale_range: tuple[float, ...] = setting((), "GPL's rescale_range: new minimum and maximum, sign preserved")
    label_mean: float = setting(
        0.0, "mean |margin| after automatic rescaling, in cosine units (0: the student's own before training)", low=0.0
    )
    label_clip: float = setting(3.0, "largest |margin| after automatic rescaling, in units of the mean", low=1.0)
    checkpoint_steps: int = setting(10_000, "save a checkpoint to go on from every so many steps", low=1, output=False)
    precision: str = setting("auto", "auto: bf16 where the device computes in it", choices=("auto", "fp32", "bf16"))
    dev_share: float = setting(
        0.0,
        "keep the student of the best step, by queries of this share of the passages that are held out of training "
        "(0: none are, the last step's is kept)",
        low=0.0,
        high=0.5,
        added=True,
    )
    select_every: int = setting(0, "steps between looks at the held-out queries (0: a tenth of all)", low=0, added=True)
    select_metric: str = setting(
        "nDCG@10", "of the held-out queries' own passages", choices=("nDCG@10", "MRR@10", "Recall@100"), added=True
    )
    select_passages: int = setting(
        5000, "search held-out queries in so many passages, their own among them (0: all)", low=0, added=True
    )
    select_patience: int = setting(0, "stop after so many looks without a better one (0: never)", low=0, added=True)

    def n_steps(self, n_queries: int) -> int:
        """Optimizer steps for this many queries: `steps`, or enough for `visits_per_query`, at most `max_steps`."""
        if self.steps:
            return self.steps
        steps = max(1, math.ceil(n_queries * self.visits_per_query / self.batch_size))
        return min(steps, self.max_steps) if self.max_steps else steps

    def n_warmup(self, n_steps: int) -> int:
        """Steps of linear warm-up, never more than there are."""
        return min(self.warmup_steps or math.ceil(n_steps * self.warmup_share), n_steps)


@dataclasses.dataclass(frozen=True)
class RefreshConfig(Checked):
    """R-GPL: the student in training mines its negatives again, every so many steps."""

    every: int = setting(30_000, "steps from one refresh to the next (0: a quarter of all)", low=0)
    mode: str = setting(
        "sync",
        "sync: training waits for the new list; async: it is mined beside training and used one refresh later; "
        "adaptive: mined only when the student's neighbours on a sample changed",
        choices=("sync", "async", "adaptive"),
    )
    keep: str = setting("replace", "the new list replaces the old one, or joins it", choices=("replace", "join"))
    negatives_per_query: int = setting(50, "negatives per query of each refresh", low=1)
    below: float = setting(0.8, "adaptive: mine when this overlap of the sample is not reached", low=0.0, high=1.0)
    sample_queries: int = setting(256, "adaptive: queries of the sample", low=1)
    sample_passages: int = setting(1024, "adaptive: passages of the sample", low=1)
    batch_size: int = setting(64, "texts per batch that the student embeds", low=1, output=False)

    def steps_between(self, n_steps: int) -> int:
        """Steps from one refresh to the next, of a training of `n_steps`."""
        return self.every or max(1, math.ceil(n_steps / 4))


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(Checked):
    """Retrieval quality on the judged queries of the collection."""

    split: str = setting("test", "which qrels/<split>.tsv")
    systems: tuple[str, ...] = setting(
        ("bm25", "zero-shot", "genq", "gpl", "rgpl"),
        "systems of the table; those that were not trained are left out",
        choices=("bm25", "bm25+teacher", "zero-shot", "genq", "gpl", "rgpl"),
        output=False,
    )
    top_k: int = setting(100, "passages retrieved per query", low=10)
    drop_same_id: bool = setting(True, "drop the passage whose id is the query's id, as BEIR does")
    rerank_top: int = setting(50, "passages of BM25 that the teacher reranks", low=1)
    allow_unknown: bool = setting(
        False, "leave out judgements of unknown queries and passages, with a warning, instead of stopping", output=False
    )
    test: str = setting("t-test", "paired significance test on nDCG@10", choices=("t-test", "permutation"))
    batch_size: int = setting(AUTO, "texts per batch at most (0: as many as fit by tokens)", low=0, output=False)


@dataclasses.dataclass(frozen=True)
class RunConfig(Checked):
    """Everything a run depends on besides the corpus and the models' weights."""

    preset: str = setting("", "the settings it started from; empty: none", choices=("", "nano", "paper"), output=False)
    seed: int = setting(0, "seed of every random draw", low=0, high=2**63 - 1)
    threads: int = setting(0, "CPU threads (0: all cores)", low=0, output=False)
    provider: str = setting(
        "auto", "what runs the models; auto: the fastest here, found by a trial once", choices=_PROVIDERS, output=False
    )
    precision: str = setting(
        "auto", "of the models; auto: lower than fp32 where a trial finds the results as good", choices=_PRECISIONS
    )
    students: tuple[str, ...] = setting(
        ("gpl",), "which students are trained: GPL, R-GPL (mines again while it trains), GenQ", choices=STUDENTS
    )
    input: InputConfig = dataclasses.field(default_factory=InputConfig)
    generate: GenerateConfig = dataclasses.field(default_factory=GenerateConfig)
    mine: MineConfig = dataclasses.field(default_factory=MineConfig)
    filter: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    label: LabelConfig = dataclasses.field(default_factory=LabelConfig)
    train: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    genq: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    refresh: RefreshConfig = dataclasses.field(default_factory=RefreshConfig)
    evaluate: EvaluateConfig = dataclasses.field(default_factory=EvaluateConfig)


SECTIONS: tuple[str, ...] = ("input", "generate", "mine", "filter", "label", "train", "genq", "refresh", "evaluate")

# What a student is: given for GPL's alone it holds for GenQ's too, so that the two are compared on equal terms.
# Held-out queries too: a student that starts from the other's must not have been trained on them.
OF_THE_STUDENT = (
    *("base", "similarity", "pooling", "max_seq_length", "precision"),
    *("dev_share", "select_metric", "select_passages"),
)
# What of [train] and [genq] has an effect only where queries are held out.
OF_SELECTION = ("select_every", "select_metric", "select_passages", "select_patience")


def load_config(
    file: str | Path | None = None, *, preset: str | None = None, overrides: Mapping[str, Any] | None = None
) -> RunConfig:
    """Build the configuration of a run.

    Args:
        file: TOML (`.toml`) or YAML (`.yaml`, `.yml`) with the keys of `RunConfig`; steps are tables.
        preset: Name of the preset; otherwise the one the file names, otherwise "nano".
        overrides: Nested mapping of the same form, applied last.

    Returns:
        The checked configuration.

    Raises:
        ConfigError: An unknown key, a wrong type, a value out of range; the message names the file and the key.
    """
    from_file = read_settings_file(Path(file)) if file is not None else {}
    chosen = preset or dict(overrides or {}).get("preset") or from_file.get("preset") or "nano"
    if chosen not in PRESETS:
        raise ConfigError(f"preset is {chosen!r} but must be one of {', '.join(sorted(PRESETS))}")
    config = _merge(RunConfig(preset=chosen), PRESETS[chosen], f"preset {chosen}")
    config = _merge(config, _same_student(from_file), str(file))
    config = _merge(config, _same_student(overrides or {}), "arguments")
    return check(dataclasses.replace(config, preset=chosen))


def check(config: RunConfig) -> RunConfig:
    """Check what no single key can say; returns the configuration unchanged.

    Raises:
        ConfigError: Two settings do not fit each other.
    """
    positive_settings.check(config.generate)
    mine, train = config.mine, config.train
    if not config.students or len(set(config.students)) != len(config.students):
        raise ConfigError(
            f"students is ({', '.join(config.students)}) but must name at least one of {', '.join(STUDENTS)}, each once"
        )
    if not mine.retrievers:
        raise ConfigError("[mine] retrievers is empty; name at least one bi-encoder or bm25")
    if len(mine.metrics) not in (1, len(mine.retrievers)):
        raise ConfigError(
            f"[mine] metrics has {len(mine.metrics)} entries but retrievers has {len(mine.retrievers)}; "
            "give one metric for all or one for each"
        )
    if len(set(mine.retrievers)) != len(mine.retrievers):
        raise ConfigError(f"[mine] retrievers names one twice: {', '.join(mine.retrievers)}")
    check_filter(config.filter, config.label.activation)
    if train.rescale_range and not (
        len(train.rescale_range) == 2 and train.rescale_range[0] <= 0 <= train.rescale_range[1]
    ):
        given = ", ".join(str(value) for value in train.rescale_range)
        raise ConfigError(f"[train] rescale_range is ({given}) but must be two numbers, minimum <= 0 <= maximum")
    check_loss(train, "train")
    check_loss(config.genq, "genq")
    if config.label.model in config.label.more_models or len({*config.label.more_models}) < len(
        config.label.more_models
    ):
        raise ConfigError(f"[label] names a teacher twice: {config.label.model}, {', '.join(config.label.more_models)}")
    for section, student in (("train", train), ("genq", config.genq)):
        defaults = {item.name: item.default for item in dataclasses.fields(student)}
        idle = [name for name in OF_SELECTION if getattr(student, name) != defaults[name]]
        if idle and not student.dev_share:
            raise ConfigError(
                f"[{section}] {idle[0]} has no effect: dev_share is 0, so no queries are held out; give [{section}] "
                "dev_share, for example 0.1"
            )
    return config


def _same_student(values: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(values)
    train, genq = merged.get("train"), merged.get("genq", {})
    if isinstance(train, Mapping) and isinstance(genq, Mapping):
        shared = {name: train[name] for name in OF_THE_STUDENT if name in train}
        if shared:
            merged["genq"] = {**shared, **genq}
    return merged


def _merge(target: Any, values: Mapping[str, Any], origin: str, section: str = "") -> Any:
    """A copy of the dataclass `target` with `values` put over it; nested mappings go into nested dataclasses."""
    where = f"[{section}] " if section else ""
    known = {item.name: item for item in dataclasses.fields(target)}
    changes: dict[str, Any] = {}
    for key, value in values.items():
        if key not in known:
            raise ConfigError(f"{origin}: {where}{key} is not a setting{_hint(key, known, target)}")
        current = getattr(target, key)
        if dataclasses.is_dataclass(current):
            if dataclasses.is_dataclass(value) and type(value) is type(current):
                changes[key] = value
                continue
            if not isinstance(value, Mapping):
                raise ConfigError(f"{origin}: {key} is {value!r} but must be a table of settings")
            changes[key] = _merge(current, value, origin, key)
        else:
            changes[key] = coerce(known[key], field_types(type(target))[key], value, f"{origin}: {where}{key}")
    return dataclasses.replace(target, **changes)


def _hint(key: Any, known: Mapping[str, Any], target: Any) -> str:
    close = difflib.get_close_matches(str(key), known, n=1)
    if close:
        return f"; did you mean {close[0]}?"
    if isinstance(target, RunConfig):
        owners = [name for name in SECTIONS if key in field_types(type(getattr(target, name)))]
        if owners:
            return f" here; did you mean {key} in [{owners[0]}]?"
    return f"; there is {', '.join(known)}"
