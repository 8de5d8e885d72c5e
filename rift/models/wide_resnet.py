"""The wide residual network of the adversarial training literature (pre-activation, ReLU; WRN-34-10).

Module names follow the widespread implementation, since they are the names in the paper and in published
checkpoints. Left out is that implementation's `sub_block1`, a copy of the first stage that is never called.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from rift.errors import UserError

T = TypeVar("T", bound=nn.Module)


class PreActivationBlock(nn.Module):
    """BN–ReLU–conv twice. Where the shape changes, the shortcut is a 1×1 convolution of the activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.convShortcut = None
        if in_channels != out_channels or stride != 1:
            self.convShortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.bn1(x), inplace=True)
        shortcut = x if self.convShortcut is None else self.convShortcut(active)
        out = functional.relu(self.bn2(self.conv1(active)), inplace=True)
        return shortcut + self.conv2(out)


class Stage(nn.Module):
    """Blocks in a row; the first one changes the width and the resolution."""

    def __init__(self, blocks: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        rest = [PreActivationBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(PreActivationBlock(in_channels, out_channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """Three stages of (depth − 4) / 6 blocks with width · (16, 32, 64) channels."""

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        assert depth % 6 == 4, "three stages of equal length, two convolutions a block, four layers beside"
        blocks = (depth - 4) // 6
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.block1 = Stage(blocks, 16, 16 * width, stride=1)
        self.block2 = Stage(blocks, 16 * width, 32 * width, stride=2)
        self.block3 = Stage(blocks, 32 * width, 64 * width, stride=2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        x = functional.relu(self.bn1(x), inplace=True)
        # The original pools over 8×8, which is everything for 32×32 images; this also fits other sizes.
        return self.fc(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def wide_resnet(*, depth: int, width: int, num_classes: int, in_channels: int) -> WideResNet:
    """WRN-depth-width, initialised as in the AT literature (paper, Sec. 5.1: WRN-34-10).

    Args:
        depth: layers, 6n + 4.
        width: widening factor, 10 for WRN-34-10.
        num_classes: logits.
        in_channels: channels of the images.

    Returns:
        A network that takes normalised images (N, C, H, W) of any size, and gives logits (N, num_classes).
        Its initial weights come from torch's global generator, in the order of the modules.

    Raises:
        UserError: `width` is not positive.
    """
    return drawn(WideResNet, depth, width, num_classes, in_channels)


def drawn(
    network: Callable[[int, int, int, int], T],
    depth: int,
    width: int,
    num_classes: int,
    in_channels: int,
) -> T:
    """A wide ResNet of either form with its first weights, see `wide_resnet`."""
    if width < 1:
        raise UserError(f"A wide ResNet cannot have widening factor {width}: set model.width to 1 or more.")
    with torch.device("meta"):  # without storage, since weights are drawn once, and by one rule
        model = network(depth, width, num_classes, in_channels)
    model.to_empty(device=torch.get_default_device())  # the CPU, or "meta" for who asks for the shapes alone
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
            nn.init.normal_(module.weight, std=math.sqrt(2.0 / fan_out))
        elif isinstance(module, (nn.BatchNorm2d, nn.Linear)):
            module.reset_parameters()  # BatchNorm: weight 1, bias 0
            nn.init.zeros_(module.bias)
    return model
