"""From a file that somebody saved to plain names and tensors. Nothing in the file is executed."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from rift.errors import UserError, shown
from rift.models.checkpoint_archive import Archive
from rift.models.checkpoint_pickle import Claim, Forbidden, Malformed, Other
from rift.places import checkpoint_size, unreadable

# Where training scripts put the weights in what they save.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# Where some put the weights of two epochs; beside one of the above, `best` is something else.
_EPOCHS = ("best", "last")
_MAX_DEPTH = 16  # wrappers around one another
_MAX_NAME = 300  # characters of a tensor's name
_MAX_HEADER = 16 << 20  # bytes of a safetensors header; that of 1000 tensors takes 100 KiB


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Reads a `.safetensors` file, or anything else as one of torch.save.

    The time and the memory that this takes are bounded by the file's size, whatever the file claims.

    Returns:
        The tensors by the names in the file, on the CPU, and one sentence for each thing left aside. The
        names have no characters that a terminal would obey.

    Raises:
        UserError: no such file, not a checkpoint, damaged, or it needs code that we will not run.
    """
    size = checkpoint_size(path)
    notes: list[str] = []
    if path.suffix == ".safetensors":
        with _one_sentence(path):
            tensors = _read_safetensors(path, size)
        _check_names(tensors, path)
    else:
        with path.open("rb") as file:
            with _one_sentence(path):
                archive = Archive(file, size)
            content, notes = _unwrap(archive.structure, path)
            _check_names(content, path)
            with _one_sentence(path):
                tensors = {
                    name: archive.tensor(value)
                    for name, value in content.items()
                    if isinstance(name, str) and isinstance(value, Claim)
                }
        others = [_shown(name) for name in content if name not in tensors]
        if others:
            notes.append(f"Left aside what is not a plain tensor: {_listing(others)}.")
    if not tensors:
        raise UserError(
            f"The file {path} holds no named weights: set model.checkpoint to a state dict, plain or under "
            f"one of {', '.join(_WRAPPERS)}."
        )
    return tensors, notes


@contextmanager
def _one_sentence(path: Path) -> Iterator[None]:
    """Whatever the readers of a file raise becomes a `UserError`."""
    try:
        yield
    except Forbidden as error:
        raise UserError(
            f"The checkpoint {path} holds the Python object '{_shown(str(error))}', which is never loaded "
            "since that could run code: save its state dict alone, torch.save(model.state_dict(), …)."
        ) from error
    except Malformed as error:
        raise UserError(unreadable(path, f"it {error}")) from error
    # A damaged file, or one of another kind, can bring down a reader with any exception.
    except Exception as error:
        raise UserError(unreadable(path, type(error).__name__)) from error


def _read_safetensors(path: Path, size: int) -> dict[str, Tensor]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
    if length > min(size, _MAX_HEADER):
        raise Malformed(f"claims a header of {length} bytes in a file of {size}")
    return load_file(path, device="cpu")


def _check_names(content: Mapping[Any, Any], path: Path) -> None:
    """For tensors alone: what else lies beside them is left aside, whatever it is called."""
    for name, value in content.items():
        what = value.tensor if isinstance(value, Other) else ""
        if what:
            raise UserError(
                f"The checkpoint {path} holds '{_shown(name)}' as a tensor that is {what}: give the original "
                "weights, each with all its values."
            )
        if isinstance(value, Claim | Tensor) and isinstance(name, str) and not _is_plain(name):
            raise UserError(
                f"The checkpoint {path} has a tensor called '{_shown(name)}', which is no name of a "
                "module's: give one that torch.save or safetensors wrote from a state dict."
            )


def _is_plain(name: str) -> bool:
    return name.isprintable() and len(name) <= _MAX_NAME


def _shown(name: Any) -> str:
    return "a key of another kind" if isinstance(name, Other) else shown(str(name)[: _MAX_NAME // 3])


def _unwrap(content: Any, path: Path) -> tuple[Mapping[Any, Any], list[str]]:
    """Follows the usual keys to where the tensors are."""
    notes = []
    while isinstance(content, dict):
        inside = _filled(content, _WRAPPERS) or _filled(content, _EPOCHS)
        if not inside:
            return content, notes
        if len(inside) > 1:
            raise UserError(
                f"The checkpoint {path} has networks under {' and '.join(map(repr, inside))}: save the one "
                "you want alone."
            )
        if len(notes) == _MAX_DEPTH:  # it may hold itself
            raise UserError(unreadable(path, f"its weights are wrapped more than {_MAX_DEPTH} times"))
        beside = [_shown(key) for key in content if key != inside[0]]
        note = f"Took the weights under '{inside[0]}'"
        notes.append(f"{note} and left aside {_listing(beside)}." if beside else f"{note}.")
        content = content[inside[0]]
    return {}, notes


def _filled(content: Mapping[Any, Any], keys: tuple[str, ...]) -> list[str]:
    return [key for key in keys if isinstance(content.get(key), dict) and content[key]]


def _listing(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
