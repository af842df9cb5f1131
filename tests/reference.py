"""The oracle: what each operation means, in the slowest and most obvious way. Knows nothing of the extension."""

from __future__ import annotations

import numpy as np


def dots(queries, docs):
    """(n_queries, n_docs) float64 canonical dot products."""
    return sum_products(queries.astype(np.float64)[:, None], docs.astype(np.float64)[None])


def norms(rows):
    wide = rows.astype(np.float64)
    return np.sqrt(sum_products(wide, wide))


def sum_products(a, b):
    """Over the last axis, in the canonical order: element i to lane i mod 32, then a tree over the lanes."""
    lanes = np.zeros((32, *np.broadcast_shapes(a.shape[:-1], b.shape[:-1])))
    for i in range(a.shape[-1]):
        lanes[i % 32] += a[..., i] * b[..., i]
    for half in (16, 8, 4, 2, 1):
        lanes[:half] += lanes[half : 2 * half]
    return lanes[0]


def scores(queries, docs, metric="ip"):
    """(n_queries, n_docs) float32 canonical scores; NaN where a pair has none; never -0."""
    with np.errstate(all="ignore"):
        result = dots(queries, docs)
        if metric == "cosine":
            products = norms(queries)[:, None] * norms(docs)[None, :]
            result = np.where(products == 0, 0.0, result / products)
        return result.astype(np.float32) + np.float32(0)


def search(queries, docs, k, *, metric="ip", exclude=None):
    """(n_queries, k) float32 scores and int64 ids."""
    all_scores = scores(queries, docs, metric)
    best_scores = np.full((len(queries), k), -np.inf, np.float32)
    best_ids = np.full((len(queries), k), -1, np.int64)
    for query, row in enumerate(all_scores):
        excluded = set() if exclude is None else {int(i) for i in exclude[query]}
        ids = [i for i in range(len(docs)) if i not in excluded and not np.isnan(row[i])]
        ids.sort(key=lambda i: (-row[i], i))
        for rank, i in enumerate(ids[:k]):
            best_scores[query, rank] = row[i]
            best_ids[query, rank] = i
    return best_scores, best_ids


def similar_pairs(docs, threshold, metric="cosine"):
    """All (i, j), i < j, whose canonical score reaches float32(threshold)."""
    all_scores = scores(docs, docs, metric)
    n = len(docs)
    return [(i, j) for i in range(n) for j in range(i + 1, n) if all_scores[i, j] >= np.float32(threshold)]


def dedup(docs, threshold, *, metric="cosine", keep="first", rule="components"):
    """(n,) int64 representatives, and the number of similar pairs."""
    n = len(docs)
    if keep == "last":
        mirrored, n_pairs = dedup(docs[::-1], threshold, metric=metric, rule=rule)
        return (n - 1 - mirrored)[::-1], n_pairs
    pairs = similar_pairs(docs, threshold, metric)
    earlier = {j: sorted(i for i, other in pairs if other == j) for j in range(n)}
    representative = np.arange(n, dtype=np.int64)
    if rule == "components":
        changed = True
        while changed:
            changed = False
            for i, j in pairs:
                lowest = min(representative[i], representative[j])
                if representative[i] != lowest or representative[j] != lowest:
                    representative[i] = representative[j] = lowest
                    changed = True
    elif rule == "greedy":
        for j in range(n):
            staying = [i for i in earlier[j] if representative[i] == i]
            representative[j] = staying[0] if staying else j
    else:
        for j in range(n):
            representative[j] = representative[earlier[j][0]] if earlier[j] else j
    return representative, len(pairs)


def gram(docs, lists, *, metric="cosine", triangle=False, dtype="float32"):
    """The values of all lists, and where each begins."""
    parts = [np.empty(0, np.float32)]
    for ids in lists:
        matrix = scores(docs[ids], docs[ids], metric)
        parts.append(matrix[np.triu_indices(len(ids), 1)] if triangle else matrix.ravel())
    with np.errstate(over="ignore"):
        return np.concatenate(parts).astype(dtype), np.cumsum([0] + [len(part) for part in parts[1:]])


def margins(positives, negatives, reference="min"):
    """One float32 array per query from lists of float32 arrays."""
    result = []
    for positive, negative in zip(positives, negatives, strict=True):
        if len(negative) == 0:
            result.append(np.empty(0, np.float32))
            continue
        wide = [float(score) for score in positive]
        if reference == "mean":
            value = sum(wide) / len(wide)
        elif reference == "first":
            value = wide[0]
        else:
            value = float("nan") if any(np.isnan(wide)) else {"min": min, "max": max}[reference](wide)
        with np.errstate(all="ignore"):
            result.append((value - negative.astype(np.float64)).astype(np.float32))
    return result


def select(positives, negatives, *, ranks, min_score, max_score, absolute_margin, relative_margin, quota, sampling,
           temperature, seed, positive_groups=None, negative_groups=None):  # fmt: skip
    """Which negatives stay, as one bool array, and how many each filter dropped; the reference is the lowest score."""
    kept, dropped = [], {}
    ends = np.cumsum([len(scores) for scores in positives])
    start = 0
    for query, (own, scores) in enumerate(zip(positives, negatives, strict=True)):
        groups = None if negative_groups is None else negative_groups[start : start + len(scores)]
        own_groups = () if groups is None else set(positive_groups[ends[query] - len(own) : ends[query]])
        start += len(scores)
        value, stays = float(own.min()), []
        for place, score in enumerate(map(float, scores)):
            if np.isnan(score):
                reason = "nan"
            elif not ranks[0] <= place < (len(scores) if ranks[1] is None else ranks[1]):
                reason = "rank"
            elif min_score is not None and score < min_score:
                reason = "min_score"
            elif max_score is not None and score > max_score:
                reason = "max_score"
            elif absolute_margin is not None and score + absolute_margin > value:
                reason = "absolute_margin"
            elif relative_margin is not None and score > value - abs(value) * relative_margin:
                reason = "relative_margin"
            elif groups is not None and groups[place] in own_groups:
                reason = "positive_group"
            elif groups is not None and any(groups[earlier] == groups[place] for earlier in stays):
                reason = "negative_group"
            else:
                stays.append(place)
                continue
            dropped[reason] = dropped.get(reason, 0) + 1
        if quota is not None and len(stays) > quota:
            keys = {place: _key(seed, query, place, float(scores[place]), (sampling, temperature)) for place in stays}
            dropped["quota"] = dropped.get("quota", 0) + len(stays) - quota
            stays = sorted(stays, key=lambda place, keys=keys: (-keys[place], place))[:quota]
        kept.append(np.isin(np.arange(len(scores)), stays))
    return np.concatenate(kept), dropped


def _key(seed, query, place, score, how):
    sampling, temperature = how
    if sampling == "top":
        return score
    bits = int(np.random.Philox(key=[seed, query], counter=[place, 0, 0, 0]).random_raw())
    uniform = ((bits >> 11) + 0.5) / 2**53
    return uniform if sampling == "uniform" else score / temperature - np.log(-np.log(uniform))
