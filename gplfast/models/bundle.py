"""Small checkpoints for bundling: matrices as int8 with one scale per row, the rest float16."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gplfast.errors import ModelError
from gplfast.models.cache import cache_root, cached_folder
from gplfast.models.checkpoint import Weights, hash_file

if TYPE_CHECKING:
    import os

PLAIN = "model.safetensors"
PACKED = "model.int8.safetensors"
_SCALE = ".scale"


def is_bundle(directory: Path) -> bool:
    """Whether the directory holds a packed network (anywhere in it)."""
    return any(True for _ in directory.rglob(PACKED))


def pack(source: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write a checkpoint directory in its packed form, about a quarter of the float32 size.

    Every 2-D weight W becomes int8 `W` and float32 `W.scale` (n_rows,): W ~ int8 * scale[:, None] with
    scale = max|row| / 127; other tensors become float16 (float32 where float16 cannot hold them). Other files are
    copied; pickles are not.

    Args:
        source: a checkpoint directory with model.safetensors (modules' own model.safetensors are packed too).
        target: a directory, made if need be; must be empty.

    Raises:
        ModelError: no weights in `source`, or `target` is not empty.
    """
    source, target = Path(source), Path(target)
    if not (source / PLAIN).is_file():
        message = f"pack: {source} has no {PLAIN}; give a saved model's directory"
        raise ModelError(message)
    if target.exists() and any(target.iterdir()):
        message = f"pack: {target} is not empty; give a new directory"
        raise ModelError(message)
    for path in sorted(p for p in source.rglob("*") if p.is_file()):
        copy = target / path.relative_to(source)
        if path.suffix in {".bin", ".pt", ".pkl", ".h5"}:
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.name == PLAIN:
            _save(_packed(Weights([path])), copy.with_name(PACKED))
        else:
            shutil.copyfile(path, copy)


def unpack(bundle: str | os.PathLike[str], target: str | os.PathLike[str]) -> None:
    """Write a packed directory as a normal float32 checkpoint, which any library loads.

    Args:
        bundle: what `pack` wrote.
        target: a directory, made if need be.

    Raises:
        ModelError: a packed weight without its scale, or of another shape.
    """
    bundle, target = Path(bundle), Path(target)
    for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
        copy = target / path.relative_to(bundle)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.name == PACKED:
            _save(_unpacked(Weights([path]), path), copy.with_name(PLAIN))
        else:
            shutil.copyfile(path, copy)


def unpack_cached(bundle: Path, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The normal form of a packed directory, unpacked into the cache at first use; keyed by all its files' content."""
    import hashlib

    digest = hashlib.sha256()
    for path in sorted(p for p in bundle.rglob("*") if p.is_file()):
        digest.update(path.relative_to(bundle).as_posix().encode() + b"\0" + hash_file(path).encode())
    target = cache_root(cache_dir) / f"unpacked-{digest.hexdigest()[:32]}"
    return cached_folder(target, lambda work: unpack(bundle, work))


def _packed(weights: Weights) -> dict[str, np.ndarray[Any, Any]]:
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name in weights.names():
        value = weights[name]
        if value.ndim == 2:
            largest = np.abs(value).max(axis=1)
            scale = np.where(largest > 0, largest / np.float32(127), np.float32(1)).astype(np.float32)
            tensors[name] = np.clip(np.rint(value / scale[:, None]), -127, 127).astype(np.int8)
            tensors[name + _SCALE] = scale
        else:
            fits = not value.size or float(np.abs(value).max()) <= float(np.finfo(np.float16).max)
            tensors[name] = value.astype(np.float16) if fits else value
    return tensors


def _unpacked(weights: Weights, path: Path) -> dict[str, np.ndarray[Any, Any]]:
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    for name in weights.names():
        if name.endswith(_SCALE) and name.removesuffix(_SCALE) in weights:
            continue
        value = weights[name]
        if weights.raw(name).dtype == np.int8:
            if name + _SCALE not in weights or weights.shape(name + _SCALE) != value.shape[:1]:
                message = (
                    f"unpack: {path}: weight {name} has {value.shape[0]} rows but no scale for each; pack it again"
                )
                raise ModelError(message)
            value = value * weights[name + _SCALE][:, None]
        tensors[name] = value
    return tensors


def _save(tensors: dict[str, np.ndarray[Any, Any]], path: Path) -> None:
    from safetensors.numpy import save_file

    # transformers refuses files that do not say which framework's layout they hold
    # and asarray, because ascontiguousarray would make a scalar one-dimensional
    contiguous = {name: np.asarray(value, order="C") for name, value in tensors.items()}
    save_file(contiguous, str(path), metadata={"format": "pt"})
    path.chmod(0o644)  # the library writes 0600, which a wheel would carry to machines with other users
