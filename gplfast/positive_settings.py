"""How pairs of query and passage are made without a generator: the methods, their settings, and who reads which."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from gplfast.errors import ConfigError
from gplfast.settings import Checked, setting

if TYPE_CHECKING:
    from collections.abc import Collection

T5, BM25, ENCODER = "t5", "bm25", "encoder"
_CROP = ("crop_min", "crop_max")
_QUOTA = ("method", "queries_per_passage", "max_queries", "extra_draws")
# Method to the settings that it reads of its own, besides those of _QUOTA.
_READ: dict[str, tuple[str, ...]] = {
    T5: (
        *("model", "copied", "top_k", "top_p", "temperature", "max_new_tokens", "passage_tokens", "window", "prefix"),
        "batch_size",
    ),
    "ict": (),
    "crop": _CROP,
    "spans": ("span_words_min", "span_words_max", "span_window_min", "span_window_max", "span_keep"),
    "noise": (*_CROP, "noise_delete", "noise_replace", "noise_mask", "mask_text"),
    "neighbours": ("cut", *_CROP),
    "title": (),
    "salient": (
        *("salient_unit", "salient_by", "salient_model", "salient_candidates", "salient_words_min"),
        *("salient_words_max", "salient_masked", "mask_text"),
    ),
    BM25: ("cut", *_CROP, "queries"),
}
METHODS = tuple(_READ)


@dataclasses.dataclass(frozen=True)
class PositiveSettings(Checked):
    """The settings of the methods that need no generator; each help text begins with the methods that read it."""

    method: str = setting(
        T5,
        "what makes the queries; t5: a generator; without one: ict (a sentence), crop, noise (a noisy crop), title, "
        "salient (best spans), spans (recurring), neighbours, bm25 (best passage of a query)",
        choices=METHODS,
        added=True,
    )
    crop_min: float = setting(
        0.1,
        "crop, noise, neighbours, bm25: shortest crop, as a share of the text's words",
        low=0.0,
        high=1.0,
        added=True,
    )
    crop_max: float = setting(
        0.5,
        "crop, noise, neighbours, bm25: longest crop, as a share of the text's words",
        low=1e-6,
        high=1.0,
        added=True,
    )
    cut: str = setting(
        "crop",
        "neighbours, bm25: what of a passage is the query: a random crop or a random sentence",
        choices=("crop", "sentence"),
        added=True,
    )
    span_words_min: int = setting(2, "spans: fewest words of a recurring span", low=1, added=True)
    span_words_max: int = setting(10, "spans: most words of a recurring span", low=1, high=64, added=True)
    span_window_min: int = setting(5, "spans: fewest words of the query around it", low=2, added=True)
    span_window_max: int = setting(30, "spans: most words of the query around it", low=2, added=True)
    span_keep: float = setting(
        0.5, "spans: how likely the span stays in the query, else it is cut out", low=0.0, high=1.0, added=True
    )
    noise_delete: float = setting(0.1, "noise: share of the crop's words deleted", low=0.0, high=1.0, added=True)
    noise_replace: float = setting(
        0.0, "noise: share replaced by random words of the corpus", low=0.0, high=1.0, added=True
    )
    noise_mask: float = setting(0.0, "noise: share replaced by mask_text", low=0.0, high=1.0, added=True)
    mask_text: str = setting("[MASK]", "noise, salient: what stands for a masked word or span", added=True)
    salient_unit: str = setting(
        "spans",
        "salient: what is scored: random spans, or every sentence",
        choices=("spans", "sentences"),
        added=True,
    )
    salient_by: str = setting(
        BM25,
        "salient: the score with the own passage: BM25, or the cosine of salient_model",
        choices=(BM25, ENCODER),
        added=True,
    )
    salient_model: str = setting(
        "nano:student", "salient: the bi-encoder of salient_by encoder", output=False, added=True
    )
    salient_candidates: int = setting(
        16, "salient: spans drawn per passage (at least queries_per_passage are)", low=1, added=True
    )
    salient_words_min: int = setting(4, "salient: fewest words of a span", low=2, added=True)
    salient_words_max: int = setting(16, "salient: most words of a span", low=2, added=True)
    salient_masked: bool = setting(
        False,
        "salient: the query is the sentence around the span, with the span masked (salient span masking)",
        added=True,
    )
    queries: str = setting(
        "",
        "bm25: file or BEIR folder of real queries without judgements, each to be paired with its best passage",
        output=False,
        added=True,
    )


def read_by(config: PositiveSettings) -> Collection[str]:
    """The names of the settings that the method reads."""
    return (*_QUOTA, *_READ[config.method])


def recorded(config: PositiveSettings) -> dict[str, Any]:
    """What a manifest of a method without a generator records: its name and every setting of it that makes bytes."""
    fields = {item.name: item for item in dataclasses.fields(config)}
    return {name: getattr(config, name) for name in read_by(config) if fields[name].metadata.get("output", True)}


def uses_encoder(config: PositiveSettings) -> bool:
    """Whether the method needs a bi-encoder."""
    return config.method == "salient" and config.salient_by == ENCODER


def uses_bm25(config: PositiveSettings) -> bool:
    """Whether the method needs bm25s: its index, or its list of stop words."""
    return config.method in (BM25, "spans") or (config.method == "salient" and config.salient_by == BM25)


def check(config: PositiveSettings) -> None:
    """Check what no single setting can say.

    Raises:
        ConfigError: Two settings do not fit each other.
    """
    for low, high in (
        _CROP,
        ("span_words_min", "span_words_max"),
        ("span_window_min", "span_window_max"),
        ("salient_words_min", "salient_words_max"),
    ):
        if getattr(config, low) > getattr(config, high):
            raise ConfigError(
                f"[generate] {low} is {getattr(config, low)} but {high} is {getattr(config, high)}; "
                "the first must not be larger"
            )
    noise = config.noise_delete + config.noise_replace + config.noise_mask
    if noise > 1.0:
        raise ConfigError(
            f"[generate] noise_delete, noise_replace and noise_mask add up to {noise:g} but each word has one fate; "
            "give shares of at most 1 together"
        )
    if config.queries and config.method != BM25:
        raise ConfigError(
            f"[generate] queries is {config.queries!r} but method is {config.method}, which makes its own; "
            "leave it out, or set method to bm25"
        )
