"""Whether somebody holds a lock file, found out without writing."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path


def is_held(lock: Path) -> bool:
    """Whether a living process holds a `filelock.FileLock` on this file; also on a read-only disk.

    A lock ends with its process, however that ends. On a disk that machines share, locks of other machines
    are seen only if the file system shares them too.
    """
    try:
        number = os.open(lock, os.O_RDONLY | os.O_NONBLOCK)  # a pipe of that name must not stop us
    except OSError:
        return False
    try:
        fcntl.flock(number, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: needs no right to write
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    finally:
        os.close(number)
    return False
