"""The losses that a student can be trained with, their settings, and which of these each loss reads."""

from __future__ import annotations

import dataclasses

from gplfast.errors import ConfigError
from gplfast.settings import Checked, setting

MARGIN_MSE, KL, MNRL, CACHED_MNRL = "margin-mse", "kl", "mnrl", "cached-mnrl"
TRIPLET, GIST, CACHED_GIST, ADORE = "triplet", "gist", "cached-gist", "adore"

_RESCALED = ("rescale", "rescale_range", "label_mean", "label_clip")
_INFO_NCE = ("scale", "temperature", "directions", "partition_mode")
_HARDNESS = ("hardness_mode", "hardness_strength")
_GUIDED = ("temperature", "guide_margin", "guide_strategy")
# Each loss and the settings that it reads; those of other losses change nothing and are not recorded.
READS: dict[str, tuple[str, ...]] = {
    MARGIN_MSE: _RESCALED,
    KL: ("scale", "temperature", "teacher_temperature"),
    MNRL: (*_INFO_NCE, *_HARDNESS, "in_batch_hard"),
    CACHED_MNRL: (*_INFO_NCE, *_HARDNESS, "mini_batch_size"),
    TRIPLET: ("loss_margin", "distance", "in_batch_hard"),
    GIST: _GUIDED,
    CACHED_GIST: (*_GUIDED, "mini_batch_size"),
    ADORE: ("scale", "temperature", "search_top", "metric_cut"),
}
LABELLED = (MARGIN_MSE, KL)  # these learn the teacher's scores
IN_BATCH = (MNRL, CACHED_MNRL, GIST, CACHED_GIST)  # to these every passage of a batch is a negative of the others
GUIDED = (GIST, CACHED_GIST)

_OF_A_LOSS = tuple(dict.fromkeys(name for names in READS.values() for name in names))


@dataclasses.dataclass(frozen=True)
class LossConfig(Checked):
    """The loss and what it reads; `docs/losses.md` says which setting belongs to which loss."""

    loss: str = setting(
        "auto", "auto: margin-mse for GPL and R-GPL, mnrl for GenQ", choices=("auto", *READS), added=True
    )
    negatives_per_row: int = setting(
        1, "different negatives of a row (a query that has fewer repeats its own); GenQ has none", low=1, added=True
    )
    scale: float = setting(20.0, "similarity multiplier of MultipleNegativesRanking (1 for dot)", low=1e-6)
    temperature: float = setting(
        0.0, "of the student's softmax (0: 1 / scale, 1 for dot, and 0.01 for gist)", low=0.0, added=True
    )
    teacher_temperature: float = setting(1.0, "of the teacher's softmax in kl", low=1e-6, added=True)
    loss_margin: float = setting(
        0.0, "of triplet (0: 5, and 0.2 where vectors are of length 1 or compared by cosine)", low=0.0, added=True
    )
    distance: str = setting(
        "auto",
        "of triplet; auto: cosine for a cosine student, else euclidean",
        choices=("auto", "cosine", "euclidean", "manhattan"),
        added=True,
    )
    in_batch_hard: int = setting(
        0,
        "of the other rows' positives only this many nearest are negatives (0: all passages; 2 is best)",
        low=0,
        added=True,
    )
    mini_batch_size: int = setting(
        32, "texts that a cached loss encodes at a time; the batch may be far larger", low=1, output=False
    )
    directions: tuple[str, ...] = setting(
        ("query_to_doc",),
        "what mnrl compares; the first is needed",
        choices=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
        added=True,
    )
    partition_mode: str = setting(
        "joint", "one softmax over all directions, or one each", choices=("joint", "per_direction"), added=True
    )
    hardness_mode: str = setting(
        "none",
        "which negatives of mnrl weigh more the nearer they are",
        choices=("none", "in_batch_negatives", "hard_negatives", "all_negatives"),
        added=True,
    )
    hardness_strength: float = setting(9.0, "how much more, in units of similarity", low=0.0, added=True)
    guide: str = setting(
        "", "bi-encoder that tells gist which negatives are false (empty: the base)", output=False, added=True
    )
    guide_margin: float = setting(
        0.0, "gist drops negatives that the guide puts above the positive less this", low=0.0, added=True
    )
    guide_strategy: str = setting(
        "absolute", "guide_margin in similarity, or as a share of it", choices=("absolute", "relative"), added=True
    )
    search_top: int = setting(200, "passages that adore finds for a query at each step", low=1, added=True)
    metric_cut: int = setting(200, "ranks below this weigh nothing in adore", low=1, added=True)

    def chosen_loss(self, default: str) -> str:
        """The loss, `default` where it is "auto"."""
        return default if self.loss == "auto" else self.loss

    @property
    def reads_scores(self) -> bool:
        """Of rows with negatives: whether the loss learns the teacher's scores."""
        return self.chosen_loss(MARGIN_MSE) in LABELLED

    def shares_batch(self, default: str) -> bool:
        """Whether the batch's passages are negatives of each other."""
        loss = self.chosen_loss(default)
        return loss in IN_BATCH or (loss == TRIPLET and self.in_batch_hard > 0)


def unread(loss: str) -> list[str]:
    """The settings of other losses, which this one does not read."""
    return ["negatives_per_row", *(name for name in _OF_A_LOSS if name not in READS[loss])]


def ignored(loss: str, section: str) -> list[str]:
    """The settings that change nothing where a section, "train" or "genq", is trained with this loss."""
    alone = [name for name in unread(loss) if name != "negatives_per_row" or section == "genq"]
    return alone if loss in GUIDED else [*alone, "guide"]


def check_loss(config: LossConfig, section: str) -> None:
    """Check that the loss fits the rows of a section, "train" (with negatives) or "genq" (without).

    Raises:
        ConfigError: It needs what the rows do not have, or two settings exclude each other.
    """
    loss = config.chosen_loss(MNRL if section == "genq" else MARGIN_MSE)
    where = f"[{section}] loss is {loss}"
    if section == "genq" and (loss in LABELLED or (loss == TRIPLET and not config.in_batch_hard)):
        needs = "negatives; give in_batch_hard, or" if loss == TRIPLET else "the teacher's margins;"
        raise ConfigError(f"{where}, which needs {needs} train gpl with it: [train] loss")
    if section == "train" and loss == ADORE:
        raise ConfigError(f"{where}, which takes no negatives and no labels; train genq with it: [genq] loss")
    if loss == GIST and config.negatives_per_row > 1:
        raise ConfigError(
            f"{where}, which takes one negative, but negatives_per_row is {config.negatives_per_row}; use cached-gist"
        )
    if loss == MNRL and config.in_batch_hard and (config.hardness_mode != "none" or len(config.directions) > 1):
        raise ConfigError(f"{where} with in_batch_hard, which has no hardness_mode and no directions; leave them out")
    if "query_to_doc" not in config.directions:
        raise ConfigError(f"[{section}] directions has no query_to_doc, which holds the positive; add it")
    if config.partition_mode == "per_direction" and {"query_to_query", "doc_to_doc"} & set(config.directions):
        raise ConfigError(
            f"[{section}] partition_mode is per_direction but query_to_query and doc_to_doc never hold the positive; "
            "use joint"
        )
