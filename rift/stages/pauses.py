"""Where a long measurement leaves how far it is, so that it can stop and go on within itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from rift import signals
from rift.checkpoint import from_bytes, to_bytes
from rift.runtime import Runtime, distributed
from rift.stages.folder import Folder

Point = tuple[Mapping[str, Tensor], Mapping[str, Any]]
"""What a resume point holds: tensors, and a note of what JSON can hold."""


class Pauses:
    """Saves once in `runtime.save_seconds`, and when the process is told to stop, which it then does.

    Of several processes none is at the same place within a measurement, so they save between measurements.

    Args:
        folder: gets the resume points.
        runtime: how often.
    """

    def __init__(self, folder: Folder, runtime: Runtime) -> None:
        self._folder, self._seconds = folder, runtime.save_seconds
        self._saved = time.monotonic()

    def reached(self, point: Callable[[], Point]) -> None:
        """A place to go on from has been reached; `point` is asked for it where it is saved.

        Raises:
            Stopped: somebody wants the process to stop; the point is saved.
        """
        if distributed.world_size() > 1 or not distributed.is_writer():
            return
        stop, now = signals.number(), time.monotonic()
        if stop or 0 < self._seconds <= now - self._saved:
            self._folder.save_resume_point(*point())
            self._saved = now
        if stop:
            self._folder.settle()
            signals.check()


def packed(value: Any) -> Tensor:
    """Numbers, texts and tensors, in lists, tuples and dictionaries, as one uint8 tensor on the CPU."""
    return torch.frombuffer(bytearray(to_bytes(value)), dtype=torch.uint8)


def unpacked(tensor: Tensor) -> Any:
    """What `packed` was given, its tensors on the tensor's device. Nothing of it can run."""
    return from_bytes(tensor.cpu().numpy().tobytes(), tensor.device)
