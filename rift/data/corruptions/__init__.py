"""Corrupted images, 19 kinds at five severities, as Hendrycks and Dietterich (ICLR 2019) define them.

Whole batches at once, on the images' device. Every random number is a hash of corruption, severity and the
image's index, and all arithmetic rounds the same whatever the batch (see `arithmetic`): on a CPU an image's
corrupted version is the same bits in any batch, in any order.

The eight corruptions without random numbers repeat the published CIFAR-10-C byte for byte. The other eleven
follow the published definitions with random numbers of our own, and frost has textures of our own (see
`frost`): generated sets are of the published kind, and numbers of the two are not to be compared.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from rift.corruption_names import ALL, SEVERITIES
from rift.data.corruptions import blur, digital, frost, jpeg, noise, spatter, weather
from rift.data.corruptions.arithmetic import Draws
from rift.data.corruptions.constants import arguments_of, constants_for
from rift.errors import UserError, choose_from

__all__ = ["constants_for", "corrupt"]

_FUNCTIONS: dict[str, Callable[..., Tensor]] = {
    "gaussian_noise": noise.gaussian_noise,
    "shot_noise": noise.shot_noise,
    "impulse_noise": noise.impulse_noise,
    "defocus_blur": blur.defocus_blur,
    "glass_blur": blur.glass_blur,
    "motion_blur": blur.motion_blur,
    "zoom_blur": blur.zoom_blur,
    "snow": weather.snow,
    "frost": frost.frost,
    "fog": weather.fog,
    "brightness": digital.brightness,
    "contrast": digital.contrast,
    "elastic_transform": digital.elastic_transform,
    "pixelate": digital.pixelate,
    "jpeg_compression": jpeg.jpeg_compression,
    "speckle_noise": noise.speckle_noise,
    "gaussian_blur": blur.gaussian_blur,
    "spatter": spatter.spatter,
    "saturate": digital.saturate,
}
# Values worked on at once: few enough to stay in a CPU's cache, several times faster; a GPU wants many.
_CPU_PORTION, _GPU_PORTION = 200_000, 50_000_000


@torch.no_grad()
def corrupt(images: Tensor, indices: Tensor, corruption: str, severity: int) -> Tensor:
    """The corrupted version of each image.

    Constants are the CIFAR script's for images whose shorter side is below 48 pixels and the Tiny-ImageNet
    script's from 48 on. Images of one channel are grey: what is defined for colours takes them as red =
    green = blue, and of the result, or of the colour that is added, the luma (ITU-R BT.601).

    Args:
        images: (B, C, H, W) uint8 with 1 or 3 channels, square or not.
        indices: (B,) int64, the images' positions in their split; they decide the random numbers.
        corruption: one of `rift.corruption_names.ALL`.
        severity: 1 to 5.

    Returns:
        uint8 like `images`, on their device.

    Raises:
        UserError: unknown corruption or severity, or a number of channels that is neither 1 nor 3.
    """
    if corruption not in _FUNCTIONS:
        raise UserError(f"unknown corruption '{corruption}': {choose_from(corruption, ALL)}.")
    if severity not in SEVERITIES:
        raise UserError(f"corruption severity {severity} is unknown: use a whole number from 1 to 5.")
    if images.shape[1] not in (1, 3):
        raise UserError(
            f"images of {images.shape[1]} channels cannot be corrupted: only grey and RGB ones can."
        )
    arguments = arguments_of(corruption, severity, min(images.shape[2:]))
    indices = indices.to(images.device)
    values = _CPU_PORTION if images.device.type == "cpu" else _GPU_PORTION
    portion = max(values // max(images[:1].numel(), 1), 1)
    result = torch.empty_like(images, memory_format=torch.contiguous_format)
    for start in range(0, len(images), portion):
        part = slice(start, start + portion)
        draws = Draws(corruption, severity, indices[part])
        result[part] = _FUNCTIONS[corruption](images[part].contiguous(), draws, *arguments)
    return result
