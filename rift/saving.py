"""Files written in the background: training goes on while they are serialised and synced."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rift.checkpoint import save_tensors


class BackgroundSaver:
    """Writes one file of tensors at a time in a thread, from copies that are taken at the call.

    Args:
        write: (path, tensors, note): writes the file.

    A file is there as a whole or not at all, whenever the process ends (see `rift.checkpoint`); a kill while
    one is being written leaves the one before. The thread is joined before the next file, at `wait`, and at
    the end of the process.
    """

    def __init__(self, write: Callable[[Path, Mapping[str, Tensor], Any], None] = save_tensors) -> None:
        self._write_file = write
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._pinned: dict[str, Tensor] = {}

    def save(self, path: Path, tensors: Mapping[str, Tensor], note: Any = None) -> None:
        """As `rift.checkpoint.save_tensors`; an error of the last file is raised here.

        The tensors may change as soon as this returns, and a GPU is not waited for.
        """
        self.wait()
        copies, ready = self._copied(tensors)
        self._thread = threading.Thread(target=self._write, args=(path, copies, note, ready))
        self._thread.start()

    def wait(self) -> None:
        """Until the last file is written; raises what went wrong with it."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def _copied(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], torch.cuda.Event | None]:
        """Copies on the host, and what says when those from a GPU have arrived."""
        copies, ready = {}, None
        for name, tensor in tensors.items():
            if tensor.is_cuda:
                copies[name] = self._page_locked(name, tensor).copy_(tensor.detach(), non_blocking=True)
            else:
                copies[name] = tensor.detach().clone()
        if any(tensor.is_cuda for tensor in tensors.values()):
            ready = torch.cuda.Event()
            ready.record()
        return copies, ready

    def _page_locked(self, name: str, tensor: Tensor) -> Tensor:
        """Host memory that a GPU writes to by itself, made once for each tensor."""
        held = self._pinned.get(name)
        if held is None or (held.shape, held.dtype) != (tensor.shape, tensor.dtype):
            held = self._pinned[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return held

    def _write(
        self, path: Path, copies: Mapping[str, Tensor], note: Any, ready: torch.cuda.Event | None
    ) -> None:
        try:
            if ready is not None:
                ready.synchronize()
            self._write_file(path, copies, note)
        except BaseException as error:  # raised where somebody can hear it
            self._error = error
