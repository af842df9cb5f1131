"""The settings of the filters of mined candidates."""

from __future__ import annotations

import dataclasses

from gplfast.errors import ConfigError
from gplfast.settings import Checked, setting


@dataclasses.dataclass(frozen=True)
class FilterConfig(Checked):
    """Which mined candidates are no negatives, in the order of these settings; see docs/filters.md."""

    min_score: float | None = setting(None, "drop lower scores of the retriever", added=True)
    max_score: float | None = setting(None, "drop higher scores of the retriever", added=True)
    absolute_margin: float | None = setting(
        None, "drop where score + this > the query's lowest positive's score (NV-Retriever: 0.05)", added=True
    )
    relative_margin: float | None = setting(
        None, "drop where score > p - this x |p|, p the lowest positive's score (NV-Retriever: 0.05)", added=True
    )
    scored: tuple[str, ...] = setting(
        (), "retrievers or columns of theirs that the four limits above are for (none: all)", added=True
    )
    function: str = setting(
        "",
        "a function of your own, file.py:name; the file is run as a program: name no file you do not trust",
        added=True,
    )
    near_positive: float = setting(
        1.0,
        "drop where the cosine to a positive's embedding is above this (1: off; negminer: 0.95)",
        low=-1.0,
        high=1.0,
        added=True,
    )
    denoise: float = setting(
        1.0,
        "drop what the teacher gives a probability above this (1: off; RocketQA: 0.1)",
        low=0.0,
        high=1.0,
        added=True,
    )
    teacher_margin: float | None = setting(
        None, "drop where the lowest positive's teacher score - the candidate's <= this (negminer: 0.05)", added=True
    )
    near_negative: float = setting(
        1.0,
        "drop where the cosine to a kept negative before it is above this (1: off; negminer: 0.95)",
        low=-1.0,
        high=1.0,
        added=True,
    )
    pseudo_positive: float = setting(
        1.0,
        "list what the teacher gives a probability above this (1: off; RocketQA: 0.9), no negative either",
        low=0.0,
        high=1.0,
        added=True,
    )
    promote: bool = setting(
        False, "train on pseudo-positives as further positives of their query, instead of listing them", added=True
    )
    audit: int = setting(
        0,
        "queries whose negatives the teacher reads to estimate the share of false ones (0: none)",
        low=0,
        output=False,
    )

    @property
    def by_score(self) -> dict[str, float | None]:
        """The limits of the retriever's score, by name."""
        names = ("min_score", "max_score", "absolute_margin", "relative_margin")
        return {name: getattr(self, name) for name in names}

    @property
    def by_teacher(self) -> bool:
        """Whether the teacher reads candidates."""
        return self.denoise < 1.0 or self.pseudo_positive < 1.0 or self.teacher_margin is not None

    @property
    def by_vector(self) -> bool:
        """Whether embeddings of passages are compared."""
        return self.near_positive < 1.0 or self.near_negative < 1.0

    @property
    def needs_own_scores(self) -> bool:
        """Whether the retriever's scores of the positives matter."""
        return self.absolute_margin is not None or self.relative_margin is not None or bool(self.function)

    @property
    def limits_score(self) -> bool:
        """Whether a limit of the retriever's score is on."""
        return any(limit is not None for limit in self.by_score.values())

    @property
    def on(self) -> bool:
        """Whether any filter is."""
        return self.limits_score or bool(self.function) or self.by_teacher or self.by_vector


def check_filter(wanted: FilterConfig, activation: str) -> None:
    """Check what no single key can say.

    Args:
        wanted: The filters.
        activation: Of the teacher.

    Raises:
        ConfigError: Two settings do not fit each other.
    """
    if (wanted.denoise < 1.0 or wanted.pseudo_positive < 1.0) and activation == "default":
        raise ConfigError(
            "[filter] denoise and pseudo_positive compare probabilities but [label] activation is default, which may "
            "be one or not; name it: identity, sigmoid or softmax"
        )
    if wanted.promote and wanted.pseudo_positive >= 1.0:
        raise ConfigError(
            "[filter] promote is on but pseudo_positive is 1, so the teacher takes nothing for a positive; give "
            "pseudo_positive, for example 0.9"
        )
    if wanted.function and not all(wanted.function.rpartition(":")[::2]):
        raise ConfigError(f"[filter] function is {wanted.function!r} but must be file.py:name")
