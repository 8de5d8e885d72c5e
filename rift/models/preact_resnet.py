"""The pre-activation ResNet for small images of the adversarial training literature (PreActResNet18).

Module names are those of published checkpoints: `layer2.0.shortcut.0`, `bn`, `linear`. timm's ResNetV2 has
such blocks too, but its BatchNorm and activation are one layer, which cannot be folded while crafting.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from rift.errors import UserError


class PreActivationBlock(nn.Module):
    """BN–ReLU–conv twice. Where the shape changes, the shortcut is a 1×1 convolution of the activation."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if in_channels != out_channels or stride != 1:
            convolution = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.shortcut = nn.Sequential(convolution)

    def forward(self, x: Tensor) -> Tensor:
        active = functional.relu(self.bn1(x), inplace=True)
        shortcut = x if self.shortcut is None else self.shortcut(active)
        out = functional.relu(self.bn2(self.conv1(active)), inplace=True)
        return shortcut + self.conv2(out)


class PreActResNet(nn.Module):
    """Four stages with width · (1, 2, 4, 8) channels, and a BatchNorm before the pooling."""

    def __init__(self, layers: tuple[int, ...], width: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        channels = width
        for stage, blocks in enumerate(layers):
            wider = width * 2**stage
            first = PreActivationBlock(channels, wider, stride=1 if stage == 0 else 2)
            rest = [PreActivationBlock(wider, wider, stride=1) for _ in range(blocks - 1)]
            self.add_module(f"layer{stage + 1}", nn.Sequential(first, *rest))
            channels = wider
        self.bn = nn.BatchNorm2d(channels)
        self.linear = nn.Linear(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        x = functional.relu(self.bn(x), inplace=True)
        # The published network pools over 4×4, which is everything for 32×32 images; this fits other sizes.
        return self.linear(functional.adaptive_avg_pool2d(x, 1).flatten(1))


def preact_resnet(*, layers: tuple[int, ...], width: int, num_classes: int, in_channels: int) -> PreActResNet:
    """A pre-activation ResNet with a 3×3 stem of stride 1 and PyTorch's initial weights, as published.

    Args:
        layers: blocks in each of the four stages, (2, 2, 2, 2) for PreActResNet18.
        width: channels of the stem and of the first stage.
        num_classes: logits.
        in_channels: channels of the images.

    Returns:
        A network that takes normalised images (N, C, H, W) of any size, and gives logits (N, num_classes).
        Its initial weights come from torch's global generator, in the order of the modules.

    Raises:
        UserError: `width` is not positive.
    """
    if width < 1:
        raise UserError(f"A ResNet cannot have width {width}: set model.width to 1 or more.")
    return PreActResNet(layers, width, num_classes, in_channels)
