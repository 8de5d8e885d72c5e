"""Exported models, read without trust: the card describes the network, its SHA-256 vouches for the weights.

<folder>/
    card.json                 what it is, what it is worth, how it came about; see docs/export.md
    README.md                 the lines that load it
    at/, rift/                θ_AT and θ*: model.safetensors, and config.json where timm knows the network

Written by `rift.export.folder`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rift import foreign
from rift.checkpoint import load_tensors
from rift.errors import UserError
from rift.models import MODELS, build_model

CARD, PAGE, WEIGHTS, CONFIG = "card.json", "README.md", "model.safetensors", "config.json"
FORMAT = 1
NETWORKS = {"rift": "θ*", "at": "θ_AT"}
# Beyond these no network of ours goes, and some that is described would not fit into a memory.
_LARGEST = {"num_classes": 100_000, "in_channels": 16, "image_size": 2048, "width": 4096}


@dataclass(frozen=True)
class Network:
    """What rebuilds a network, as a card has it.

    Attributes:
        family: one of `rift.models.MODELS`.
        width: as for `build_model`.
        timm_name: likewise.
        num_classes: logits.
        in_channels: channels of the images.
        image_size: side of the square images in pixels.
        mean: one number per channel, for images in [0, 1].
        std: likewise.
    """

    family: str
    width: int | None
    timm_name: str | None
    num_classes: int
    in_channels: int
    image_size: int
    mean: list[float]
    std: list[float]

    def build(self) -> nn.Module:
        """The network with random weights, in train mode; leaves torch's generator as it was."""
        with torch.random.fork_rng(devices=[]):
            return build_model(
                self.family,
                num_classes=self.num_classes,
                in_channels=self.in_channels,
                image_size=self.image_size,
                mean=self.mean,
                std=self.std,
                width=self.width,
                timm_name=self.timm_name,
            )


def load_exported(where: str | Path, which: str = "rift", device: torch.device | str = "cpu") -> nn.Module:
    """A network that `python -m rift.export` has written. Nothing in the folder is executed or unpickled.

    Args:
        where: the folder, or its card.
        which: "rift" for θ*, "at" for θ_AT.
        device: where it should be.

    Returns:
        The network in eval mode: takes float images (N, C, H, W) in [0, 1] and gives logits (N, classes). The
        normalisation is inside, so it is what RobustBench's `benchmark` and AutoAttack expect.

    Raises:
        UserError: there is no such export, or its card or its weights are not what they should be.
    """
    path = Path(where).expanduser()
    card_path = path / CARD if path.is_dir() else path
    if which not in NETWORKS:
        raise UserError(f"There is no exported network '{which}': ask for 'rift' (θ*) or 'at' (θ_AT).")
    card = read_card(card_path)
    described, digest = network_of(card, card_path), _digest_of(card, which, card_path)
    weights = card_path.parent / which / WEIGHTS
    if foreign.sha256(_without_links(weights)) != digest:
        raise UserError(f"{weights} is not the file that {card_path} describes (SHA-256): fetch both again.")
    tensors = load_tensors(weights)[0]
    if described.family != "timm":  # some of timm's cannot be built without storage
        with torch.device("meta"):
            shapes = _built(described, card_path).state_dict()
        _check_fit(tensors, shapes, weights, card_path)
    network = _built(described, card_path)
    _check_fit(tensors, network.state_dict(), weights, card_path)
    network.load_state_dict(tensors)
    return network.eval().to(device)


def read_card(path: Path) -> dict[str, Any]:
    """The card of an export.

    Raises:
        UserError: it is missing or none.
    """
    card = foreign.read_object(_without_links(path))
    if card.get("format") != FORMAT or not isinstance(card.get("weights"), dict):
        raise UserError(f"{path} is no card of an exported model, or one of another version of rift.")
    return card


def _without_links(path: Path) -> Path:
    """Where a file is: downloads are often links into a cache."""
    return Path(os.path.realpath(path))


def network_of(card: Mapping[str, Any], path: Path) -> Network:
    """The network that a card describes, every value of a possible type and size.

    Raises:
        UserError: one is not.
    """
    found = card.get("network")
    if not isinstance(found, dict):
        raise _impossible(path, "network", found)
    for name in ("family", "timm_name"):
        if not isinstance(found.get(name), str) and (name == "family" or found.get(name) is not None):
            raise _impossible(path, name, found.get(name))
    if found["family"] not in MODELS:
        raise _impossible(path, "family", found["family"])
    for name, largest in _LARGEST.items():
        value = found.get(name)
        if (name == "width" and value is None) or (type(value) is int and 1 <= value <= largest):
            continue
        raise _impossible(path, name, value)
    for name in ("mean", "std"):
        value = found.get(name)
        if not isinstance(value, list) or not all(_is_number(one) for one in value):
            raise _impossible(path, name, value)
    return Network(**{name: found.get(name) for name in Network.__dataclass_fields__})


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**31 and math.isfinite(value)


def _impossible(path: Path, what: str, value: Any) -> UserError:
    return UserError(f"{path} describes a network that cannot be: its {what} is {str(value)[:100]!r}.")


def _digest_of(card: Mapping[str, Any], which: str, path: Path) -> str:
    entry = card["weights"].get(which)
    if entry is None:
        others = ", ".join(name for name in NETWORKS if name in card["weights"]) or "none"
        raise UserError(f"{path} has no network '{which}' ({NETWORKS[which]}); it has: {others}.")
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str):
        raise UserError(f"{path} does not say what the weights of '{which}' should be: fetch it again.")
    return entry["sha256"]


def _built(described: Network, card: Path) -> nn.Module:
    try:
        return described.build()
    except UserError as error:  # it names options, which a card does not have
        reason = str(error).rstrip(".")
        raise UserError(f"{card} describes a network that cannot be built ({reason}).") from error


def _check_fit(
    tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor], weights: Path, card: Path
) -> None:
    """Raises `UserError` unless names, shapes and types are those of the network that the card describes."""
    for name in sorted(tensors.keys() ^ expected.keys()):
        state = "has no" if name in expected else "has an unknown"
        raise UserError(f"{weights} {state} '{name}' for the network that {card} describes.")
    for name, tensor in expected.items():
        theirs = tensors[name]
        if (theirs.shape, theirs.dtype) != (tensor.shape, tensor.dtype):
            found, wanted = (f"{one.dtype} {tuple(one.shape)}" for one in (theirs, tensor))
            raise UserError(f"{weights} has '{name}' as {found}, not {wanted} as {card} describes it.")
