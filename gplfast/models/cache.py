"""Exported graphs on disk: made once per fingerprint, written atomically, verified when opened."""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gplfast.errors import ArtifactError
from gplfast.models.checkpoint import hash_file

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)

_SEAL = "files.json"


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The folder of exported models: the argument, else $GPLFAST_CACHE, else ~/.cache/gplfast; then models/ in it."""
    chosen = cache_dir or os.environ.get("GPLFAST_CACHE") or Path.home() / ".cache" / "gplfast"
    return Path(chosen).expanduser() / "models"


def cached_folder(target: Path, build: Callable[[Path], None]) -> Path:
    """The folder `target` with what `build` writes, built if it is not there whole.

    Sizes and sha256 of all files are kept in files.json; a folder that does not match them is reported and rebuilt.
    Two processes may build at once: the first rename wins and both use it.

    Args:
        target: where the folder belongs.
        build: called with an empty folder beside `target`, to fill; not called when `target` is whole.

    Raises:
        ArtifactError: the cache cannot be written.
    """
    if target.exists():
        damage = _damage(target)
        if damage is None:
            return target
        log.warning("cache: %s is damaged (%s); building it again", target, damage)
        shutil.rmtree(target, ignore_errors=True)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        message = f"cache: {target.parent} cannot be written: {error}; set GPLFAST_CACHE to a folder that can"
        raise ArtifactError(message) from error
    try:
        build(work)
        _write_seal(work)
        _rename(work, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def _rename(work: Path, target: Path) -> None:
    try:
        work.rename(target)
    except OSError as error:
        if not target.exists() or _damage(target) is not None:
            message = f"cache: {work} cannot be renamed to {target}: {error}; free space or set GPLFAST_CACHE elsewhere"
            raise ArtifactError(message) from error
        log.debug("cache: another process built %s first", target)


def _write_seal(folder: Path) -> None:
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        with path.open("rb") as file:
            os.fsync(file.fileno())
        files[path.relative_to(folder).as_posix()] = {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    seal = folder / _SEAL
    with seal.open("w", encoding="utf-8") as file:
        json.dump(files, file, indent=1, sort_keys=True)
        file.flush()
        os.fsync(file.fileno())


def _damage(folder: Path) -> str | None:
    try:
        files = json.loads((folder / _SEAL).read_text(encoding="utf-8"))
        for name, expected in files.items():
            path = folder / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != expected["bytes"]:
                return f"{name} has {path.stat().st_size} bytes but had {expected['bytes']}"
            if hash_file(path) != expected["sha256"]:
                return f"{name} has other content than was written"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{_SEAL}: {error!r}"
    return None
