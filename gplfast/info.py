"""What gplfast finds on this machine: versions, instruction sets, threads, accelerators, and what can serve models."""

from __future__ import annotations

import sys
from importlib import metadata

_LIBRARIES = (
    "numpy",
    "pyarrow",
    "openvino",
    "torch",
    "transformers",
    "sentence-transformers",
    "bm25s",
    "ir-measures",
)


def found() -> tuple[list[str], list[str]]:
    """One line for each thing, and what is wrong with some."""
    from gplfast import ops
    from gplfast.models import runtime, session

    lines = [f"gplfast: {metadata.version('gplfast')} (python {sys.version.split()[0]})"]
    lines += [f"{name}: {_version(name)}" for name in _LIBRARIES]
    models = session.info()
    if models["installed"]:
        models["runtimes"] = runtime.available()
    parts = {"extension": ops.info(), "onnxruntime": models}
    for part, values in parts.items():
        lines += [f"{part} {name}: {_words(value)}" for name, value in values.items() if name != "conflict"]
    return lines, [values["conflict"] for values in parts.values() if values.get("conflict")]


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _words(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_words(item)}" for name, item in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(str(item) for item in value) or "none"
    return str(value)
