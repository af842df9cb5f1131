"""The losses of the student: sentence-transformers' where it has them, and the few that it has not.

Each is a module called with the tokens of the columns (query, positive, negatives) and the labels, as sentence-
transformers' trainer does. `docs/losses.md` lists them with their sources.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from gplfast import loss_settings as names
from gplfast import ranks
from gplfast.errors import ConfigError
from gplfast.models.student import normalizes, open_student

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from gplfast.config import TrainConfig

logger = logging.getLogger(__name__)

# Margins of the triplet loss: sentence-transformers' for vectors of any length, FaceNet's (arXiv:1503.03832, 3.1)
# where two vectors are never further apart than 2.
_TRIPLET_MARGIN, _BOUNDED_TRIPLET_MARGIN = 5.0, 0.2
_GUIDED_TEMPERATURE = 0.01  # GISTEmbed's


def build(name: str, student: Any, config: TrainConfig, *, guide: Path | None = None) -> Any:
    """The loss of this name.

    Args:
        name: One of `loss_settings.READS`, but adore (`models.adore`).
        student: The model under training.
        config: Settings of the loss.
        guide: Directory of the bi-encoder that guides gist.

    Raises:
        ConfigError: There is no such loss, or gist has no guide.
    """
    makers: dict[str, Callable[[], Any]] = {
        names.MARGIN_MSE: lambda: _margin_mse(student, config),
        names.KL: lambda: _kl(student, config),
        names.MNRL: lambda: _in_batch_hard(student, config) if config.in_batch_hard else _mnrl(student, config),
        names.CACHED_MNRL: lambda: _mnrl(student, config, cached=True),
        names.TRIPLET: lambda: (
            _in_batch_hard(student, config, triplet=True) if config.in_batch_hard else _triplet(student, config)
        ),
        names.GIST: lambda: _gist(student, config, guide),
        names.CACHED_GIST: lambda: _gist(student, config, guide, cached=True),
    }
    if name not in makers:
        raise ConfigError(f"loss is {name} but must be one of {', '.join(makers)}")
    return makers[name]()


def temperature(student: Any, config: TrainConfig) -> float:
    """Of the student's softmax: as given, else 1 / scale for cosines and 1 for dot products of any length."""
    bounded = config.similarity == "cosine" or normalizes(student)
    return config.temperature or (1.0 / config.scale if bounded else 1.0)


def triplet_margin(student: Any, config: TrainConfig) -> float:
    """As given, else by whether distances are bounded."""
    bounded = normalizes(student) or _distance(config) == "cosine"
    return config.loss_margin or (_BOUNDED_TRIPLET_MARGIN if bounded else _TRIPLET_MARGIN)


def _margin_mse(student: Any, config: TrainConfig) -> Any:
    from sentence_transformers.sentence_transformer.losses import MarginMSELoss

    return MarginMSELoss(student, similarity_fct=_similarity(config, pairwise=True))


def _kl(student: Any, config: TrainConfig) -> Any:
    from sentence_transformers.sentence_transformer.losses import DistillKLDivLoss

    return DistillKLDivLoss(
        student,
        similarity_fct=_similarity(config, pairwise=True),
        student_temperature=temperature(student, config),
        teacher_temperature=config.teacher_temperature,
    )


def _mnrl(student: Any, config: TrainConfig, *, cached: bool = False) -> Any:
    from sentence_transformers.sentence_transformer import losses

    options: dict[str, Any] = {
        "scale": 1.0 / temperature(student, config),
        "similarity_fct": _similarity(config),
        "gather_across_devices": ranks.world_size() > 1,
        "directions": config.directions,
        "partition_mode": config.partition_mode,
        "hardness_mode": None if config.hardness_mode == "none" else config.hardness_mode,
        "hardness_strength": config.hardness_strength,
    }
    if not cached:
        return losses.MultipleNegativesRankingLoss(student, **options)
    return losses.CachedMultipleNegativesRankingLoss(student, mini_batch_size=config.mini_batch_size, **options)


def _gist(student: Any, config: TrainConfig, guide: Path | None, *, cached: bool = False) -> Any:
    from sentence_transformers.sentence_transformer import losses

    if guide is None:
        raise ConfigError("loss is gist but there is no guide; give the directory of a bi-encoder as guide")
    frozen = open_student(guide, config).eval().requires_grad_(False)
    options: dict[str, Any] = {
        "temperature": config.temperature or _GUIDED_TEMPERATURE,
        "margin_strategy": config.guide_strategy,
        "margin": config.guide_margin,
        "gather_across_devices": ranks.world_size() > 1,
    }
    if not cached:
        return losses.GISTEmbedLoss(student, frozen, **options)
    return losses.CachedGISTEmbedLoss(student, frozen, mini_batch_size=config.mini_batch_size, **options)


def _triplet(student: Any, config: TrainConfig) -> Any:
    import torch
    from sentence_transformers.base.losses.merged_forward import embed_columns
    from sentence_transformers.sentence_transformer.losses import TripletLoss

    class Triplets(TripletLoss):  # type: ignore[misc, unused-ignore]
        """The mean of sentence-transformers' triplet loss over the negatives of a row, of which it takes one."""

        def forward(self, sentence_features: Any, labels: Any) -> Any:
            query, positive, *negatives = embed_columns(self.model, sentence_features)
            losses = [self.compute_loss_from_embeddings([query, positive, one], labels) for one in negatives]
            return torch.stack(losses).mean()

    return Triplets(student, distance_metric=_metric(config), triplet_margin=triplet_margin(student, config))


def _in_batch_hard(student: Any, config: TrainConfig, *, triplet: bool = False) -> Any:
    """Negatives are the passages of the batch that are nearest to a query (arXiv:2006.11632, 6.1: at most two best).

    A row's own mined negatives stay negatives of it. The nearest are chosen by the student's similarity, without
    gradient, among the positives of the other rows, equal ones by place.
    """
    import torch
    from sentence_transformers.base.losses.merged_forward import embed_columns
    from sentence_transformers.util import all_gather_with_grad

    similarity, n_nearest = _similarity(config), config.in_batch_hard
    distance, margin = _metric(config), triplet_margin(student, config)
    scale = 1.0 / temperature(student, config)

    class InBatchHard(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = student

        def forward(self, sentence_features: Any, labels: Any) -> Any:  # noqa: ARG002
            query, positive, *mined = embed_columns(self.model, sentence_features)
            batch = all_gather_with_grad(positive) if ranks.world_size() > 1 else positive
            scores = similarity(query, batch)
            rows = torch.arange(len(query), device=scores.device)
            own = rows + ranks.rank() * len(query)
            others = scores.detach().clone()
            others[rows, own] = -torch.inf
            nearest = others.sort(dim=1, descending=True, stable=True).indices[:, : min(n_nearest, len(batch) - 1)]
            if not triplet:
                hard = [similarity(query, one).diagonal().unsqueeze(1) for one in mined]
                kept = torch.cat([scores[rows, own].unsqueeze(1), scores.gather(1, nearest), *hard], dim=1)
                return -(kept * scale).log_softmax(dim=1)[:, 0].mean()
            negatives = [*(batch[column] for column in nearest.T), *mined]
            if not negatives:  # a batch of one row
                return 0.0 * positive.sum()
            near = distance(query, positive)
            return torch.stack([(near - distance(query, one) + margin).relu() for one in negatives]).mean()

    return InBatchHard()


def _distance(config: TrainConfig) -> str:
    if config.distance != "auto":
        return config.distance
    return "cosine" if config.similarity == "cosine" else "euclidean"


def _metric(config: TrainConfig) -> Any:
    from sentence_transformers.sentence_transformer.losses import TripletDistanceMetric

    return getattr(TripletDistanceMetric, _distance(config).upper())


def _similarity(config: TrainConfig, *, pairwise: bool = False) -> Any:
    from sentence_transformers import util

    if config.similarity == "cosine":
        return util.pairwise_cos_sim if pairwise else util.cos_sim
    return util.pairwise_dot_score if pairwise else util.dot_score
