"""Locks that end with their process: holding one, whether somebody does (without writing), and who."""

from __future__ import annotations

import fcntl
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout


@contextmanager
def held(path: Path, waiting: Callable[[], None], patience: float = 0) -> Iterator[None]:
    """Holds a lock file, and waits for it if another process does.

    Args:
        path: of the lock; the file stays.
        waiting: called once where the lock is not free within the patience, before the wait.
        patience: seconds.
    """
    lock = FileLock(path)
    try:
        lock.acquire(timeout=patience)
    except Timeout:
        waiting()
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


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


def holder_named(pid: int | None, host: str | None, since: str | None) -> str:
    """Who holds a lock, for those who wait; what is not known is None.

    Args:
        pid: of the process.
        host: where it runs.
        since: ISO time.
    """
    if pid is None or host is None:
        return "another process"
    named = f"process {pid} on {host}" + (f" since {since}" if since else "")
    if host == platform.node() and _is_suspended(pid):
        return f"{named}, which is suspended (`kill -CONT {pid}` lets it go on)"
    return named


def _is_suspended(pid: int) -> bool:
    """Whether a process of this machine was stopped by SIGSTOP or Ctrl-Z; where that cannot be seen, no."""
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return status.rpartition(")")[2].split()[:1] == ["T"]
