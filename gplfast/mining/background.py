"""Work beside the main thread, which can wait for it or end it."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

    Report = Callable[[str, int, int], None]

Outcome = TypeVar("Outcome")


class Cancelled(Exception):
    """The work is not wanted any more."""


class Job(Generic[Outcome]):
    """One call in a thread of its own, begun at once."""

    def __init__(self, work: Callable[[Report], Outcome]) -> None:
        """Begin.

        Args:
            work: Called with a report, which it calls often: there it is ended.
        """
        self._work = work
        self._outcome: list[Outcome] = []
        self._error: BaseException | None = None
        self._cancelled = threading.Event()
        # A daemon, so that it never keeps a process alive whose main thread is gone.
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def wait(self) -> Outcome:
        """The outcome.

        Raises:
            BaseException: What the work raised.
        """
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._outcome[0]

    def check(self) -> None:
        """Nothing, while the work goes on or when it is done.

        Raises:
            BaseException: What the work raised, where that ended it.
        """
        if not self._thread.is_alive() and self._error is not None:
            raise self._error

    def cancel(self) -> None:
        """End the work at its next report, and wait until it is ended."""
        self._cancelled.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._outcome.append(self._work(self._report))
        except BaseException as error:  # noqa: BLE001 - raised again by `wait`
            self._error = error

    def _report(self, _what: str, _done: int, _total: int) -> None:
        if self._cancelled.is_set():
            raise Cancelled
