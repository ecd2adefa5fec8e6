"""What can go wrong, as one small tree.

    XmafastError            exit code 1
    ├── UsageError          exit code 2: a name or an option that does not exist, or does not go with another
    ├── BackboneError       a backbone that cannot be built or whose weights cannot be loaded
    ├── CacheError          a cache that is missing, unreadable or does not fit
    ├── DataError           a data set's files are missing or malformed
    ├── DecodeError         one video cannot be decoded; a cache records it as a row and goes on
    └── RunError            a run folder that is missing or unreadable, or a training that cannot go on

A message names the file, the row or the option, says what was expected, and ends with the next thing to try.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class XmafastError(Exception):
    """The root of every error that xmafast raises on purpose."""

    exit_code = 1


class UsageError(XmafastError):
    exit_code = 2


class BackboneError(XmafastError):
    pass


class CacheError(XmafastError):
    pass


class DataError(XmafastError):
    pass


class DecodeError(XmafastError):
    pass


class RunError(XmafastError):
    pass


def unknown(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in ``known``, with the nearest one as a suggestion."""
    known = sorted(known)
    by_lower = {k.lower(): k for k in known}
    near = difflib.get_close_matches(name.lower(), by_lower, 1, 0.5)
    hint = f" Did you mean {by_lower[near[0]]!r}?" if near else ""
    return UsageError(f"Unknown {kind} {name!r}.{hint} Known: {', '.join(known)}.")
