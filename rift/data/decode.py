"""Image files to one uint8 tensor, decoded by a pool of threads and kept as one safetensors file."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from PIL import Image, ImageOps, UnidentifiedImageError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from rift.errors import UserError

log = logging.getLogger(__name__)

_FORMAT = 1  # raise it when decoding changes, so that older caches are not used
_DEEP_MODES = ("I", "F")  # 16-bit, 32-bit and float pixels: PIL would clip them to 255 without a word


def decode_image(path: Path, size: int | None) -> np.ndarray:
    """(H, W, 3) uint8 pixels of one file; grey, palette and transparent images become RGB.

    Args:
        path: any file that Pillow reads.
        size: None, or the side in pixels of the result: the shorter side is resized to it (bilinear, with
            antialiasing), then the centre is cropped.

    Raises:
        UserError: not an image, damaged, or with more than 8 bits for each channel.
    """
    try:
        with Image.open(path) as opened:
            if opened.mode.startswith(_DEEP_MODES):
                raise UserError(
                    f"{path} has more than 8 bits per channel (mode {opened.mode}): convert it to 8 bits."
                )
            image = ImageOps.exif_transpose(opened).convert("RGB")
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"{path} cannot be read as an image: replace or remove it.") from error
    if size is not None:
        image = _resize_and_crop(image, size)
    return np.asarray(image)


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
        UserError: a file cannot be decoded, or its size differs from the first one's.
    """
    first = decode_image(paths[0], size)
    images = np.empty((len(paths), 3, *first.shape[:2]), dtype=np.uint8)

    def decode_into(position: int) -> None:
        pixels = decode_image(paths[position], size)
        if pixels.shape != first.shape:
            raise UserError(
                f"{paths[position]} is {pixels.shape[1]}×{pixels.shape[0]} pixels but {paths[0]} is "
                f"{first.shape[1]}×{first.shape[0]}: set dataset.image_size to bring all to one size."
            )
        images[position] = pixels.transpose(2, 0, 1)

    pool = ThreadPoolExecutor(max_workers=os.cpu_count())  # Pillow lets go of the interpreter while decoding
    try:
        for _ in pool.map(decode_into, range(len(paths))):
            pass
    finally:
        pool.shutdown(cancel_futures=True)  # the first bad file stops the rest
    return torch.from_numpy(images)


def decode_cached(
    name: str, root: Path, parts: dict[str, Sequence[Path]], *, size: int | None, cache: Path
) -> dict[str, Tensor]:
    """Images of several lists of files under `root`, from the cache if the files have not changed since.

    The cache is keyed by every file's relative path, size and modification time, and by `size`. A cache that
    cannot be written is a warning: the images are decoded all the same.
    """
    path = cache / f"{name}-{_fingerprint(root, parts, size)}.safetensors"
    kept = _load(path)
    if kept is not None:
        return kept
    with alone(path):
        kept = _load(path)
        if kept is None:
            log.info("decoding %d images of %s once, into %s", sum(map(len, parts.values())), name, path)
            kept = {part: decode_all(paths, size) for part, paths in parts.items()}
            _save(kept, path)
        return kept


@contextmanager
def alone(path: Path) -> Iterator[None]:
    """Jobs that start together fill a cache file once: the others wait here, and then find it."""
    with ExitStack() as stack:
        # Where no lock can be written no cache can be either; who writes it says so.
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            stack.enter_context(FileLock(path.with_suffix(".lock")))
        yield


def _fingerprint(root: Path, parts: dict[str, Sequence[Path]], size: int | None) -> str:
    digest = hashlib.sha256(json.dumps([_FORMAT, size]).encode())
    for part, paths in parts.items():
        for path in paths:
            stat = path.stat()
            line = [part, path.relative_to(root).as_posix(), stat.st_size, stat.st_mtime_ns]
            digest.update(json.dumps(line).encode())
    return digest.hexdigest()[:16]


def _load(path: Path) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        log.warning("the decoded images in %s are damaged (%s) and are made again", path, error)
        return None


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    """Written beside and renamed: a reader finds a whole file or none. A failure is only a warning."""
    beside = path.with_suffix(f".{os.getpid()}.part")
    try:
        save_file(tensors, beside)
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(path)
    except (SafetensorError, OSError) as error:
        log.warning(
            "decoded images cannot be kept in %s (%s), so each run decodes them again", path.parent, error
        )
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
