"""SIGTERM and Ctrl-C: a training ends with its current step, and says how to go on."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from xmafast.errors import RunError


class Interrupted(RunError):
    """A training that was asked to stop and has saved. Its exit code is the shell's for the signal: 143 for SIGTERM, 130 for SIGINT."""

    def __init__(self, message: str, number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + number


class Stop(BaseException):
    """A signal has come, and everything is saved. Like KeyboardInterrupt it is no error, and nothing on the way catches it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopSignals:
    """Within it the first signal is only taken note of (``received``), and a second one ends the program at once.

    echo: for so many seconds after the first another one is taken for the same one: a launcher passes on what its processes got as well.
    Python delivers signals to the main thread; in another one it does nothing.
    """

    def __init__(self, echo: float = 0.0) -> None:
        self.received: int | None = None
        self._echo, self._when = echo, 0.0
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if time.monotonic() - self._when < self._echo:
                return
            raise KeyboardInterrupt
        self.received, self._when = number, time.monotonic()
        if self._at_once:
            raise Stop(number)

    def check(self) -> None:
        """Raise Stop where a signal has come."""
        if self.received is not None:
            raise Stop(self.received)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Within it a signal raises Stop where it arrives: for work that can be done again."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False
