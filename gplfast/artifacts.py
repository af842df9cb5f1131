"""What is in a work directory: which artifact should be made from what, known before anything runs."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gplfast.errors import ArtifactError, ConfigError, DataError
from gplfast.loss_settings import GUIDED, MARGIN_MSE, MNRL
from gplfast.report import BM25
from gplfast.serving import Serving, served_fingerprint
from gplfast.store.corpus import Corpus, load_corpus, load_queries
from gplfast.store.manifest import Manifest
from gplfast.store.qrels import load_qrels
from gplfast.store.workdir import WorkDir

if TYPE_CHECKING:
    import pyarrow as pa

    from gplfast.config import RunConfig, TrainConfig
    from gplfast.stages.evaluate import Judged
    from gplfast.store.corpus import Queries
    from gplfast.store.generated import GeneratedQueries
    from gplfast.store.margins import Margins
    from gplfast.store.negatives import Negatives

Report = Callable[[str, int, int], None]
# Which step makes the inputs that a manifest names, besides the corpus.
_MAKERS = {"queries": "generate", "negatives": "mine"}


class ModelFile:
    """A model's directory and fingerprint, found when first asked for."""

    def __init__(self, name: str) -> None:
        """Nothing is looked up yet.

        Args:
            name: A directory, a bundled model or a hub name.
        """
        self.name = name

    @functools.cached_property
    def path(self) -> Path:
        """The checkpoint directory.

        Raises:
            HubError: A hub name was given and the hub cannot be reached.
            ModelError: No such directory.
        """
        from gplfast.models.resolve import resolve

        return resolve(self.name)

    @functools.cached_property
    def fingerprint(self) -> str:
        """Of weights, configuration and tokenizer."""
        from gplfast.models.checkpoint import fingerprint

        return fingerprint(self.path)


class Artifacts:
    """The artifacts of one corpus in one work directory."""

    def __init__(
        self,
        corpus: str | Path | Corpus | pa.Table | Sequence[str],
        work: str | Path,
        config: RunConfig,
        *,
        judgements: str | Path | None = None,
        report: Report | None = None,
        alone: bool = False,
    ) -> None:
        """Nothing is read yet.

        Args:
            corpus: What `load_corpus` takes, or a `Corpus`.
            work: The work directory.
            config: The settings.
            judgements: A BEIR folder with queries and qrels; by default the corpus' own folder when it has them.
            report: Called with (what, done, all) as work goes on.
            alone: Take the artifacts of earlier steps as they are on disk instead of demanding these settings of them.
        """
        self.config, self.work, self.report, self.alone = config, WorkDir(work), report, alone
        self._source, self._judgements = corpus, judgements
        self._models: dict[str, ModelFile] = {}
        self.serving = Serving(config)

    @functools.cached_property
    def corpus(self) -> Corpus:
        """The passages, loaded when first asked for."""
        if isinstance(self._source, Corpus):
            return self._source
        given = self.config.input
        return load_corpus(
            self._source,
            split_words=given.split_words or None,
            id_column=given.id_column,
            title_column=None if given.title_column == "title" else given.title_column,
            text_column=given.text_column,
        )

    @functools.cached_property
    def judged(self) -> Judged:
        """The judged queries.

        Raises:
            DataError: There are no queries or no judgements.
        """
        from gplfast.stages import evaluate

        folder = self._judgements_folder()
        queries = load_queries(folder)
        given = self.config.evaluate
        qrels = load_qrels(folder, given.split, self.corpus, queries, allow_unknown=given.allow_unknown)
        grades = sorted((query, sorted(docs.items())) for query, docs in qrels.items())
        identity = f"{self.corpus.fingerprint} {queries.fingerprint} {grades}"
        return evaluate.judged(self.corpus, queries, qrels, hashlib.sha256(identity.encode()).hexdigest())

    @functools.cached_property
    def given_queries(self) -> Queries | None:
        """The real queries without judgements of `generate.queries`, where it names some."""
        return load_queries(self.config.generate.queries) if self.config.generate.queries else None

    def _judgements_folder(self) -> Path:
        if self._judgements is not None:
            return Path(self._judgements)
        if isinstance(self._source, (str, Path)):
            folder = Path(self._source) if Path(self._source).is_dir() else Path(self._source).parent
            if (folder / "qrels").is_dir():
                return folder
            raise DataError(
                f"cannot evaluate: {folder} has no qrels/ with judgements; give a BEIR folder with queries.jsonl and "
                f"qrels/{self.config.evaluate.split}.tsv as judgements, or leave evaluation out"
            )
        raise DataError("cannot evaluate: a corpus in memory has no judgements; give the folder of queries and qrels")

    def model(self, name: str) -> ModelFile:
        """The model of this name, looked up once."""
        return self._models.setdefault(name, ModelFile(name))

    def guide(self, config: TrainConfig) -> ModelFile | None:
        """The bi-encoder that guides a student's loss: its base where none is named, None where the loss has none."""
        return self.model(config.guide or config.base) if config.loss in GUIDED else None

    def guide_fingerprint(self, config: TrainConfig) -> str:
        """Of the guide; empty where the loss has none."""
        guide = self.guide(config)
        return "" if guide is None else guide.fingerprint

    @property
    def collection(self) -> str:
        """What the report calls the corpus: the name of its folder or file."""
        if isinstance(self._source, (str, Path)):
            path = Path(self._source).resolve()
            return path.name if path.is_dir() else path.stem
        return "corpus"

    # ---- manifests: what each artifact should be made from, known before anything runs

    def wanted(self, step: str) -> Manifest:
        """The manifest that a step's artifact should have."""
        from gplfast.stages import generate, label, mine, train

        config, seed = self.config, self.config.seed
        if step == "generate":
            name, given = config.generate.needed_model, self.given_queries
            model = self._served(name) if name else ""
            queries = "" if given is None else given.fingerprint
            return generate.manifest(self.corpus.fingerprint, model, config.generate, seed, given=queries)
        inputs = {"corpus": self.corpus.fingerprint, "queries": self._input("generate").key}
        if step == "mine":
            return mine.manifest(inputs, self._retriever_fingerprints(), config.mine, seed, self._filter_identity())
        if step == "train genq":
            base, loss = self.model(config.genq.base).fingerprint, config.genq.chosen_loss(MNRL)
            return train.manifest(inputs, base, config.genq, loss, seed, guide=self.guide_fingerprint(config.genq))
        if step == "label":
            inputs["negatives"] = self._input("mine").key
            first, *more = (self._served(name) for name in self.teachers())
            return label.manifest(inputs, first, config.label, config.train, seed, more_teachers=more)
        if step == "train rgpl":
            return self._wanted_rgpl(inputs)
        if step == "train gpl":
            inputs["margins"] = self._input("label").key
            return self._wanted_gpl(inputs)
        raise ConfigError(
            f"step is {step!r} but must be one of generate, mine, label, train gpl, train rgpl, train genq"
        )

    def _filter_identity(self) -> dict[str, Any]:
        """What the filters depend on."""
        from gplfast.mining import filtering, sources

        sources.check_scored(self.config.filter.scored, self.config.mine)
        return filtering.identity(self.config.filter, self.config.label, lambda: self._served(self.config.label.model))

    def _wanted_gpl(self, inputs: dict[str, str]) -> Manifest:
        from gplfast.stages import train

        config, guide = self.config.train, self.guide_fingerprint(self.config.train)
        base, loss = self.model(config.base).fingerprint, config.chosen_loss(MARGIN_MSE)
        return train.manifest(inputs, base, config, loss, self.config.seed, guide=guide)

    def _wanted_rgpl(self, inputs: dict[str, str]) -> Manifest:
        from gplfast.stages import refresh

        config = self.config
        inputs["negatives"] = self._input("mine").key
        made = self._wanted_gpl(inputs)
        mine: dict[str, Any] = {"exclude_duplicates": config.mine.exclude_duplicates}
        if filters := self._filter_identity():
            mine["filter"] = filters
        teachers = [self._served(name) for name in self.teachers()]
        return refresh.manifest(made, teachers, config.label, config.refresh, mine)

    def _input(self, step: str) -> Manifest:
        """The manifest of an earlier step: the wanted one, or on its own the one that is on disk.

        Row numbers mean something only together with what they were made from, so then the whole chain is checked.
        """
        if not self.alone:
            return self.wanted(step)
        directory, command = self.directory(step), step.partition(" ")[0]
        try:
            found = Manifest.read(directory)
        except FileNotFoundError:
            raise ArtifactError(
                f"{directory} is missing or not finished; run `gplfast {command}` or `gplfast run` first"
            ) from None
        if found.inputs.get("corpus") != self.corpus.fingerprint:
            raise ArtifactError(f"{directory} was made from another corpus; run `gplfast {command}` again")
        for name, maker in _MAKERS.items():
            if name in found.inputs and found.inputs[name] != self._input(maker).key:
                raise ArtifactError(f"{directory} was made from other {name}; run `gplfast {command}` again")
        return found

    def directory(self, step: str) -> Path:
        """Where the artifact of a step is or will be."""
        return self.work.path("/".join(step.split()))

    def retrievers(self) -> dict[str, str]:
        """Short name to given name of the retrievers that the sources of negatives use."""
        from gplfast.mining.sources import used_retrievers

        return used_retrievers(self.config.mine)

    def teachers(self) -> list[str]:
        """The names of the cross-encoders that label, the first one first."""
        return [self.config.label.model, *self.config.label.more_models]

    def _served(self, name: str) -> str:
        return served_fingerprint(self.model(name).fingerprint, self.config)

    def _retriever_fingerprints(self) -> dict[str, str]:
        return {short: BM25 if name == BM25 else self._served(name) for short, name in self.retrievers().items()}

    # ---- finished artifacts, from disk

    def queries(self) -> GeneratedQueries:
        """The generated queries, from disk."""
        from gplfast.stages import generate

        return generate.load(self.directory("generate"), self._input("generate"), n_passages=len(self.corpus))

    def negatives(self) -> Negatives:
        """The negatives, from disk."""
        from gplfast.stages import mine

        n_queries, n_passages = len(self.queries()), len(self.corpus)
        return mine.load(self.directory("mine"), self._input("mine"), n_queries=n_queries, n_passages=n_passages)

    def margins(self) -> Margins:
        """The margins, from disk."""
        from gplfast.stages import label

        n_queries, n_passages = len(self.queries()), len(self.corpus)
        return label.load(self.directory("label"), self._input("label"), n_queries=n_queries, n_passages=n_passages)
