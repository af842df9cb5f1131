"""A filter of one's own, as docs/filters.md has it; a row of the menu."""

from __future__ import annotations

from typing import Any


def keep(scores: Any, positive_scores: Any, ranks: Any) -> Any:
    """Not the best three, and below the lowest positive."""
    return (ranks >= 3) & (scores < positive_scores.min())
