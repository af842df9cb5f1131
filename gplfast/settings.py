"""What a setting is: a dataclass field with its help text and limits, checked however it is made."""

from __future__ import annotations

import dataclasses
import math
import typing
from typing import Any

from gplfast.errors import ConfigError

_TYPES: dict[type[Any], dict[str, Any]] = {}


def setting(
    default: Any,
    text: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    output: bool = True,
    added: bool = False,
) -> Any:
    """A dataclass field with its help and limits; without `output` it makes nothing stale.

    Such a setting changes nothing that counts: no bytes, or (batch sizes) only the last bits of floats. One that was
    `added` after artifacts were made without it is recorded only where it differs from its default, which has to mean
    what was done before: so these artifacts stay fresh.
    """
    metadata = {"help": text, "low": low, "high": high, "choices": choices, "output": output, "added": added}
    return dataclasses.field(default=default, metadata=metadata)


class Checked:
    """Base of the settings: a value of the wrong type or out of range never gets into one, however it is made."""

    def __post_init__(self) -> None:
        """Check every value against its field; lists become tuples.

        Raises:
            ConfigError: Wrong type, not among the choices, or out of range.
        """
        kinds = field_types(type(self))
        for item in dataclasses.fields(self):  # type: ignore[arg-type]
            value, where = getattr(self, item.name), f"{type(self).__name__}: {item.name}"
            if item.metadata:
                object.__setattr__(self, item.name, coerce(item, kinds[item.name], value, where))
            elif not isinstance(value, kinds[item.name]):
                raise ConfigError(f"{where} is {value!r} but must be {kinds[item.name].__name__}(...)")


def output_settings(section: Any) -> dict[str, Any]:
    """The settings of one step that change its output, as JSON values: what a manifest records."""
    values = {
        item.name: getattr(section, item.name)
        for item in dataclasses.fields(section)
        if item.metadata.get("output", True)
        and not (item.metadata.get("added") and getattr(section, item.name) == item.default)
    }
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def field_types(section: type[Any]) -> dict[str, Any]:
    """The resolved type of each setting of a dataclass of settings."""
    if section not in _TYPES:  # for each flag; resolving takes a millisecond
        _TYPES[section] = typing.get_type_hints(section)
    return _TYPES[section]


def value_type(kind: Any) -> Any:
    """The type of a setting's values; of one that may be None (not set) the other one."""
    others = [part for part in typing.get_args(kind) if part is not type(None)]
    return others[0] if type(None) in typing.get_args(kind) else kind


def coerce(item: dataclasses.Field[Any], kind: Any, value: Any, where: str) -> Any:
    """Check one value against its field; lists become tuples, whole numbers become floats where a float is due.

    Raises:
        ConfigError: Wrong type, not among the choices, or out of range.
    """
    if value is None and type(None) in typing.get_args(kind):
        return None
    kind = value_type(kind)
    if typing.get_origin(kind) is tuple:
        element = typing.get_args(kind)[0]
        parts = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_check_value(item, _typed(element, part, where), where) for part in parts)
    return _check_value(item, _typed(kind, value, where), where)


def _typed(kind: Any, value: Any, where: str) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        names = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}
        raise ConfigError(f"{where} is {value!r} but must be {names.get(kind, str(kind))}")
    return value


def _check_value(item: dataclasses.Field[Any], value: Any, where: str) -> Any:
    choices, low, high = (item.metadata.get(key) for key in ("choices", "low", "high"))
    if choices and value not in choices:
        raise ConfigError(f"{where} is {value!r} but must be one of {', '.join(choices)}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{where} is {value} but must be a finite number")
    if low is not None and value < low:
        raise ConfigError(f"{where} is {value} but must be at least {low:g}")
    if high is not None and value > high:
        raise ConfigError(f"{where} is {value} but must be at most {high:g}")
    return value
