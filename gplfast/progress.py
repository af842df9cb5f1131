"""Progress on stderr, with rate and time left."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from types import TracebackType


class Bars:
    """A bar for each thing that goes on; call it with (what, done, all)."""

    def __init__(self, *, quiet: bool = False) -> None:
        """With `quiet` nothing is shown."""
        self._quiet = quiet
        self._bar: Any = None
        self._what = ""

    def __enter__(self) -> Self:
        """Nothing is shown before the first call."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the bar that is shown."""
        self._close()

    def __call__(self, what: str, done: int, total: int) -> None:
        """Show how much is done."""
        from tqdm import tqdm

        if self._bar is None or what != self._what:
            self._close()
            # Not a terminal: a line now and then instead of a moving bar.
            slow = 0.1 if sys.stderr.isatty() else 15.0
            self._bar = tqdm(
                total=total, initial=done, desc=what, disable=self._quiet, file=sys.stderr, mininterval=slow
            )
            self._what = what
        self._bar.total = total
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        self._bar, self._what = None, ""
