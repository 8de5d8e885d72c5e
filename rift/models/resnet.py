"""ResNets for small images, as the adversarial training literature uses them."""

from __future__ import annotations

import torch
from timm.models.resnet import BasicBlock, ResNet
from torch import nn

from rift.errors import UserError


def resnet(*, layers: tuple[int, ...], width: int, num_classes: int, in_channels: int) -> ResNet:
    """timm's ResNet of basic blocks with a 3×3 stem of stride 1 and no max-pool (paper, Sec. 5.1).

    Args:
        layers: blocks in each of the four stages, (2, 2, 2, 2) for ResNet18.
        width: channels of the stem and of the first stage; the stages have width · (1, 2, 4, 8). Even.
        num_classes: logits.
        in_channels: channels of the images.

    Returns:
        A network that takes normalised images (N, C, H, W) of any size, and gives logits (N, num_classes).
        Its initial weights come from torch's global generator, in the order of the modules.

    Raises:
        UserError: `width` is odd or not positive.
    """
    if width < 2 or width % 2:
        raise UserError(f"A ResNet cannot have width {width}: set model.width to an even number, 2 or more.")
    # Built without storage, so that initial weights are drawn once, below, and by one rule.
    with torch.device("meta"):
        model = ResNet(
            BasicBlock,
            layers,
            num_classes=num_classes,
            in_chans=in_channels,
            channels=(width, 2 * width, 4 * width, 8 * width),
            # timm's plain stem always has 64 channels. The deep stem follows `stem_width`, so the blocks
            # are built for a stem of `width` channels; the stem itself is replaced by ours.
            stem_type="deep",
            stem_width=width // 2,
            zero_init_last=False,
        )
        model.conv1 = nn.Conv2d(in_channels, width, kernel_size=3, padding=1, bias=False)
        model.maxpool = nn.Identity()
    model.to_empty(device=torch.get_default_device())  # the CPU, or "meta" for who asks for the shapes alone
    # PyTorch's defaults, like the published AT networks: no zero-initialised residual scale, and no
    # fan-out scaling, both of which timm would choose. The order of drawing is also the published one.
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.BatchNorm2d, nn.Linear)):
            module.reset_parameters()
    return model
