"""The GPUs of this machine, and who has which: one lock per place on a GPU, which ends with its process."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from rift.errors import UserError

VARIABLE = "CUDA_VISIBLE_DEVICES"


def devices_here() -> list[str]:
    """The GPUs that a process here would use, as CUDA_VISIBLE_DEVICES writes them; asks no CUDA library."""
    if (visible := os.environ.get(VARIABLE)) is not None:
        return [name.strip() for name in visible.split(",") if name.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    asked = subprocess.run(
        ["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return asked.stdout.split() if asked.returncode == 0 else []


def lock_folder() -> Path:
    """Where this user's locks are on this machine; made if need be.

    Raises:
        UserError: somebody else's folder has that name.
    """
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if Path(runtime).is_dir() and os.access(runtime, os.W_OK) and runtime:
        folder = Path(runtime) / "rift-gpus"
    else:
        folder = Path(tempfile.gettempdir()) / f"rift-gpus-{os.geteuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.geteuid():
        raise UserError(f"{folder} is for the locks on GPUs and not yours: have it removed, or set TMPDIR.")
    return folder


@contextmanager
def claimed(
    devices: Sequence[str], per_device: int, folder: Path, waiting: Callable[[], None], interval: float = 1.0
) -> Iterator[str]:
    """Holds a place on a GPU, and waits for one where all are taken; a killed process gives its place back.

    Args:
        devices: which there are, as CUDA_VISIBLE_DEVICES writes them.
        per_device: how many places each has.
        folder: of the locks.
        waiting: called before each wait.
        interval: seconds between two attempts.

    Yields:
        The GPU.
    """
    # A second job comes to a GPU only when each has one.
    places = [
        (device, FileLock(folder / f"{re.sub(r'[^A-Za-z0-9-]', '_', device)}.{place}.lock"))
        for place in range(per_device)
        for device in devices
    ]
    while (found := _free(places)) is None:
        waiting()
        time.sleep(interval)
    device, lock = found
    try:
        yield device
    finally:
        lock.release()


def _free(places: Sequence[tuple[str, FileLock]]) -> tuple[str, FileLock] | None:
    for device, lock in places:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        return device, lock
    return None
