"""Each loss against a computation in NumPy on the same vectors, and a few steps of the real trainer that lower it."""

from __future__ import annotations

import numpy as np
import pytest
from models.loss_rows import BASE, N, rows_of, with_

from gplfast.config import TrainConfig
from gplfast.errors import ConfigError
from gplfast.loss_settings import READS, check_loss, unread
from gplfast.settings import output_settings
from gplfast.stages import train

pytest.importorskip("sentence_transformers", reason="the train extra is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")
from gplfast.models import losses, training_rows  # noqa: E402
from gplfast.models import student as students  # noqa: E402


def value(world, config, rows, student=None):
    """The loss of one batch as the trainer computes it, and the vectors of its columns, without dropout."""
    import torch

    students.prepare(0, 1)
    student = (student or students.open_student(world.student, config)).eval()
    data = training_rows.dataset(rows, config)
    batch = training_rows.collator(student, rows)([data[i] for i in range(len(data))])
    label = batch.pop("label", None)
    columns = {}
    for key, tensor in batch.items():
        for ending in ("input_ids", "attention_mask", "token_type_ids"):
            if key.endswith("_" + ending):
                columns.setdefault(key.removesuffix("_" + ending), {})[ending] = tensor
    with torch.no_grad():
        found = float(training_rows.loss(student, config, rows)(list(columns.values()), label))
    negatives = () if rows.negatives is None else rows.negatives.reshape(len(rows.queries), -1).T
    texts = [[rows.query_text(i) for i in rows.queries]]
    texts += [[rows.passage_text(int(i)) for i in column] for column in (rows.positives, *negatives)]
    return found, [np.asarray(student.encode(part, show_progress_bar=False), np.float64) for part in texts]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def sims(a, b, similarity="cosine"):
    return unit(a) @ unit(b).T if similarity == "cosine" else a @ b.T


def log_softmax(x):
    x = x - x.max(axis=1, keepdims=True)
    return x - np.log(np.exp(x).sum(axis=1, keepdims=True))


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_margin_mse_of_several_negatives(world, similarity):
    rows = rows_of(world, 3)
    found, (q, p, *n) = value(world, with_(similarity=similarity), rows)
    margins = np.stack([(sims(q, p, similarity) - sims(q, x, similarity)).diagonal() for x in n], axis=1)
    assert found == pytest.approx(np.mean((margins - rows.margins) ** 2), rel=1e-4)


@pytest.mark.parametrize(("similarity", "given", "used"), [("cosine", 0.0, 0.05), ("dot", 0.0, 1.0), ("dot", 2.0, 2.0)])
def test_kl_divergence_of_the_teachers_softmax_and_the_students(world, similarity, given, used):
    """The teacher's logits are known up to a constant per row, its margins, and a softmax does not see a constant."""
    rows = rows_of(world, 2)
    config = with_(loss="kl", similarity=similarity, temperature=given, teacher_temperature=3.0)
    found, (q, *docs) = value(world, config, rows)
    scores = np.stack([sims(q, x, similarity).diagonal() for x in docs], axis=1) / used
    logits = np.float64(7.5) - np.concatenate(
        [np.zeros((N, 1)), rows.margins], axis=1
    )  # 7.5: any score of the positive
    teacher, student = log_softmax(logits / 3.0), log_softmax(scores)
    wanted = used**2 * (np.exp(teacher) * (teacher - student)).sum() / N
    assert found == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("loss", ["mnrl", "cached-mnrl"])
@pytest.mark.parametrize("n_negatives", [0, 2])
@pytest.mark.parametrize(("similarity", "scale"), [("cosine", 20.0), ("dot", 1.0)])
def test_info_nce_over_the_batch_and_the_mined_negatives(world, loss, n_negatives, similarity, scale):
    """In mini-batches of two the value is that of the whole batch (GradCache, arXiv:2101.06983)."""
    found, (q, *docs) = value(world, with_(loss=loss, similarity=similarity), rows_of(world, n_negatives))
    scores = scale * sims(q, np.concatenate(docs), similarity)
    assert found == pytest.approx(-log_softmax(scores).diagonal().mean(), rel=1e-4)


def test_a_temperature_is_the_scale_upside_down(world):
    rows = rows_of(world, 1)
    assert value(world, with_(loss="mnrl", temperature=0.1), rows)[0] == pytest.approx(
        value(world, with_(loss="mnrl", scale=10.0), rows)[0]
    )


def test_info_nce_in_both_directions_and_with_harder_negatives_heavier(world):
    rows = rows_of(world, 0)
    found, (q, p) = value(world, with_(loss="mnrl", directions=("query_to_doc", "doc_to_query")), rows)
    scores = 20 * np.concatenate([sims(q, p), sims(p, q)], axis=1)
    assert found == pytest.approx(-log_softmax(scores).diagonal().mean(), rel=1e-4)
    apart = with_(loss="mnrl", directions=("query_to_doc", "doc_to_query"), partition_mode="per_direction")
    found, _ = value(world, apart, rows)
    both = log_softmax(20 * sims(q, p)).diagonal() + log_softmax(20 * sims(p, q)).diagonal()
    assert found == pytest.approx(-both.mean() / 2, rel=1e-4)
    found, _ = value(world, with_(loss="mnrl", hardness_mode="in_batch_negatives", hardness_strength=9.0), rows)
    scores = 20 * sims(q, p) + 9 * sims(q, p) * (1 - np.eye(N))
    assert found == pytest.approx(-log_softmax(scores).diagonal().mean(), rel=1e-4)


DISTANCES = {
    "cosine": lambda a, b: 1 - (unit(a) * unit(b)).sum(axis=1),
    "euclidean": lambda a, b: np.linalg.norm(a - b, axis=1),
    "manhattan": lambda a, b: np.abs(a - b).sum(axis=1),
}


@pytest.mark.parametrize(
    ("distance", "given", "margin"), [("cosine", 0.0, 0.2), ("euclidean", 0.0, 5.0), ("manhattan", 0.7, 0.7)]
)
@pytest.mark.parametrize("n_negatives", [1, 3])
def test_triplet_keeps_negatives_a_margin_further_away(world, distance, given, margin, n_negatives):
    config = with_(loss="triplet", distance=distance, loss_margin=given)
    found, (q, p, *n) = value(world, config, rows_of(world, n_negatives))
    far = DISTANCES[distance]
    wanted = np.mean([np.maximum(far(q, p) - far(q, x) + margin, 0) for x in n])
    assert found == pytest.approx(wanted, rel=1e-4)


def test_triplet_compares_as_the_student_does_unless_told_otherwise(world):
    rows = rows_of(world, 1)
    for similarity, distance in (("cosine", "cosine"), ("dot", "euclidean")):
        given = {"loss": "triplet", "similarity": similarity}
        assert value(world, with_(**given), rows)[0] == value(world, with_(**given, distance=distance), rows)[0]


@pytest.mark.parametrize("n_hard", [1, 2, 9])
@pytest.mark.parametrize("n_negatives", [0, 2])
@pytest.mark.parametrize("loss", ["mnrl", "triplet"])
def test_only_the_nearest_passages_of_the_batch_are_negatives(world, loss, n_hard, n_negatives):
    config = with_(loss=loss, in_batch_hard=n_hard)
    found, (q, p, *mined) = value(world, config, rows_of(world, n_negatives))
    scores = sims(q, p)
    kept = []
    for row in range(N):
        others = sorted((other for other in range(N) if other != row), key=lambda other: -scores[row, other])
        kept.append(np.array([scores[row, other] for other in others[:n_hard]] + [sims(q, x)[row, row] for x in mined]))
    assert len(kept[0]) == min(n_hard, N - 1) + n_negatives
    own = scores.diagonal()
    if loss == "triplet":
        wanted = np.mean([np.maximum(near - own[row] + 0.2, 0) for row, near in enumerate(kept)])
    else:
        rows = np.concatenate([own[:, None], np.stack(kept)], axis=1)
        wanted = -log_softmax(20 * rows)[:, 0].mean()
    assert found == pytest.approx(wanted, rel=1e-4)


def gist_by_hand(vectors, guides, temperature, threshold):
    (q, *docs), (guide_q, *guide_docs) = vectors, guides
    limit = threshold(sims(guide_q, guide_docs[0]).diagonal())[:, None]

    def masked(a, b, guide_a, guide_b, own=0.0):
        drop = (sims(guide_a, guide_b) > limit) & ~(own * np.eye(N) > 0)
        return np.where(drop, -np.inf, sims(a, b))

    scores = [masked(q, docs[0], guide_q, guide_docs[0], own=1.0), masked(q, q, guide_q, guide_q)]
    scores.append(masked(docs[0], docs[0], guide_docs[0], guide_docs[0]))
    scores += [masked(q, x, guide_q, y) for x, y in zip(docs[1:], guide_docs[1:], strict=True)]
    return -log_softmax(np.concatenate(scores, axis=1) / temperature).diagonal().mean()


@pytest.mark.parametrize(
    ("loss", "n_negatives", "strategy", "margin"),
    [("gist", 0, "absolute", 0.0), ("gist", 1, "relative", 0.02), ("cached-gist", 2, "absolute", 0.01)],
)
def test_gist_drops_what_the_guide_puts_above_the_positive(world, loss, n_negatives, strategy, margin):
    """The guide is the model before training, here with the weights of the student shaken."""
    import torch

    config = with_(loss=loss, guide_strategy=strategy, guide_margin=margin, temperature=0.05)
    students.prepare(0, 1)
    student = students.open_student(world.student, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for weights in student.parameters():
            weights.add_(0.05 * torch.randn_like(weights))
    rows = rows_of(world, n_negatives)
    found, vectors = value(world, config, rows, student)
    _, guides = value(world, config, rows)
    limits = {"absolute": lambda own: own - margin, "relative": lambda own: own - np.abs(own) * margin}
    wanted = gist_by_hand(vectors, guides, 0.05, limits[strategy])
    assert found == pytest.approx(wanted, rel=1e-3)
    assert wanted < gist_by_hand(vectors, guides, 0.05, lambda own: own + 9)  # something was dropped


def test_the_gradient_of_mini_batches_is_the_gradient_of_the_batch(world):
    import torch

    gradients = []
    for loss in ("mnrl", "cached-mnrl"):
        config, rows = with_(loss=loss), rows_of(world, 2)
        students.prepare(0, 1)
        student = students.open_student(world.student, config).eval()
        columns = [[rows.query_text(i) for i in rows.queries]]
        columns += [[rows.passage_text(int(i)) for i in part] for part in (rows.positives, *rows.negatives.T)]
        tokens = [student.preprocess(texts) for texts in columns]
        training_rows.loss(student, config, rows)(tokens, None).backward()
        gradients.append(torch.cat([x.grad.ravel() for x in student.parameters() if x.grad is not None]).numpy())
    assert np.abs(gradients[0]).max() > 1e-3
    assert np.allclose(*gradients, atol=1e-5)


@pytest.mark.parametrize("loss", READS)
def test_a_manifest_holds_the_settings_that_the_loss_reads_and_no_others(loss):
    changed = {
        "scale": 3.0,
        "temperature": 0.5,
        "teacher_temperature": 2.0,
        "loss_margin": 1.0,
        "distance": "cosine",
        "in_batch_hard": 2,
        "directions": ("query_to_doc", "doc_to_query"),
        "partition_mode": "per_direction",
        "hardness_mode": "hard_negatives",
        "hardness_strength": 1.0,
        "guide_margin": 0.5,
        "guide_strategy": "relative",
        "search_top": 7,
        "metric_cut": 5,
        "rescale": "none",
        "rescale_range": (-1.0, 1.0),
        "label_mean": 0.5,
        "label_clip": 2.0,
    }
    of_losses = {name for names in READS.values() for name in names} - {"mini_batch_size"}
    assert of_losses == set(changed)
    made = train.manifest({}, "base", TrainConfig(loss=loss, **changed), loss, 0).config
    assert of_losses & set(made) == set(READS[loss]) - {"mini_batch_size"}
    assert set(unread(loss)) & set(READS[loss]) == set()
    assert made["loss"] == loss


def test_models_made_before_there_was_a_choice_stay_fresh():
    """The configuration of a manifest then, and what today's defaults give."""
    for loss, without in (
        ("margin-mse", {"scale"}),
        ("mnrl", {"rescale", "rescale_range", "label_mean", "label_clip"}),
    ):
        then = {
            *("similarity", "pooling", "max_seq_length", "steps", "visits_per_query", "max_steps", "batch_size"),
            *("learning_rate", "weight_decay", "warmup_steps", "warmup_share", "max_grad_norm", "precision"),
            *("rescale", "rescale_range", "label_mean", "label_clip", "scale", "loss", "seed"),
        }
        assert set(train.manifest({}, "b", TrainConfig(), loss, 0).config) == then - without
    assert "loss" not in output_settings(TrainConfig())


@pytest.mark.parametrize(
    ("section", "given", "words"),
    [
        ("genq", {"loss": "kl"}, "needs the teacher's margins"),
        ("genq", {"loss": "margin-mse"}, "needs the teacher's margins"),
        ("genq", {"loss": "triplet"}, "needs negatives; give in_batch_hard"),
        ("train", {"loss": "gist", "negatives_per_row": 2}, "use cached-gist"),
        ("train", {"loss": "adore"}, "train genq with it"),
        ("train", {"loss": "mnrl", "in_batch_hard": 2, "hardness_mode": "all_negatives"}, "leave them out"),
        ("train", {"directions": ("doc_to_query",)}, "has no query_to_doc"),
        ("train", {"directions": ("query_to_doc", "doc_to_doc"), "partition_mode": "per_direction"}, "use joint"),
    ],
)
def test_settings_that_do_not_fit_each_other_are_refused(section, given, words):
    with pytest.raises(ConfigError, match=words):
        check_loss(TrainConfig(**given), section)


def test_a_loss_without_what_it_needs_says_so(world):
    student = students.open_student(world.student, BASE)
    with pytest.raises(ConfigError, match="there is no guide"):
        losses.build("gist", student, BASE)
    with pytest.raises(ConfigError, match="no vectors of the documents"):
        training_rows.loss(student, with_(loss="adore"), rows_of(world, 0))
    with pytest.raises(ConfigError, match="loss is hinge but must be one of margin-mse, kl"):
        losses.build("hinge", student, BASE)
