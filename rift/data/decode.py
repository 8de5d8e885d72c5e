"""Image files to one uint8 tensor, decoded by a pool of threads; a hostile file is one sentence."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from rift.data.files import open_regular
from rift.errors import UserError

# Raster formats whose decoders run inside this process. Left to itself Pillow also takes PostScript, whatever
# the file is called, and starts Ghostscript for it.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
MAX_PIXELS = 1 << 26  # of one file, and of what it is resized to: 8192 × 8192
MAX_BYTES = 5 * MAX_PIXELS  # of one file: more than so many pixels take without compression
_BITS_PER_SAMPLE = 258  # tag of a TIFF


def decode_image(path: Path, size: int | None) -> np.ndarray:
    """(H, W, 3) uint8 pixels of one file; grey, palette and transparent images become RGB.

    Args:
        path: a plain file, or a link to one, in one of `FORMATS`, whatever its name says.
        size: None, or the side in pixels of the result: the shorter side is resized to it (bilinear, with
            antialiasing), then the centre is cropped.

    Raises:
        UserError: no plain file, no image, damaged, of more than `MAX_PIXELS` by its header, which is looked
            at before a pixel is decoded, or with more than 8 bits for each channel: Pillow would keep eight
            of them and not say so.
    """
    with _quiet():
        return _decode(path, size)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings, which quote what is in the file.

    Filters are the process's and not a thread's, so this goes around all images and not around each.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _decode(path: Path, size: int | None) -> np.ndarray:
    with open_regular(path) as file:
        try:
            image = _rgb(path, file, size)
        except UserError:
            raise
        # Whatever Pillow's decoders raise for bytes that were made to confuse them; the list has no end.
        except Exception as error:
            raise UserError(
                f"{path} cannot be read as an image (of {', '.join(FORMATS)}): replace, convert or remove it."
            ) from error
    if size is not None:
        image = _resize_and_crop(image, size)
    return np.asarray(image)


def _rgb(path: Path, file: BinaryIO, size: int | None) -> Image.Image:
    bytes_in_file = os.fstat(file.fileno()).st_size
    if bytes_in_file > MAX_BYTES:
        raise UserError(
            f"{path} has {bytes_in_file / 1e6:.0f} MB, more than the {MAX_BYTES / 1e6:.0f} that an image may "
            "have: shrink or remove it."
        )
    try:
        opened = Image.open(file, formats=FORMATS)  # the header alone
    except Image.DecompressionBombError as error:
        raise UserError(f"{path} has {_too_many()}: shrink or remove it.") from error
    with opened:
        _check_pixels(path, opened.size, size)
        if depth := _depth(opened):
            raise UserError(f"{path} has more than 8 bits per channel ({depth}): convert it to 8 bits.")
        return ImageOps.exif_transpose(opened).convert("RGB")


def _too_many() -> str:
    return f"more than the {MAX_PIXELS / 1e6:.0f} million pixels that an image may have"


def _check_pixels(path: Path, sides: tuple[int, int], size: int | None) -> None:
    shorter, longer = sorted(sides)
    if shorter * longer > MAX_PIXELS:
        raise UserError(f"{path} is {sides[0]}×{sides[1]}, {_too_many()}: shrink or remove it.")
    if size is not None and size * max(size, longer * size // shorter) > MAX_PIXELS:
        raise UserError(
            f"{path}, {sides[0]}×{sides[1]}, would have {_too_many()} once its shorter side is {size}: "
            "crop or remove it, or set a smaller dataset.image_size."
        )


def _depth(image: Image.Image) -> str | None:
    """What Pillow calls pixels of more than 8 bits per channel; None if they have no more."""
    if image.mode.startswith(("I", "F")):
        return f"mode {image.mode}"
    raw = str([tile[3] for tile in image.tile])  # how the pixels lie in the file: 'RGB;16B', …
    if ";16" in raw and image.format != "BMP":  # 16 bits for a whole pixel there
        return "16-bit channels"
    if image.format == "PPM" and any(isinstance(n, int) and n > 255 for n in _numbers(image)):
        return "16-bit channels"
    bits = image.tag_v2.get(_BITS_PER_SAMPLE, ()) if image.format == "TIFF" else ()
    bits = bits if isinstance(bits, tuple) else (bits,)
    return f"{max(bits)}-bit channels" if bits and max(bits) > 8 else None


def _numbers(image: Image.Image) -> Sequence[object]:
    """The arguments of the decoder of a PPM; its last one is the largest value of a channel."""
    arguments = image.tile[0][3] if image.tile else ()
    return arguments if isinstance(arguments, tuple) else (arguments,)


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    shorter = min(width, height)
    if shorter != size:
        width, height = (max(size, round(side * size / shorter)) for side in (width, height))
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))


def decode_all(paths: Sequence[Path], size: int | None) -> Tensor:
    """(N, 3, H, W) uint8, in the order of `paths`; see `decode_image`.

    Raises:
        UserError: a file cannot be decoded, or its size differs from the first one's; or all of them are more
            than the machine has memory for.
    """
    first = decode_image(paths[0], size)
    images = _room_for(len(paths), first)

    def decode_into(position: int) -> None:
        pixels = _decode(paths[position], size)
        if pixels.shape != first.shape:
            raise UserError(
                f"{paths[position]} is {pixels.shape[1]}×{pixels.shape[0]} pixels but {paths[0]} is "
                f"{first.shape[1]}×{first.shape[0]}: set dataset.image_size to bring all to one size."
            )
        images[position] = pixels.transpose(2, 0, 1)

    pool = ThreadPoolExecutor(max_workers=os.cpu_count())  # Pillow lets go of the interpreter while decoding
    with _quiet():
        try:
            for _ in pool.map(decode_into, range(len(paths))):
                pass
        finally:
            pool.shutdown(cancel_futures=True)  # the first bad file stops the rest
    return torch.from_numpy(images)


def _room_for(count: int, first: np.ndarray) -> np.ndarray:
    """(count, 3, H, W) uint8, not filled."""
    height, width = first.shape[:2]
    needed = count * 3 * height * width
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else needed
    try:
        if needed > memory:  # granted all the same, and the process killed as it is filled
            raise MemoryError
        return np.empty((count, 3, height, width), dtype=np.uint8)
    except MemoryError as error:
        raise UserError(
            f"{count} images of {width}×{height} pixels take {needed / 1e9:.0f} GB, more memory than there "
            "is: set a smaller dataset.image_size."
        ) from error
