"""Settings from a file: TOML or YAML to keys and values."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gplfast.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from pathlib import Path


def read_settings_file(file: Path) -> dict[str, Any]:
    """What a TOML (`.toml`) or YAML (`.yaml`, `.yml`) file holds.

    Raises:
        ConfigError: It cannot be read, or is not valid; the message names the file.
        MissingExtraError: It is YAML and PyYAML is not installed.
    """
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: is not UTF-8 at byte {error.start}") from error
    suffix = file.suffix.lower()
    if suffix == ".toml":
        import tomllib

        try:
            return tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigError(f"{file}: is not valid TOML: {error}") from error
    if suffix in (".yaml", ".yml"):
        return _read_yaml(file, text)
    raise ConfigError(f"{file}: has the ending {suffix!r} but must be .toml, .yaml or .yml")


def _read_yaml(file: Path, text: str) -> dict[str, Any]:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError(f"{file}: reading YAML needs PyYAML: pip install pyyaml (or write TOML)") from error
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{file}: is not valid YAML: {' '.join(str(error).split())}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{file}: holds a {type(data).__name__} but must hold keys and values")
    return data
