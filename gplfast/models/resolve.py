"""From a name to a checkpoint directory: a path, a bundled model, or a hub name (the only use of the network)."""

from __future__ import annotations

import os
import re
from pathlib import Path

from gplfast.errors import HubError, MissingExtraError, ModelError
from gplfast.models.bundle import is_bundle, unpack_cached

NANO_PARTS = ("generator", "teacher", "student")
_HUB_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*(/[\w.-]+)?$")
# No pickles: *.bin, *.pt and *.h5 are not even downloaded.
_HUB_PATTERNS = ["*.json", "*.safetensors", "*.txt"]
_HUB_IGNORE = ["onnx/*", "openvino/*", "*/onnx/*", "checkpoint-*/*"]


def resolve(name_or_path: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The directory of a model.

    Args:
        name_or_path: a directory; "nano:generator", "nano:teacher" or "nano:student" (bundled); or a hub name such as
            "cross-encoder/ms-marco-MiniLM-L-6-v2", which is the only case that may use the network.
        cache_dir: where packed models are unpacked; see `cache_root`.

    Raises:
        ModelError: no such directory or bundled model.
        HubError: the hub cannot be reached or does not know the name.
        MissingExtraError: a hub name was given and huggingface_hub is not installed.
    """
    name = os.fspath(name_or_path)
    if name.startswith("nano:"):
        return _nano(name.removeprefix("nano:"), cache_dir)
    path = Path(name).expanduser()
    if path.is_dir():
        return unpack_cached(path, cache_dir) if is_bundle(path) else path
    if path.is_file():
        message = f"resolve: {name} is a file; give the model's directory"
        raise ModelError(message)
    if not isinstance(name_or_path, str) or not _HUB_NAME.match(name):
        message = f"resolve: {name} is not a directory, and not a hub name or one of {_nano_names()} either"
        raise ModelError(message)
    return _from_hub(name)


def _nano_names() -> str:
    return ", ".join(f"nano:{part}" for part in NANO_PARTS)


def _nano(part: str, cache_dir: str | os.PathLike[str] | None) -> Path:
    if part not in NANO_PARTS:
        message = f"resolve: nano:{part} is not a bundled model but {_nano_names()} are"
        raise ModelError(message)
    folder = Path(__file__).resolve().parents[1] / "presets" / "nano" / part
    if not folder.is_dir():
        message = f"resolve: nano:{part} is not part of this installation ({folder} is missing); install gplfast again"
        raise ModelError(message)
    return unpack_cached(folder, cache_dir) if is_bundle(folder) else folder


def _from_hub(name: str) -> Path:
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
    except ImportError as error:
        message = f"resolve: {name} is no directory here, and as a hub name it needs: pip install huggingface_hub"
        raise MissingExtraError(message) from error
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=_HUB_PATTERNS, ignore_patterns=_HUB_IGNORE))
    except RepositoryNotFoundError as error:
        message = f"resolve: {name} is no directory here and no model on the hub (or a private one); check the name"
        raise HubError(message) from error
    except (HfHubHTTPError, OSError, ValueError, RuntimeError) as error:
        message = (
            f"resolve: {name} is no directory here and the model hub cannot be reached ({type(error).__name__}); "
            "connect this machine, copy the model's folder here and give its path, or use --preset nano"
        )
        raise HubError(message) from error
    except Exception as error:
        # The hub client's HTTP library (requests or httpx, by version) raises its own connection errors.
        if type(error).__module__.split(".")[0] not in {"httpx", "httpcore", "requests", "urllib3"}:
            raise
        message = f"resolve: {name} is no directory here and the model hub cannot be reached ({type(error).__name__})"
        raise HubError(message) from error
