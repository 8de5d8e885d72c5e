"""The networks by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from rift import plugins
from rift.errors import UserError, choose_from
from rift.models.normalisation import normalise_first
from rift.models.preact_resnet import preact_resnet
from rift.models.resnet import resnet
from rift.models.silu_wide_resnet import silu_wide_resnet
from rift.models.timm_models import timm_model
from rift.models.wide_resnet import wide_resnet

# Builders of the bare backbones. The keyword arguments each one takes are the options it knows.
MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(resnet, layers=(2, 2, 2, 2), width=64),
    "resnet34": partial(resnet, layers=(3, 4, 6, 3), width=64),
    "resnet_small": partial(resnet, layers=(1, 1, 1, 1), width=16),
    "preact_resnet18": partial(preact_resnet, layers=(2, 2, 2, 2), width=64),
    "wrn28_10": partial(wide_resnet, depth=28, width=10),
    "wrn34_10": partial(wide_resnet, depth=34, width=10),
    "wrn70_16": partial(wide_resnet, depth=70, width=16),
    "wrn_silu_28_10": partial(silu_wide_resnet, depth=28, width=10),
    "wrn_silu_34_10": partial(silu_wide_resnet, depth=34, width=10),
    "wrn_silu_70_16": partial(silu_wide_resnet, depth=70, width=16),
    "timm": timm_model,
}

# What a builder of another package is given besides its own options.
_GIVEN = ("num_classes", "in_channels", "image_size", "width", "timm_name", "pretrained")


def network_name(family: str, *, timm_name: str | None, width: int | None, pretrained: bool) -> str:
    """What results call a network; two networks that differ never share a name.

    Args:
        family: one of `MODELS`; `resnet18`, `resnet34` and `wrn34_10` alone are the paper's.
        timm_name, width, pretrained: as for `build_model`.

    Returns:
        `resnet18`, `resnet18_w16`, `wrn34_5`, `timm_resnet18_pretrained`, …
    """
    if family == "timm":
        return f"timm_{timm_name}" + ("_pretrained" if pretrained else "")
    own = own_width(family)
    if width in (None, own):
        return family
    return f"{family.removesuffix(str(own))}{width}" if family.startswith("wrn") else f"{family}_w{width}"


def own_width(family: str) -> int | None:
    """The width that a family of networks has if none is given; None where there is no such option."""
    return getattr(MODELS.get(family), "keywords", {}).get("width")


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int = 3,
    image_size: int = 32,
    mean: Sequence[float],
    std: Sequence[float],
    width: int | None = None,
    timm_name: str | None = None,
    pretrained: bool = False,
    plugin_options: Mapping[str, Any] | None = None,
) -> nn.Module:
    """Builds a network on the CPU, in train mode, whose first layer normalises.

    Args:
        name: one of `MODELS`.
        num_classes: logits, 2 or more.
        in_channels: channels of the images.
        image_size: side of the square images in pixels.
        mean: the data set's mean for each channel, for images in [0, 1].
        std: likewise, positive.
        width: channels of the first stage of a ResNet, the widening factor of a wide ResNet; None means the
            network's own (64, 16 for `resnet_small`, 10 for `wrn34_10`, 16 for `wrn70_16`).
        timm_name: the network if `name` is "timm".
        pretrained: start from timm's published weights; only if `name` is "timm".
        plugin_options: of another package's network, its own keyword arguments.

    Returns:
        A network that takes float images (N, C, H, W) in [0, 1] and gives logits (N, num_classes). The names
        of its modules, parameters and buffers are those of the backbone. Its initial weights are drawn from
        torch's global generator alone.

    Raises:
        UserError: unknown name, or an option that the network does not have or cannot fulfil.
    """
    builder = MODELS.get(name)
    if name in plugins.installed("model"):
        chosen = plugins.with_options("model", name, plugin_options or {}, _GIVEN)
        builder = partial(plugins.load("model", name), **chosen)
    if builder is None:
        if timm.is_model(name):
            raise UserError(
                f"Unknown model '{name}': it is one of timm's, so give model=timm model.name={name}."
            )
        known = [*MODELS, *plugins.installed("model")]
        raise UserError(f"Unknown model '{name}': {choose_from(name, known)}.")
    if num_classes < 2:
        raise UserError(f"A classifier needs two classes or more, not {num_classes}: check the data set.")
    options = {"image_size": image_size, "width": width, "timm_name": timm_name, "pretrained": pretrained}
    backbone = builder(
        num_classes=num_classes, in_channels=in_channels, **_options_of(name, builder, options)
    )
    network = normalise_first(backbone, mean, std, in_channels)
    if name in plugins.installed("model"):
        _try(name, network, (2, in_channels, image_size, image_size), num_classes)
    return network


@torch.no_grad()
def _try(name: str, network: nn.Module, shape: tuple[int, ...], num_classes: int) -> None:
    """Raises `UserError` if somebody's network gives no logits for our images; leaves its mode as it is."""
    mode = network.training
    try:
        logits = network.eval()(torch.zeros(shape))
    except Exception as error:  # it fails in any way it likes
        raise UserError(f"model={name} does not take images of {shape[1:]} ({error}).") from error
    network.train(mode)
    if not isinstance(logits, torch.Tensor) or logits.shape != (shape[0], num_classes):
        found = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
        raise UserError(
            f"model={name} gives {found} for {shape[0]} images of {num_classes} classes: mend it."
        )


def _options_of(name: str, builder: Callable[..., nn.Module], options: dict[str, Any]) -> dict[str, Any]:
    known = inspect.signature(builder).parameters
    typed = {"width": "model.width", "timm_name": "model.name", "pretrained": "model.pretrained"}
    for option, as_typed in typed.items():
        given = options[option] is not None and options[option] is not False
        if given and option not in known:
            raise UserError(f"model={name} has no option {as_typed}: leave it out.")
    return {option: value for option, value in options.items() if option in known and value is not None}
