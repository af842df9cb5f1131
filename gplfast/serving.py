"""Opens models as the settings say, and remembers what each runs on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from gplfast.config import RunConfig
    from gplfast.models import BiEncoder, CrossEncoder, QueryGenerator
    from gplfast.models.calibration import Choice


class Serving:
    """The models of one run.

    Attributes:
        choices: name of each model that was opened ("generator", "teacher", a retriever's) to what it runs on and the
            trial's figures: what a manifest keeps.
    """

    def __init__(self, config: RunConfig) -> None:
        """Nothing is opened yet."""
        self._config = config
        self._options: dict[str, Any] = {
            "threads": config.threads or None,
            "provider": config.provider,
            "precision": config.precision,
        }
        self.choices: dict[str, dict[str, Any]] = {}
        self._bases: dict[Path, Choice] = {}

    def generator(self, path: Path) -> QueryGenerator:
        """The query generator of a checkpoint."""
        from gplfast.models import QueryGenerator

        model = QueryGenerator.open(path, **self._options)
        self.choices["generator"] = model.choice.as_json()
        return model

    def teacher(self, path: Path, name: str = "teacher") -> CrossEncoder:
        """The cross-encoder of a checkpoint; `name` is what `choices` calls it."""
        from gplfast.models import CrossEncoder

        label = self._config.label.relevance_label or None
        model = CrossEncoder.open(path, label=label, **self._options)
        self.choices[name] = model.choice.as_json()
        return model

    def encoder(self, path: Path | str, name: str, *, pooling: str = "") -> BiEncoder:
        """The bi-encoder of a checkpoint; `pooling` is for one that says none itself."""
        from gplfast.models import BiEncoder

        model = BiEncoder.open(path, pooling=pooling or "mean", **self._options)
        self.choices[name] = model.choice.as_json()
        return model

    def trained(self, path: Path, graphs: Path, base: Path, *, pooling: str = "") -> BiEncoder:
        """A bi-encoder that was trained from another one, on what that one runs on: without a trial of its own.

        Args:
            path: Its checkpoint.
            graphs: Where its exported graphs are kept.
            base: The checkpoint that it was trained from.
            pooling: Of the base, when it says none itself.
        """
        from gplfast.models import BiEncoder

        if base not in self._bases:  # to open it takes as long as the trained one, at every refresh
            self._bases[base] = self.encoder(base, "student", pooling=pooling).choice
        self.choices["student"] = self._bases[base].as_json()
        provider, _, precision = self._bases[base].runtime.partition("-")
        options = {**self._options, "provider": provider, "precision": precision}
        return BiEncoder.open(path, cache_dir=graphs, **options)


def served_fingerprint(fingerprint: str, config: RunConfig) -> str:
    """Of a model's results: weights, and the precision where it was asked for by name.

    What "auto" became is not part of it, as it passed its gate: an artifact is as good with either.
    """
    return fingerprint if config.precision == "auto" else f"{fingerprint} {config.precision}"
