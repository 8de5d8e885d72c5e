"""Where a stage leaves what it finds: a result folder on disk, or the memory of whoever called it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
from torch import Tensor


class Folder(Protocol):
    """What a stage asks of its result folder; `rift.store.StageFolder` is the one on disk."""

    def add_row(self, row: Mapping[str, Any]) -> None: ...

    def rows(self) -> list[dict[str, Any]]: ...

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None: ...

    def load(self, name: str, device: torch.device | str = "cpu") -> dict[str, Tensor]: ...

    def save_resume_point(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None: ...

    def load_resume_point(
        self, device: torch.device | str = "cpu"
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None: ...

    def settle(self) -> None: ...


class MemoryFolder:
    """A result that is kept in memory and never goes on after an interruption."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._tensors: dict[str, dict[str, Tensor]] = {}

    def add_row(self, row: Mapping[str, Any]) -> None:
        """Appends one line to the metrics."""
        self._rows.append(dict(row))

    def rows(self) -> list[dict[str, Any]]:
        """The metrics so far."""
        return list(self._rows)

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keeps a copy of tensors under a name."""
        self._tensors[name] = {key: value.detach().clone() for key, value in tensors.items()}

    def load(self, name: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """What is kept under a name."""
        return {key: value.to(device) for key, value in self._tensors[name].items()}

    def save_resume_point(self, tensors: Mapping[str, Tensor], note: Mapping[str, Any]) -> None:
        """Nothing: the process is all there is."""

    def load_resume_point(
        self, device: torch.device | str = "cpu"
    ) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """None: there is nothing to go on from."""
        return None

    def settle(self) -> None:
        """Nothing is on its way."""
