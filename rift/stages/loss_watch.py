"""Training that has left the numbers: noticed at the step, before anything of it is saved."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from rift.errors import UserError

FARTHEST = 64  # steps that a GPU may be ahead before it is waited for


class LossWatch:
    """Sees the loss of every step and raises when one is no finite number.

    On a GPU nothing waits: a step's verdict is read when it has arrived, some steps later, and all of them
    before anything is saved.

    Args:
        stage: whose learning rate the sentence names.
    """

    def __init__(self, stage: str) -> None:
        self._stage = stage
        self._waiting: deque[tuple[Tensor, torch.cuda.Event | None, int, int]] = deque()

    def see(self, loss: Tensor, epoch: int, batch: int) -> None:
        """Takes a step's loss, a scalar.

        Args:
            loss: on any device.
            epoch, batch: counted from 1.

        Raises:
            UserError: this loss, or one before it, is not finite.
        """
        loss, arrived = loss.detach(), None
        if loss.is_cuda:
            host = torch.empty((), dtype=loss.dtype, pin_memory=True)
            loss = host.copy_(loss, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        self._waiting.append((loss, arrived, epoch, batch))
        while self._waiting and self._is_there(*self._waiting[0][:2]):
            self._judge(*self._waiting.popleft())

    def settle(self) -> None:
        """Judges every loss that was seen."""
        while self._waiting:
            loss, arrived, epoch, batch = self._waiting.popleft()
            if arrived is not None:
                arrived.synchronize()
            self._judge(loss, arrived, epoch, batch)

    def _is_there(self, loss: Tensor, arrived: torch.cuda.Event | None) -> bool:
        if arrived is None or arrived.query():
            return True
        if len(self._waiting) < FARTHEST:
            return False
        arrived.synchronize()
        return True

    def _judge(self, loss: Tensor, arrived: torch.cuda.Event | None, epoch: int, batch: int) -> None:
        if not torch.isfinite(loss):
            raise UserError(
                f"Training diverged in epoch {epoch}, batch {batch} (loss {loss.item()}): lower "
                f"stage.{self._stage}.lr; what was saved before is good."
            )


def check_finite(state: dict[str, Tensor], stage: str, epoch: int) -> None:
    """Raises `UserError` if weights or statistics hold something that is no finite number."""
    for name, value in state.items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise UserError(
                f"Training diverged in epoch {epoch}: {name} is not finite: lower stage.{stage}.lr; what was "
                "saved before is good."
            )
