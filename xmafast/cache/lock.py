"""One writer for each cache, by a lock that ends with the process that holds it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from xmafast.errors import CacheError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold ``PATH.lock`` while writing ``path``. The operating system lets go of it when the process ends, however it ends.

    Raises CacheError where another process holds it.
    """
    if fcntl is None:
        yield
        return
    file = _take(path)
    try:
        yield
    finally:
        path.with_name(path.name + ".lock").unlink(missing_ok=True)  # still held, so that nobody else's is taken away
        os.close(file)


def _take(path: Path) -> int:
    name = path.with_name(path.name + ".lock")
    while True:
        file = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = os.pread(file, 20, 0).decode("ascii", "ignore").strip()
            os.close(file)
            who = f"process {holder}" if holder else "another process"
            raise CacheError(f"{path} is being written by {who}; wait for it to end, or stop it, and repeat the command.") from error
        try:
            same = os.fstat(file).st_ino == name.stat().st_ino
        except FileNotFoundError:
            same = False
        if same:
            os.ftruncate(file, 0)
            os.pwrite(file, str(os.getpid()).encode(), 0)
            return file
        os.close(file)  # its holder ended, and took the name away, between our opening it and locking it
