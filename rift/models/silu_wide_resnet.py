"""The wide residual network with SiLU of Gowal et al. (2020), the form of most of the strongest weights.

Besides the activation, its padding differs from the other WRN's: where the resolution is halved, the images
get their zeros on the right and at the bottom only. Module names are those of the published checkpoints, so
that weights of one form never pass for weights of the other.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from rift.models.wide_resnet import drawn


class SiluBlock(nn.Module):
    """BN–SiLU–conv twice. Where the width changes, the shortcut is a 1×1 convolution of the activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.halves = stride == 2
        padding = 0 if self.halves else 1
        self.batchnorm_0 = nn.BatchNorm2d(in_channels)
        self.conv_0 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=padding, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(out_channels)
        self.conv_1 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = functional.silu(self.batchnorm_0(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        padded = functional.pad(active, (0, 1, 0, 1)) if self.halves else active
        return shortcut + self.conv_1(functional.silu(self.batchnorm_1(self.conv_0(padded))))


class SiluStage(nn.Module):
    """Blocks in a row; the first one changes the width and the resolution."""

    def __init__(self, blocks: int, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        rest = [SiluBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)]
        self.block = nn.Sequential(SiluBlock(in_channels, out_channels, stride), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class SiluWideResNet(nn.Module):
    """Three stages of (depth − 4) / 6 blocks with width · (16, 32, 64) channels."""

    def __init__(self, depth: int, width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        assert depth % 6 == 4, "three stages of equal length, two convolutions a block, four layers beside"
        blocks = (depth - 4) // 6
        self.num_classes = num_classes
        self.init_conv = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.layer = nn.Sequential(
            SiluStage(blocks, 16, 16 * width, stride=1),
            SiluStage(blocks, 16 * width, 32 * width, stride=2),
            SiluStage(blocks, 32 * width, 64 * width, stride=2),
        )
        self.batchnorm = nn.BatchNorm2d(64 * width)
        self.logits = nn.Linear(64 * width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.silu(self.batchnorm(self.layer(self.init_conv(x))))
        return self.logits(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def silu_wide_resnet(*, depth: int, width: int, num_classes: int, in_channels: int) -> SiluWideResNet:
    """WRN-depth-width with SiLU; initial weights are drawn as those of the other WRN.

    Args:
        depth: layers, 6n + 4.
        width: widening factor, 16 for WRN-70-16.
        num_classes: logits.
        in_channels: channels of the images.

    Returns:
        A network that takes normalised images (N, C, H, W) of any size, and gives logits (N, num_classes).
        Its initial weights come from torch's global generator, in the order of the modules.

    Raises:
        UserError: `width` is not positive.
    """
    return drawn(SiluWideResNet, depth, width, num_classes, in_channels)
