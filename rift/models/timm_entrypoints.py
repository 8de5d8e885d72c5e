"""Our ResNets under timm's registry; import this module, and `timm.create_model("rift_resnet18", …)` works.

timm's own ResNets have a stem for large images, which no argument replaces. As timm has it, these take
normalised images; mean and std are in the checkpoint's `pretrained_cfg`.
"""

from __future__ import annotations

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import ResNet

from rift.models.registry import MODELS
from rift.models.resnet import resnet

FAMILIES = ("resnet18", "resnet34", "resnet_small")
HEAD = {"first_conv": "conv1", "classifier": "fc", "interpolation": "bilinear", "crop_pct": 1.0}

default_cfgs = generate_default_cfgs(
    {
        f"rift_{family}": {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "mean": (0.0,) * 3,
            "std": (1.0,) * 3,
        }
        | HEAD
        for family in FAMILIES
    }
)


def _create(family: str, pretrained: bool, **options: Any) -> ResNet:
    own = MODELS[family].keywords

    def build(*, num_classes: int, in_chans: int, width: int = own["width"]) -> ResNet:
        return resnet(layers=own["layers"], width=width, num_classes=num_classes, in_channels=in_chans)

    return build_model_with_cfg(
        build, f"rift_{family}", pretrained, kwargs_filter=("global_pool",), **options
    )


@register_model
def rift_resnet18(pretrained: bool = False, **options: Any) -> ResNet:
    """ResNet18 with a 3×3 stem and without max-pool; `width` is the channels of its first stage."""
    return _create("resnet18", pretrained, **options)


@register_model
def rift_resnet34(pretrained: bool = False, **options: Any) -> ResNet:
    """ResNet34 with a 3×3 stem and without max-pool; `width` is the channels of its first stage."""
    return _create("resnet34", pretrained, **options)


@register_model
def rift_resnet_small(pretrained: bool = False, **options: Any) -> ResNet:
    """One block in each of the four stages, otherwise as `rift_resnet18`."""
    return _create("resnet_small", pretrained, **options)
