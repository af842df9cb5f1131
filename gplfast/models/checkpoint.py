"""A checkpoint directory: its configuration, its weights (safetensors only), its fingerprint."""

from __future__ import annotations

import hashlib
import json
import math
import struct
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from gplfast.errors import MissingExtraError, ModelError

_CONVERT = (
    'convert it once where torch and transformers are installed: python -c "from transformers import {auto} as M, '
    "AutoTokenizer as T; n='{name}'; M.from_pretrained(n).save_pretrained('converted'); "
    "T.from_pretrained(n).save_pretrained('converted')\" and use the folder 'converted'"
)
# What a model's results depend on; README, training state and checkpoints-of-checkpoints do not belong to it.
_FINGERPRINTED = (
    "config.json",
    "config_sentence_transformers.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)
_DTYPES: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("bool"),
}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        ModelError: not readable, not JSON, or not an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        message = f"checkpoint: {path} cannot be read as JSON: {error}"
        raise ModelError(message) from error
    if not isinstance(value, dict):
        message = f"checkpoint: {path} holds a {type(value).__name__} but must hold an object"
        raise ModelError(message)
    return value


class Weights:
    """The tensors of one or several safetensors files, read on demand as float32.

    bfloat16 and float16 are widened: both fit float32 exactly.
    """

    def __init__(self, files: list[Path]) -> None:
        """Read the headers.

        Raises:
            ModelError: a damaged file.
        """
        self._where: dict[str, tuple[Path, dict[str, Any], int]] = {}
        for path in files:
            header, start = _safetensors_header(path)
            for name, entry in header.items():
                if name != "__metadata__":
                    self._where[name] = (path, entry, start)

    def __contains__(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._where

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._where)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one tensor without reading it."""
        return tuple(self._entry(name)[1]["shape"])

    def __getitem__(self, name: str) -> np.ndarray[Any, np.dtype[np.float32]]:
        """One tensor, widened to float32."""
        raw = self.raw(name)
        if self._entry(name)[1]["dtype"] == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)

    def raw(self, name: str) -> np.ndarray[Any, Any]:
        """One tensor as stored (bfloat16 as its uint16 bits), memory-mapped."""
        path, entry, start = self._entry(name)
        dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
        if math.prod(shape) == 0:
            return np.zeros(shape, dtype)
        return np.memmap(path, dtype, "r", start + entry["data_offsets"][0], shape)

    def _entry(self, name: str) -> tuple[Path, dict[str, Any], int]:
        if name not in self._where:
            some = ", ".join(self.names()[:4])
            message = f"checkpoint: weight {name} is missing but {len(self._where)} others are there ({some}, ...)"
            raise ModelError(message)
        return self._where[name]


def _safetensors_header(path: Path) -> tuple[dict[str, Any], int]:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        message = "models: safetensors is not installed; run: pip install 'gplfast[cpu]'"
        raise MissingExtraError(message) from error
    try:
        with safe_open(str(path), framework="np"):  # the library checks header, offsets and file length
            pass
    except (SafetensorError, OSError) as error:
        message = f"checkpoint: {path} is not a whole safetensors file: {error}; copy or download it again"
        raise ModelError(message) from error
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header: dict[str, Any] = json.loads(file.read(length))
    for name, entry in header.items():
        if name != "__metadata__" and entry["dtype"] not in _DTYPES:
            message = (
                f"checkpoint: {path}: weight {name} has dtype {entry['dtype']} but only {', '.join(_DTYPES)} are read"
            )
            raise ModelError(message)
    return header, 8 + length


class Checkpoint:
    """A Hugging Face or sentence-transformers directory on disk."""

    def __init__(self, directory: Path) -> None:
        """Open a directory.

        Raises:
            ModelError: no directory there.
        """
        if not directory.is_dir():
            message = f"checkpoint: {directory} is not a directory"
            raise ModelError(message)
        self.directory = directory

    @cached_property
    def modules(self) -> list[dict[str, Any]]:
        """sentence-transformers' modules.json: type (last part of the class name) and path; or nothing."""
        path = self.directory / "modules.json"
        if not path.exists():
            return []
        try:
            entries = json.loads(path.read_text(encoding="utf-8"))
            found = [{"type": str(e["type"]).rsplit(".", 1)[-1], "path": str(e.get("path", ""))} for e in entries]
        except (ValueError, TypeError, KeyError) as error:
            message = f"checkpoint: {path} is not a list of modules with a type each: {error!r}"
            raise ModelError(message) from error
        for entry in found:
            if PurePosixPath(entry["path"]).is_absolute() or ".." in PurePosixPath(entry["path"]).parts:
                message = (
                    f"checkpoint: {path} has module path {entry['path']!r} but it must stay inside the model's folder"
                )
                raise ModelError(message)
        return found

    @cached_property
    def transformer(self) -> Path:
        """The directory of the network itself: this one, or the Transformer module's."""
        for entry in self.modules:
            if entry["type"] == "Transformer":
                return self.directory / str(entry["path"])
        return self.directory

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json of the network."""
        path = self.transformer / "config.json"
        if not path.exists():
            message = f"checkpoint: {self.transformer} has no config.json; give the directory of a saved model"
            raise ModelError(message)
        return read_json(path)

    def optional(self, name: str, *, network: bool = False) -> dict[str, Any]:
        """A JSON file of the directory (of the network's with `network`), or {} when it is not there."""
        path = (self.transformer if network else self.directory) / name
        return read_json(path) if path.exists() else {}

    @cached_property
    def weights(self) -> Weights:
        """The network's tensors.

        Raises:
            ModelError: no safetensors (the message says how to convert), or damaged ones.
        """
        return Weights(self._weight_files())

    def _weight_files(self) -> list[Path]:
        folder = self.transformer
        index = folder / "model.safetensors.index.json"
        if index.exists():
            names = sorted({str(name) for name in read_json(index).get("weight_map", {}).values()})
            missing = [name for name in names if Path(name).name != name or not (folder / name).exists()]
            if missing or not names:
                message = (
                    f"checkpoint: {index} names {', '.join(missing) or 'no files'}, not there; copy the whole model"
                )
                raise ModelError(message)
            return [folder / name for name in names]
        if (folder / "model.safetensors").exists():
            return [folder / "model.safetensors"]
        raise ModelError(self._no_safetensors(folder))

    def _no_safetensors(self, folder: Path) -> str:
        pickles = sorted(p.name for p in folder.glob("*.bin")) + sorted(p.name for p in folder.glob("*.pt"))
        auto = "AutoModelForSeq2SeqLM" if self.config.get("model_type") == "t5" else "AutoModel"
        if any("SequenceClassification" in str(name) for name in self.config.get("architectures") or []):
            auto = "AutoModelForSequenceClassification"
        if pickles:
            return (
                f"checkpoint: {folder} has its weights only as {pickles[0]}, a pickle, which gplfast never loads; "
                + _CONVERT.format(auto=auto, name=folder)
            )
        return f"checkpoint: {folder} has no model.safetensors; " + _CONVERT.format(
            auto=auto, name="<the model's name>"
        )

    @cached_property
    def fingerprint(self) -> str:
        """sha256 (hex) over names and contents of the weights, configuration and tokenizer files."""
        folders = {self.directory, self.transformer, *(self.directory / e["path"] for e in self.modules)}
        files = {path for folder in folders for name in _FINGERPRINTED if (path := folder / name).is_file()}
        files.update(self._weight_files())
        files.update(path for e in self.modules if (path := self.directory / e["path"] / "model.safetensors").is_file())
        digest = hashlib.sha256()
        for path in sorted(files, key=lambda p: p.relative_to(self.directory).as_posix()):
            digest.update(path.relative_to(self.directory).as_posix().encode() + b"\0")
            digest.update(hash_file(path).encode())
        return digest.hexdigest()


# Inside a model that encodes queries alone: the model that encodes the documents.
DOCUMENTS = "documents"


def hash_file(path: Path) -> str:
    """sha256 of a file's content, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(directory: Path) -> str:
    """sha256 (hex) over the files of a checkpoint that its results depend on; see `Checkpoint.fingerprint`."""
    return Checkpoint(directory).fingerprint
