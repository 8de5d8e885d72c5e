"""An exported network as timm has it: its name and arguments there, and `config.json` beside its weights."""

from __future__ import annotations

from typing import Any

import timm
import torch

from rift.export.card import Network
from rift.models.timm_entrypoints import FAMILIES, HEAD


def timm_arguments(network: Network) -> tuple[str, dict[str, Any]] | None:
    """Name and arguments (beside classes and channels) by which timm makes a network; None if it cannot."""
    if network.family in FAMILIES:
        return f"rift_{network.family}", {} if network.width is None else {"width": network.width}
    if network.family != "timm" or network.timm_name is None:
        return None
    architecture = network.timm_name.split(".", 1)[0]
    takes = _takes_img_size(architecture, network.image_size)
    return architecture, {"img_size": network.image_size} if takes else {}


def _takes_img_size(architecture: str, image_size: int) -> bool:
    """Only their signature tells which networks of timm are built for one image size."""
    try:
        with torch.device("meta"):
            timm.create_model(architecture, img_size=image_size)
    except Exception:  # what an architecture says to it can be anything
        return False
    return True


def timm_config(network: Network, architecture: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What timm reads beside a `model.safetensors` (`local-dir:`, `hf-hub:`); see `timm_arguments`."""
    size = [network.in_channels, network.image_size, network.image_size]
    theirs = {}
    if network.family == "timm":
        found = timm.get_pretrained_cfg(architecture)
        kept = ("first_conv", "classifier", "pool_size", "fixed_input_size")
        theirs = {} if found is None else {name: getattr(found, name) for name in kept}
    own = {name: value for name, value in (HEAD | theirs).items() if value is not None}
    own |= {"num_classes": network.num_classes, "input_size": size, "mean": network.mean, "std": network.std}
    return {
        "architecture": architecture,
        "num_classes": network.num_classes,
        "model_args": {"in_chans": network.in_channels, **arguments},
        "pretrained_cfg": own,
    }
