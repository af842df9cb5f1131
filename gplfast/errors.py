"""What gplfast raises: each error also derives from the built-in that fits, so callers need not import it."""

from __future__ import annotations


class GplfastError(Exception):
    """Base of every error that gplfast raises on purpose. The message names what is wrong and what to do."""


class ShapeError(GplfastError, ValueError):
    """Arrays whose shapes do not fit each other or the call."""


class DTypeError(GplfastError, TypeError):
    """An array of another type or memory order than documented; nothing is converted silently."""


class DataError(GplfastError, ValueError):
    """User data that cannot be read: the message names the file and the line."""


class ConfigError(GplfastError, ValueError):
    """A setting that is unknown, of the wrong type or out of range."""


class ArtifactError(GplfastError, ValueError):
    """A file in a work directory that is damaged or does not belong there."""


class ModelError(GplfastError, ValueError):
    """A checkpoint that cannot be used: files missing, unknown architecture, tokenizer that does not fit."""


class HubError(GplfastError, OSError):
    """A model hub that was named and cannot be reached."""


class UnavailableError(GplfastError, RuntimeError):
    """An instruction set, device or provider that this machine or build does not have."""


class ResourceError(GplfastError, MemoryError):
    """Work that does not fit into memory even in its smallest piece; the message names the piece."""


class LockedError(GplfastError, RuntimeError):
    """A work directory that another process is writing."""


class MissingExtraError(GplfastError, ImportError):
    """An optional dependency that is not installed; the message gives the pip command."""
