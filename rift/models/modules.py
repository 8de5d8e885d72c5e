"""What the paper calls a module."""

from __future__ import annotations

from torch import nn


def scannable_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Every convolution and linear layer, by its exact name and in the order of registration.

    These are the modules that the paper scans (Sec. 3.2) and fine-tunes: "layer2.1.conv2", "fc", and the
    shortcut convolutions ("layer2.0.downsample.0").
    """
    return {name: m for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
