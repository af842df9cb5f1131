"""negminer's YAML file (negminer/args.py) as settings of gplfast."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

from gplfast.errors import ConfigError
from gplfast.settings_file import read_settings_file

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)
_NEEDED = ("corpus", "queries", "qrels", "embedding", "ce", "out_dir")
# Key to where its value goes: a section and setting of a run, or "labelled" and a setting of `LabelledConfig`.
_MEANT = {
    "embedding": ("mine", "retrievers"),
    "embedding_batch_size": ("mine", "batch_size"),
    "negatives_candidates_count": ("mine", "negatives_per_query"),
    "ce": ("label", "model"),
    "ce_seq_len": ("labelled", "teacher_tokens"),
    "ce_batch_size": ("label", "batch_size"),
    "embedding_seq_len": ("labelled", "encoder_tokens"),
    "doc_prompt": ("labelled", "doc_prompt"),
    "query_prompt": ("labelled", "query_prompt"),
    "negatives_count": ("labelled", "keep"),
    "dup_threshold": ("labelled", "dup_threshold"),
    "pos_neg_threshold": ("labelled", "pos_neg_threshold"),
    "pos_threshold": ("labelled", "pos_threshold"),
}
# What negminer does where its file says nothing (its batch sizes are left to ours, which go by tokens).
_DEFAULTS: dict[str, Any] = {
    "embedding_seq_len": 512,
    "ce_seq_len": 512,
    "negatives_count": 8,
    "negatives_candidates_count": 16,
    "dup_threshold": 0.95,
    "pos_neg_threshold": 0.05,
}
# Keys that change nothing here, and why.
_EXACT = "the search is exact, unless --search faiss-hnsw is given, which has values of its own"
_IDLE = {
    "hnsw_m": _EXACT,
    "hnsw_ef_search": _EXACT,
    "hnsw_ef_construction": _EXACT,
    "ce_attn_implementation": "ONNX Runtime and OpenVINO choose their own attention",
}


class NegminerConfig(NamedTuple):
    """What a file says.

    Attributes:
        corpus: Path of the passages.
        queries: Path of the queries.
        qrels: Path of the judgements.
        output: Its out_dir.
        run: Settings of a run, by section.
        labelled: Settings of `LabelledConfig`.
    """

    corpus: str
    queries: str
    qrels: str
    output: str
    run: dict[str, dict[str, Any]]
    labelled: dict[str, Any]


def is_negminer(file: Path) -> bool:
    """Whether a settings file is negminer's: only its file names an embedding and a ce.

    Raises:
        ConfigError: It cannot be read.
    """
    return file.suffix.lower() in (".yaml", ".yml") and {"embedding", "ce"} <= read_settings_file(file).keys()


def read_config(file: Path) -> NegminerConfig:
    """Read a file; keys without an effect are named in a warning.

    Raises:
        ConfigError: It cannot be read, lacks a key or has an unknown one.
    """
    found = read_settings_file(file)
    if missing := [key for key in _NEEDED if not isinstance(found.get(key), str)]:
        raise ConfigError(f"{file}: {', '.join(missing)} missing or no text; negminer's file names all of them")
    for key in found:
        if key not in _MEANT and key not in _NEEDED and key not in _IDLE:
            known = ", ".join([*_NEEDED, *_MEANT, *_IDLE])
            raise ConfigError(f"{file}: {key} is not a setting of negminer; there is {known}")
    for key in sorted(_IDLE.keys() & found.keys()):
        logger.warning("%s: %s has no effect: %s", file, key, _IDLE[key])
    sections: dict[str, dict[str, Any]] = {"mine": {}, "label": {}, "labelled": {}}
    for key, value in {**_DEFAULTS, **found}.items():
        if key in _MEANT:
            section, name = _MEANT[key]
            sections[section][name] = [value] if key == "embedding" else value
    labelled = sections.pop("labelled")
    return NegminerConfig(found["corpus"], found["queries"], found["qrels"], found["out_dir"], sections, labelled)
