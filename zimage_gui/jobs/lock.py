"""Knows how to let one process at a time through, on every system. Knows nothing of what is being guarded.

The lock is SQLite's: the operating system takes it back the moment its holder dies, so there is no stale
lock to judge or to break, which a lock file with a process number would need.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path


class Busy(OSError):
    """Another process (or thread) holds the lock."""


@contextmanager
def exclusive(path: Path, wait: float = 0.0) -> Iterator[None]:
    """Hold the lock kept in the file `path` (made when missing), waiting at most `wait` seconds.

    Raises Busy when another holds it for longer, OSError when the file cannot be made or locked.
    """
    try:
        connection = sqlite3.connect(path, timeout=wait, isolation_level=None)
    except sqlite3.Error as error:
        raise OSError(f"cannot open the lock {path}: {error}") from error
    with closing(connection):
        try:
            connection.execute("BEGIN EXCLUSIVE")
        except sqlite3.OperationalError as error:
            if "locked" in str(error) or "busy" in str(error):
                raise Busy(str(path)) from error
            raise OSError(f"cannot take the lock {path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise OSError(f"{path} is not a lock of this program; delete it: {error}") from error
        yield
