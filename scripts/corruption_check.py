"""Checks the generator of corrupted images on the real CIFAR-10 test images, and draws all it makes.

    python scripts/corruption_check.py --data FOLDER [--images N] [--sheet docs/corruptions.png]

For the eight corruptions without random numbers: whether all five severities are the published CIFAR-10-C
file byte for byte (its md5), and how far they are from the plain per-image ones under tests/. For the other
eleven: mean and spread of the change of N images, beside the plain ones', and how many standard errors lie
between them. For all: seconds per 1000 images, and how many times faster than the plain ones that is.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from rift.corruption_names import ALL, DETERMINISTIC, SEVERITIES
from rift.data import load_dataset
from rift.data.cifar_c_sums import MD5
from rift.data.corruptions import corrupt

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from corruption_twins import twin  # noqa: E402

SHOWN = (82,)  # test images on the sheet
ZOOM = 3


class Digest:
    """A file that only sums up what is written to it."""

    def __init__(self) -> None:
        self.sum = hashlib.md5(usedforsecurity=False)

    def write(self, data: bytes) -> int:
        self.sum.update(data)
        return len(data)


def published_sum(name: str, images: Tensor) -> str:
    """md5 of the .npy file of all severities one after the other, (5·N, 32, 32, 3)."""
    digest = Digest()
    shape = (len(SEVERITIES) * len(images), 32, 32, 3)
    np.lib.format.write_array_header_1_0(digest, {"descr": "|u1", "fortran_order": False, "shape": shape})
    for severity in SEVERITIES:
        result = corrupt(images, torch.arange(len(images)), name, severity)
        digest.write(result.permute(0, 2, 3, 1).contiguous().numpy().tobytes())
    return digest.sum.hexdigest()


def plain(name: str, images: Tensor, severity: int) -> Tensor:
    """The corruption image after image, like `corrupt` with random numbers of its own."""
    rng = np.random.default_rng(severity)
    results = [twin(name, image, severity, rng) for image in images.permute(0, 2, 3, 1).numpy()]
    return torch.from_numpy(np.stack(results)).permute(0, 3, 1, 2)


def change(corrupted: Tensor, images: Tensor) -> Tensor:
    """Mean and standard deviation of the change of each image in grey levels, (2, N)."""
    difference = (corrupted.double() - images.double()).flatten(1)
    return torch.stack([difference.mean(1), difference.std(1)])


def compare(name: str, images: Tensor) -> None:
    """Prints the corruption beside the plain one at each severity, and their times."""
    fast = slow = 0.0
    for severity in SEVERITIES:
        start = time.perf_counter()
        ours = corrupt(images, torch.arange(len(images)), name, severity)
        middle = time.perf_counter()
        theirs = plain(name, images, severity)
        fast, slow = fast + middle - start, slow + time.perf_counter() - middle
        if name in DETERMINISTIC:
            difference = (ours.int() - theirs.int()).abs()
            share = (difference > 0).double().mean().item()
            print(f"  {severity}: largest difference {difference.max()}, in {share:.3%} of the values")
            continue
        a, b = change(ours, images), change(theirs, images)
        error = ((a - b).std(1) / len(images) ** 0.5).clamp_min(1e-9)
        z = ((a - b).mean(1) / error).tolist()
        (mean_a, std_a), (mean_b, std_b) = a.mean(1).tolist(), b.mean(1).tolist()
        print(
            f"  {severity}: mean {mean_a:7.2f} plain {mean_b:7.2f} (z {z[0]:+.1f})"
            f"   std {std_a:6.2f} plain {std_b:6.2f} (z {z[1]:+.1f})"
        )
    per_thousand = 1000 / len(images) / len(SEVERITIES)
    fast, slow = fast * per_thousand, slow * per_thousand
    print(f"  1000 images: {fast:.3f} s, plain {slow:.2f} s, {slow / fast:.1f} times as long")


def sheet(images: Tensor, path: Path) -> None:
    """A row for each corruption: the shown images, each untouched and at the five severities."""
    indices = torch.tensor(SHOWN)
    picked, rows = images[indices], []
    for name in ALL:
        versions = [picked, *(corrupt(picked, indices, name, severity) for severity in SEVERITIES)]
        rows.append(torch.cat([version[i] for i in range(len(SHOWN)) for version in versions], 2))
    tiles = Image.fromarray(torch.cat(rows, 1).permute(1, 2, 0).contiguous().numpy())
    tiles = tiles.resize((tiles.width * ZOOM, tiles.height * ZOOM), Image.Resampling.NEAREST)
    margin, height = 120, 32 * ZOOM
    canvas = Image.new("RGB", (tiles.width + margin, tiles.height), "white")
    canvas.paste(tiles, (margin, 0))
    draw = ImageDraw.Draw(canvas)
    for row, name in enumerate(ALL):
        draw.text((4, row * height + height // 2 - 6), name, fill="black")
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, optimize=True)
    print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True, help="folder that holds cifar-10-batches-py")
    parser.add_argument("--images", type=int, default=200, help="images beside the plain ones (default 200)")
    parser.add_argument("--only", nargs="+", choices=ALL, default=ALL, help="corruptions (default all)")
    parser.add_argument("--sheet", type=Path, help="where to draw all corruptions, a PNG file")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default 1)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = load_dataset("cifar10", root=options.data, mean=(0.5,) * 3, std=(0.25,) * 3).test.images
    if options.sheet:
        sheet(images, options.sheet)
    for name in options.only:
        print(name)
        if name in DETERMINISTIC:
            same = published_sum(name, images) == MD5["CIFAR-10-C"][name]
            print(f"  the published file: {'equal' if same else 'different'}")
        compare(name, images[: options.images])


if __name__ == "__main__":
    main()
