"""The files of a SQLite database, looked at from outside: whether it is worth asking SQLite.

Asking SQLite what others have changed takes a thread of its own and wakes two, twice a second. A
look at what the file system says of the files takes neither, and a few microseconds.
"""

from __future__ import annotations

import os
from typing import Final

__all__ = ["SqliteFile"]

SETTLES: Final = 3.0
"""Seconds after the last change of the files in which SQLite is asked all the same.

A writer writes to the write-ahead log first, then waits for the disk, and only then is the change
there for others: who asked in between has to ask again.
"""

AT_LATEST: Final = 5.0
"""Seconds after which SQLite is asked although the files look as they did.

Nothing is known that would need it; it bounds how late a change is seen, should there be something.
"""

_Stamp = tuple[tuple[int, ...], ...]


class SqliteFile:
    """The files of a database that others write to, in write-ahead mode.

    Not for a network's file system, on which write-ahead mode does not work either: a look at it
    could take longer than a caller has.

    Args:
        path: of the database.
    """

    def __init__(self, path: str) -> None:
        self._paths = (path, f"{path}-wal")
        self._stamp: _Stamp | None = None
        self._settled_at = 0.0
        self._due_at = 0.0

    def may_have_changed(self, now: float) -> bool:
        """Tell whether SQLite is to be asked; the caller does ask it then.

        Args:
            now: seconds, of a clock that never goes back.
        """
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp, self._settled_at = stamp, now + SETTLES
        elif self._settled_at <= now < self._due_at:
            return False
        self._due_at = now + AT_LATEST
        return True

    def _look(self) -> _Stamp:
        """Return what differs after a change: also of a file that is gone, or another one."""
        found: list[tuple[int, ...]] = []
        for path in self._paths:
            try:
                status = os.stat(path)
            except OSError as error:
                found.append((error.errno or 0,))
            else:
                found.append((status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))
        return tuple(found)
