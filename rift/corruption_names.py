"""The corruptions by name, and the sets of them that papers average over."""

from __future__ import annotations

# Hendrycks and Dietterich 2019; the order of the paper's tables.
STANDARD = (
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "defocus_blur",
    "glass_blur",
    "motion_blur",
    "zoom_blur",
    "snow",
    "frost",
    "fog",
    "brightness",
    "contrast",
    "elastic_transform",
    "pixelate",
    "jpeg_compression",
)
EXTRA = ("speckle_noise", "gaussian_blur", "spatter", "saturate")
ALL = STANDARD + EXTRA
# Without random numbers: always the same images.
DETERMINISTIC = (
    "brightness",
    "contrast",
    "defocus_blur",
    "gaussian_blur",
    "jpeg_compression",
    "pixelate",
    "saturate",
    "zoom_blur",
)
SEVERITIES = (1, 2, 3, 4, 5)
# The sets that papers average over: RiFT's text says 15, its published code takes all but glass_blur.
SELECTIONS = {
    "paper15": STANDARD,
    "official18": tuple(name for name in ALL if name != "glass_blur"),
    "all19": ALL,
}
