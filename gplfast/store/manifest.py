"""What made an artifact: a stage is skipped only when the manifest on disk equals the one that is wanted."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from gplfast.errors import ArtifactError, ConfigError
from gplfast.store.atomic import read_json, sync, write_json
from gplfast.store.workdir import inside

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

MANIFEST_NAME = "manifest.json"
PROGRESS_NAME = "shards.json"
_HASH_BLOCK_BYTES = 1 << 20


class Freshness(NamedTuple):
    """Whether an artifact can be used as it is, and if not, what differs."""

    fresh: bool
    reason: str


@dataclass(frozen=True)
class Manifest:
    """What made an artifact, and what came out.

    Attributes:
        artifact: the noun ("queries", "negatives", …).
        inputs: name to fingerprint of everything that was read.
        config: the settings that the bytes depend on; JSON values only (tuples become lists).
        models: name to fingerprint of the weights.
        counts: how many came out; not part of the key.
        served: name of each model that ran to what it ran on, and what its trial found; not part of the key.
        files: name (relative, inside the artifact) to "bytes:sha256"; not part of the key. See `with_files`.
        schema_version: of the artifact's format.
    """

    artifact: str
    inputs: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    counts: dict[str, float] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    served: dict[str, Any] = field(default_factory=dict)
    schema_version: int = 1

    def __post_init__(self) -> None:
        """Bring the configuration to what JSON gives back, so that a manifest equals itself after a round trip."""
        try:
            config = json.loads(json.dumps(self.config, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"manifest of {self.artifact}: config is not JSON ({error}); use plain values") from error
        object.__setattr__(self, "config", config)

    @property
    def key(self) -> str:
        """sha256 (hex) of artifact, schema, inputs, config and models.

        Equal keys mean the same inputs, weights and settings. The bytes are equal too where what the key leaves out is:
        batch sizes, the device, the precision that "auto" became and the versions of libraries change last bits.
        """
        text = json.dumps(self._identity(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()

    def with_counts(self, counts: Mapping[str, float]) -> Manifest:
        """A copy with these counts."""
        return replace(self, counts=dict(counts))

    def with_served(self, served: Mapping[str, Any]) -> Manifest:
        """A copy that says what its models ran on."""
        return replace(self, served=dict(served))

    def with_files(self, directory: str | Path, names: Iterable[str]) -> Manifest:
        """A copy that records size and sha256 of these files, so that a truncated one is noticed later."""
        return replace(self, files={name: _describe(inside(directory, name)) for name in names})

    def write(self, directory: str | Path) -> None:
        """Write manifest.json, the last file of an artifact: only what is complete has one."""
        write_json(Path(directory) / MANIFEST_NAME, self.as_json())

    @classmethod
    def read(cls, directory: str | Path) -> Manifest:
        """Read manifest.json.

        Raises:
            FileNotFoundError: when there is none: the artifact was never finished.
            ArtifactError: when it is damaged.
        """
        path = Path(directory) / MANIFEST_NAME
        return manifest_of(read_json(path), path)

    def difference(self, other: Manifest) -> str:
        """What differs from an older manifest, in words; empty when the keys are equal."""
        new, old = self._identity(), other._identity()
        for name in ("artifact", "schema_version"):
            if new[name] != old[name]:
                return f"{name} is {new[name]} but was {old[name]}"
        parts = [*_fingerprints("inputs", new, old), *_values("config", new["config"], old["config"])]
        return ", ".join([*parts, *_fingerprints("models", new, old)])

    def as_json(self) -> dict[str, Any]:
        """The content of manifest.json."""
        return {**self._identity(), "counts": self.counts, "files": self.files, "served": self.served, "key": self.key}

    def _identity(self) -> dict[str, Any]:
        return {
            "artifact": self.artifact,
            "schema_version": self.schema_version,
            "inputs": self.inputs,
            "config": self.config,
            "models": self.models,
        }


def manifest_of(value: object, path: Path) -> Manifest:
    """Build a manifest from JSON that was read at `path`.

    Raises:
        ArtifactError: when a field is missing or of the wrong type, or the key does not fit the content.
    """
    kinds = {"artifact": str, "schema_version": int, "inputs": dict, "config": dict, "models": dict, "counts": dict}
    fields = value if isinstance(value, dict) else {}
    for name, kind in {**kinds, "files": dict, "key": str}.items():
        if not isinstance(fields.get(name), kind):
            raise ArtifactError(
                f"cannot read {path}: {name} is missing or not a {kind.__name__}; delete it to start anew"
            )
    served = fields.get("served", {})
    manifest = Manifest(
        **{name: fields[name] for name in [*kinds, "files"]}, served=served if isinstance(served, dict) else {}
    )
    if manifest.key != fields["key"]:
        raise ArtifactError(f"cannot read {path}: its key does not fit its content; delete it to start anew")
    return manifest


def freshness(directory: str | Path, wanted: Manifest) -> Freshness:
    """Compare the artifact in `directory` with the manifest that is wanted.

    Reads manifests and file sizes only, never takes a lock and never writes.

    Returns:
        (True, "fresh"), or (False, reason) where the reason names what differs: "missing",
        "config.top_p is 0.9 but was 0.95", "inputs.queries changed", "incomplete: 3 of 10 shards".
    """
    root = Path(directory)
    try:
        found = Manifest.read(root)
    except FileNotFoundError:
        return Freshness(False, _unfinished(root, wanted))
    except ArtifactError as error:
        return Freshness(False, str(error))
    if difference := wanted.difference(found):
        return Freshness(False, difference)
    for name, description in sorted(found.files.items()):
        path, n_bytes = inside(root, name), description.partition(":")[0]
        if not path.is_file():
            return Freshness(False, f"{name} is missing")
        if str(path.stat().st_size) != n_bytes:
            return Freshness(False, f"{name} has {path.stat().st_size} bytes but was written with {n_bytes}")
    return Freshness(True, "fresh")


def retract(directory: str | Path) -> None:
    """Delete manifest.json, on disk when this returns: call it before any file of a finished artifact is overwritten.

    Otherwise a kill in between leaves an old manifest beside new files, and sizes alone may not tell.
    """
    path = Path(directory) / MANIFEST_NAME
    if path.is_file():
        path.unlink()
        sync(path.parent)


def verify(directory: str | Path) -> None:
    """Read every file that the manifest names and compare its sha256.

    Raises:
        FileNotFoundError: when there is no manifest.
        ArtifactError: naming the first file that is missing or changed.
    """
    for name, description in sorted(Manifest.read(directory).files.items()):
        path = inside(directory, name)
        if not path.is_file() or _describe(path) != description:
            raise ArtifactError(f"{path} is missing or changed since it was written; delete it to make it again")


def file_fingerprint(path: str | Path) -> str:
    """sha256 (hex) of a file's content, read in blocks."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _describe(path: Path) -> str:
    return f"{path.stat().st_size}:{file_fingerprint(path)}"


def _unfinished(root: Path, wanted: Manifest) -> str:
    path = root / PROGRESS_NAME
    try:
        progress = read_json(path)
        started = manifest_of(progress.get("manifest") if isinstance(progress, dict) else None, path)
    except FileNotFoundError:
        return "missing"
    except ArtifactError as error:
        return str(error)
    if difference := wanted.difference(started):
        return f"incomplete, and {difference}"
    n_done = sum(1 for _ in root.glob("shard-*.parquet"))
    return f"incomplete: {n_done} of {progress.get('n_shards')} shards"


def _fingerprints(name: str, new: dict[str, Any], old: dict[str, Any]) -> list[str]:
    names = sorted(new[name].keys() | old[name].keys())
    return [f"{name}.{item} changed" for item in names if new[name].get(item) != old[name].get(item)]


def _values(prefix: str, new: object, old: object) -> list[str]:
    if not (isinstance(new, dict) and isinstance(old, dict)):
        return [] if new == old and type(new) is type(old) else [f"{prefix} is {_short(new)} but was {_short(old)}"]
    parts = []
    for name in sorted(new.keys() | old.keys()):
        if name not in old:
            parts.append(f"{prefix}.{name} is new ({_short(new[name])})")
        elif name not in new:
            parts.append(f"{prefix}.{name} is gone (was {_short(old[name])})")
        else:
            parts += _values(f"{prefix}.{name}", new[name], old[name])
    return parts


def _short(value: object, most_characters: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= most_characters else text[: most_characters - 1] + "…"
