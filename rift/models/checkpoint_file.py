"""From a file that somebody saved to plain names and tensors. Nothing in the file is executed."""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rift.errors import UserError

# Where training scripts put the weights in what they save.
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# Where some put the weights of two epochs; beside one of the above, `best` is something else.
_EPOCHS = ("best", "last")


def read_state_dict(path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """Reads a `.safetensors` file, or anything else with torch's restricted unpickler.

    Returns:
        The tensors by the names in the file, on the CPU, and one sentence for each thing left aside.

    Raises:
        UserError: no such file, not a checkpoint, damaged, or it needs code that we will not run.
    """
    if not path.is_file():
        found = "a folder" if path.is_dir() else "no file"
        raise UserError(f"There is {found} at {path}: set model.checkpoint to the file with the weights.")
    content, notes = _unwrap(_load(path), path)
    tensors = {name: value.detach() for name, value in content.items() if _is_plain_entry(name, value)}
    if not tensors:
        raise UserError(
            f"The file {path} holds no named weights: set model.checkpoint to a state dict, plain or under "
            f"one of {', '.join(_WRAPPERS)}."
        )
    others = [str(name) for name in content if name not in tensors]
    if others:
        notes.append(f"Left aside what is not a plain tensor: {_listing(others)}.")
    return tensors, notes


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path, device="cpu")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file that is no checkpoint also has odd pickle protocols
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # torch's message is a page of advice to trust the file; what matters is the name in it.
        forbidden = re.search(r"GLOBAL (\S+)", str(error))
        if forbidden:
            raise UserError(
                f"The checkpoint {path} holds the Python object '{forbidden[1]}', which is never loaded "
                "since that could run code: save its state dict alone, torch.save(model.state_dict(), …)."
            ) from error
        raise _unreadable(path, error) from error
    # A damaged file, or one of another kind, can bring down the reader with any exception.
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(
        f"The checkpoint {path} cannot be read ({type(error).__name__}), so it is damaged or of another "
        "kind: fetch it again, or give a .safetensors file or one written by torch.save."
    )


def _unwrap(content: Any, path: Path) -> tuple[Mapping[Any, Any], list[str]]:
    """Follows the usual keys, however deep, to where the tensors are."""
    notes = []
    while isinstance(content, Mapping):
        inside = _filled(content, _WRAPPERS) or _filled(content, _EPOCHS)
        if not inside:
            return content, notes
        if len(inside) > 1:
            raise UserError(
                f"The checkpoint {path} has networks under {' and '.join(map(repr, inside))}: save the one "
                "you want alone."
            )
        beside = [str(key) for key in content if key != inside[0]]
        note = f"Took the weights under '{inside[0]}'"
        notes.append(f"{note} and left aside {_listing(beside)}." if beside else f"{note}.")
        content = content[inside[0]]
    return {}, notes


def _filled(content: Mapping[Any, Any], keys: tuple[str, ...]) -> list[str]:
    return [key for key in keys if isinstance(content.get(key), Mapping) and content[key]]


def _is_plain_entry(name: Any, value: Any) -> bool:
    if not (isinstance(name, str) and isinstance(value, Tensor)):
        return False
    return value.layout == torch.strided and not value.is_quantized and not value.is_meta


def _listing(names: list[str]) -> str:
    shown = ", ".join(f"'{name}'" for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"
