"""Every strategy of the menu on one collection, with the same budget of steps and rows: which negatives, positives,
filters and losses win, how hard their negatives are for the teacher, and how many of them are false.

A row is appended to results/menu.json as soon as it is done, and not made again with the same settings. Rows share the
queries, the embeddings and the teacher's scores: their seconds are without what an earlier row had made.

    python benchmarks/menu.py --work /tmp/menu
    python benchmarks/menu.py --work /tmp/menu --data ../shared/data --collection cranfield --only dense bm25
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import machine
import numpy as np
from menu_variants import REFERENCE, VARIANTS, Variant

from gplfast.config import RunConfig, load_config
from gplfast.errors import GplfastError
from gplfast.mining.lists import same_text_groups
from gplfast.mining.sampling import permutation
from gplfast.mining.scoring import PairScorer, teacher_identity
from gplfast.pipeline import Pipeline
from gplfast.stages import evaluate
from gplfast.store.atomic import read_json, read_parquet, write_json
from gplfast.store.manifest import Manifest
from gplfast.store.scores import ScoreStore

HERE = Path(__file__).resolve().parent
RESULT = HERE / "results" / "menu.json"
# Rows of each training whose negatives the teacher's scores are looked up for.
AUDITED = 1000
# Passages of BM25 that the teacher reranks: 50 of each of the bundled collection's 1,088 queries would take minutes.
RERANKED = 10
BUNDLED = HERE.parent / "gplfast" / "presets"
STUDENTS = ("gpl", "rgpl", "genq")


@dataclasses.dataclass(frozen=True)
class Budget:
    """What every row has: optimizer steps, queries that are generated, rows per step, tokens that the student reads."""

    steps: int
    max_queries: int
    batch_size: int = 32
    max_seq_length: int = 128


class Menu:
    """The rows over one collection."""

    def __init__(self, collection: Path, work: Path, out: Path, budget: Budget, config_file: Path | None) -> None:
        self.collection, self.work, self.out, self.budget, self.file = collection, work, out, budget, config_file

    def config(self, variant: Variant) -> RunConfig:
        """The settings of a row."""
        budget = self.budget
        steps = max(1, round(variant.share * budget.steps))
        student: dict[str, Any] = {"steps": steps, "batch_size": budget.batch_size, "checkpoint_steps": 10_000}
        values: dict[str, Any] = {
            "students": [variant.student if variant.student in STUDENTS else "gpl"],
            "generate": {"max_queries": budget.max_queries},
            "evaluate": {"systems": [variant.student], "rerank_top": RERANKED},
            "train": {**student, "max_seq_length": budget.max_seq_length},
            "genq": dict(student),
        }
        if variant.base:
            values["train"]["base"] = str(self.kept(variant.base))
        for section, changes in variant.overrides.items():
            values[section] = {**values.get(section, {}), **changes}
        if "filter" in values and "function" in values["filter"]:
            values["filter"]["function"] = f"{HERE}/{values['filter']['function']}"
        return load_config(self.file, preset="nano", overrides=values)

    def directory(self, variant: Variant) -> Path:
        """Rows with the same queries share a work directory."""
        method = variant.overrides.get("generate", {}).get("method", "t5")
        return self.work / self.collection.name / method

    def kept(self, name: str) -> Path:
        """The student of a row that another one starts from."""
        return self.work / self.collection.name / "kept" / name.replace(" ", "-").replace(",", "")

    def key(self, variant: Variant) -> str:
        """What a row follows from."""
        settings = dataclasses.asdict(self.config(variant))
        # Paths, which may be elsewhere next time.
        settings["filter"]["function"] = settings["filter"]["function"].removeprefix(f"{HERE}/")
        if variant.base:
            settings["train"]["base"] = settings["genq"]["base"] = variant.base
        text = json.dumps([self.collection.name, variant.student, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def rows(self) -> list[dict[str, Any]]:
        """What is finished, in the order of the menu; rows that left it are dropped."""
        done = {row["name"]: row for row in read_json(self.out)["rows"]} if self.out.is_file() else {}
        return [done[variant.name] for variant in VARIANTS if variant.name in done]

    def missing(self, wanted: list[Variant]) -> list[Variant]:
        """The rows still to be made, in order; those that others start from come with them."""
        done = {row["name"]: row["key"] for row in self.rows()}
        bases = {variant.base for variant in wanted if variant.base and not self.kept(variant.base).is_dir()}
        return [
            variant
            for variant in VARIANTS
            if variant.name in bases or (variant in wanted and done.get(variant.name) != self.key(variant))
        ]

    def run(self, variant: Variant) -> dict[str, Any]:
        """One row: train, measure, look at the negatives; a strategy that the collection cannot have says why."""
        last = 0.0

        def show(what: str, done: int, total: int) -> None:
            nonlocal last
            if time.monotonic() - last > 20:
                last = time.monotonic()
                logging.info("%s: %s %d/%d", variant.name, what, done, total)

        row: dict[str, Any] = {"name": variant.name, "group": variant.group, "key": self.key(variant)}
        row |= {"settings": variant.overrides, "commit": machine.describe()["commit"]}
        pipeline = Pipeline(self.collection, self.directory(variant), self.config(variant), report=show)
        with pipeline.work:
            try:
                report = pipeline.run(evaluate=True).report if variant.student in STUDENTS else pipeline.evaluate()
            except GplfastError as error:
                return {**row, "not_run": str(error)}
            if report is None:
                raise RuntimeError("the pipeline gave no report")
            row |= report["systems"][variant.student]
            row["p"] = self.p_value(pipeline, variant)
            if variant.student not in STUDENTS:
                return row
            row["seconds"] = seconds(pipeline)
            row["counts"] = counts(pipeline)
            row |= audit(pipeline, variant.student)
        if any(other.base == variant.name for other in VARIANTS):
            shutil.rmtree(self.kept(variant.name), ignore_errors=True)
            shutil.copytree(pipeline.directory(f"train {variant.student}") / "model", self.kept(variant.name))
        return row

    def p_value(self, pipeline: Pipeline, variant: Variant) -> float | None:
        """Paired t-test on nDCG@10 against the reference, whose queries' values are kept beside."""
        directory = pipeline.work.path(f"evaluate/{variant.student}")
        table = read_parquet(directory / "queries.parquet")
        values = {name: table[name].to_numpy() for name in table.column_names if name != "query"}
        found = evaluate.Result({}, table["query"].to_pylist(), values)
        kept = self.work / self.collection.name / "reference.json"
        if variant.name == REFERENCE:
            write_json(
                kept,
                {
                    "key": self.key(variant),
                    "queries": found.query_ids,
                    evaluate.MAIN_METRIC: values[evaluate.MAIN_METRIC].tolist(),
                },
            )
            return None
        with contextlib.suppress(FileNotFoundError):
            reference = read_json(kept)
            if reference["key"] == self.key(next(item for item in VARIANTS if item.name == REFERENCE)):
                other = {evaluate.MAIN_METRIC: np.asarray(reference[evaluate.MAIN_METRIC])}
                return evaluate.significance(evaluate.Result({}, reference["queries"], other), found, "t-test")
        return None

    def write(self, row: dict[str, Any]) -> None:
        """Put a row into the result, in the place of an older one of its name."""
        rows = {found["name"]: found for found in self.rows()} | {row["name"]: row}
        ordered = [rows[variant.name] for variant in VARIANTS if variant.name in rows]
        result = {"machine": machine.describe(), "collection": self.collection.name}
        budget = {**dataclasses.asdict(self.budget), "audited": AUDITED}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(
            json.dumps({**result, "budget": budget, "rows": ordered}, indent=1) + "\n", encoding="utf-8"
        )


def seconds(pipeline: Pipeline) -> dict[str, float]:
    """Of the steps that a row has, when each was last done."""
    took = pipeline.seconds()
    return {step.split()[0]: took[step] for step in pipeline.steps() if step in took and step != "generate"}


def counts(pipeline: Pipeline) -> dict[str, float]:
    """What mining, labelling and training counted."""
    found: dict[str, float] = {}
    for step in pipeline.steps():
        if step != "generate":
            made = Manifest.read(pipeline.directory(step)).counts
            found |= {f"{step.split()[0]}: {name}": value for name, value in made.items()}
    return found


def audit(pipeline: Pipeline, student: str) -> dict[str, float]:
    """Mean teacher score of the negatives of some training rows, and the share that it scores as high as the positive.

    GenQ's negatives are the batch's other passages: for each row one other query's passage of another text.
    """
    queries, corpus = pipeline.queries(), pipeline.corpus
    rows = trained_rows(pipeline, student)
    chosen = np.sort(permutation(pipeline.config.seed, "audit", 0, len(rows))[:AUDITED])
    asked, positives, negatives = rows[chosen].T
    texts, passages = [queries.texts[row] for row in asked], np.concatenate([positives, negatives])
    label = pipeline.config.label
    teacher = pipeline.serving.teacher(pipeline.model(label.model).path)
    scorer = PairScorer(
        lambda found: ScoreStore(
            pipeline.work.path("scores"), teacher_identity(found, label.activation, label.relevance_label)
        ),
        lambda: teacher,
        max_tokens=label.max_seq_length,
        activation=label.activation,
        batch_size=label.batch_size,
    )
    numbers = np.arange(len(chosen), dtype=np.int64)
    scores = scorer.score(
        texts, corpus.texts(passages), np.tile(numbers, 2), np.arange(2 * len(chosen), dtype=np.int64)
    )
    of_positives, of_negatives = scores[: len(chosen)], scores[len(chosen) :]
    return {
        "positive_score": float(of_positives.mean()),
        "negative_score": float(of_negatives.mean()),
        "false_negatives": float((of_negatives >= of_positives).mean()),
    }


def trained_rows(pipeline: Pipeline, student: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    """(query, positive, negative) of the rows that a student was trained on."""
    if student == "genq":
        queries = pipeline.queries()
        groups = same_text_groups(pipeline.corpus.texts())[queries.passages]
        order = permutation(pipeline.config.seed, "audit", 1, len(queries))
        others = np.roll(order, 1)
        apart = groups[order] != groups[others]
        return np.stack([order, queries.passages[order], queries.passages[others]], axis=1)[apart]
    if student == "gpl":
        margins = pipeline.margins()
        tables = [(margins.queries, margins.positives, margins.negatives)]
    else:
        tables = []
        for path in sorted((pipeline.directory("train rgpl") / "refresh").glob("*/label/*.parquet")):
            table = read_parquet(path)
            tables.append(tuple(table[name].to_numpy() for name in ("query", "positive", "negative")))
    parts = []
    for asked, positives, negatives in tables:
        columns = negatives.reshape(len(asked), -1)
        repeated = [np.repeat(column, columns.shape[1]) for column in (asked, positives)]
        parts.append(np.stack([*repeated, columns.ravel()], axis=1))
    return np.concatenate(parts)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=BUNDLED, help="folder of collections in BEIR layout (the bundled)")
    parser.add_argument("--work", type=Path, required=True, help="folder for the work directories")
    parser.add_argument("--collection", default="demo")
    parser.add_argument("--steps", type=int, default=32, help="optimizer steps of every row")
    parser.add_argument("--max-queries", type=int, default=1500, help="queries that are generated")
    parser.add_argument("--config", type=Path, help="TOML over the preset nano")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="names of rows, or of groups of them")
    parser.add_argument("--list", action="store_true", help="name the rows and whether each is done, and stop")
    parser.add_argument("--out", type=Path, default=RESULT)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    menu = Menu(args.data / args.collection, args.work, args.out, Budget(args.steps, args.max_queries), args.config)
    known = {variant.name for variant in VARIANTS} | {variant.group for variant in VARIANTS}
    if unknown := sorted(set(args.only or ()) - known):
        parser.error(f"no row is named {', '.join(unknown)}; see --list")
    wanted = [v for v in VARIANTS if not args.only or {v.name, v.group} & set(args.only)]
    missing = menu.missing(wanted)
    if args.list:
        for variant in wanted:
            sys.stdout.write(f"{variant.group:10} {variant.name:45} {'' if variant in missing else 'done'}\n")
        return
    for variant in missing:
        start = time.perf_counter()
        row = menu.run(variant)
        menu.write(row)
        told = row.get("not_run") or f"nDCG@10 {row['nDCG@10']:.4f}"
        logging.info("%s: %s, %.0f s in all", variant.name, told, time.perf_counter() - start)


if __name__ == "__main__":
    main()
