"""ADORE: the query encoder trained against a search of all documents at each step, whose vectors stay as they are.

Zhan et al., "Optimizing Dense Retrieval Model Training with Hard Negatives" (arXiv:2104.08051, section 4.2); LTRe
(arXiv:2010.10469) is the same search with other pair weights.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gplfast.errors import ConfigError
from gplfast.models.losses import temperature

if TYPE_CHECKING:
    from gplfast.config import TrainConfig
    from gplfast.models.training_rows import Examples


def loss(student: Any, config: TrainConfig, examples: Examples) -> Any:
    """The loss of a batch of queries whose labels are the rows of their positives, and of their sources behind them.

    Of each query the `search_top` best documents are searched for exactly. Documents of the positive's text are
    positives; where none is found the positive is put behind the others. Documents of the source's text are in no pair;
    those whose vectors have NaN are never found. With r a document's rank, 1 / r counted as 0 beyond `metric_cut`, and
    s its similarity over the temperature, the loss is the mean over the pairs of a positive i and another document j of
    |1/r_i - 1/r_j| log(1 + exp(s_j - s_i)), then over the queries.

    Args:
        student: The model under training, which encodes the queries.
        config: Settings of the loss.
        examples: With `documents`, float32 (n_documents, dim), of the model before training.

    Raises:
        ConfigError: There are no documents' vectors.
    """
    import torch

    if examples.documents is None:
        raise ConfigError("loss is adore but there are no vectors of the documents; embed them with the base first")
    cosine, scale = config.similarity == "cosine", 1.0 / temperature(student, config)
    found_by = _Ranked(examples.documents, examples.passage_groups, cosine=cosine, k=config.search_top)

    class Adore(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = student

        def forward(self, sentence_features: Any, labels: Any) -> Any:
            (features,) = sentence_features
            queries = self.model(features)["sentence_embedding"].float()
            found = found_by(queries.detach().cpu().numpy(), labels.cpu().numpy().reshape(len(labels), -1))
            vectors, near, far = (torch.from_numpy(part).to(queries.device) for part in found)
            if cosine:
                queries = torch.nn.functional.normalize(queries, dim=-1)
                vectors = torch.nn.functional.normalize(vectors, dim=-1)
            with torch.autocast(queries.device.type, enabled=False):  # ranks are those of float32
                scores = scale * (vectors @ queries.unsqueeze(2)).squeeze(2)
            return pair_loss(scores, near, far, config.metric_cut)

    return Adore()


class _Ranked:
    """The documents that a batch of queries finds, and which of them are positives."""

    def __init__(
        self, documents: npt.NDArray[np.float32], groups: npt.NDArray[np.int64] | None, *, cosine: bool, k: int
    ) -> None:
        import torch

        from gplfast import ops

        self._documents = documents
        self._groups = np.arange(len(documents)) if groups is None else groups
        self._k, self._threads = min(k, len(documents)), torch.get_num_threads()
        self._index = ops.Index(documents.shape[1], "cosine" if cosine else "ip")
        self._index.add(documents, threads=self._threads)

    def __call__(self, queries: npt.NDArray[np.float32], own: npt.NDArray[np.int64]) -> tuple[Any, Any, Any]:
        """Vectors by rank with the positive's at the end, float32 (n, k + 1, dim), its positives and the others."""
        groups = self._groups
        hits = self._index.search(queries, self._k, threads=self._threads).ids
        positives, sources = groups[own[:, :1]], groups[own[:, -1:]]  # the same where there are no sources
        ranked = np.concatenate([hits, own[:, :1]], axis=1)
        vectors = np.asarray(self._documents[ranked], np.float32)
        there = np.concatenate([hits >= 0, ~np.isnan(vectors[:, -1:]).any(axis=2)], axis=1)
        vectors[~there] = 0.0  # NaN times a weight of 0 is NaN
        near = there & (groups[ranked] == positives)
        far = there & ~near & (groups[ranked] != sources)
        # The place behind the others is a positive or nothing.
        near[:, -1] &= ~near[:, :-1].any(axis=1)
        return vectors, near, far


def pair_loss(scores: Any, near: Any, far: Any, cut: int) -> Any:
    """The mean over pairs of each row, then over rows, see `loss`.

    Args:
        scores: Float (n, m), by rank.
        near: Bool (n, m), the positives.
        far: Bool (n, m), the other documents.
        cut: Last rank that counts.
    """
    import torch

    ranks = torch.arange(1, scores.shape[1] + 1, device=scores.device)
    gains = torch.where(ranks <= cut, 1.0 / ranks, 0.0)
    weights = (gains.unsqueeze(1) - gains.unsqueeze(0)).abs()
    pairs = near.unsqueeze(2) & far.unsqueeze(1)
    losses = torch.nn.functional.softplus(scores.unsqueeze(1) - scores.unsqueeze(2)) * weights * pairs
    return (losses.sum(dim=(1, 2)) / pairs.sum(dim=(1, 2)).clamp(min=1)).mean()
