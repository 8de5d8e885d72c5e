"""Random numbers that depend on *what* they are for, never on when they are drawn.

Each number is a hash of (key, image index, position). So the random start of image 17 in epoch 3 is
the same whatever the batch size, the order of the batches, the device, the number of processes, or
which other images are skipped; and a run that was killed needs no generator state to go on exactly.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

# Multipliers of the splitmix64 finaliser, as signed 64-bit integers (torch has no unsigned arithmetic).
_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def derive_seed(*key: int | str) -> int:
    """A seed in [0, 2**63) from any tuple of numbers and names; different tuples give unrelated seeds."""
    text = "\x1f".join(f"{type(part).__name__}:{part}" for part in key)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift; torch's `>>` copies the sign bit."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift_right(x, 30)) * _MIX_1
    x = (x ^ _shift_right(x, 27)) * _MIX_2
    return x ^ _shift_right(x, 31)


def uniform(key: tuple[int | str, ...], indices: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), one row for each image.

    Args:
        key: what the numbers are for, e.g. `("crop", seed, epoch)`.
        indices: (B,) int64, the images' positions in their split.
        count: how many numbers each image needs.

    Returns:
        (B, count) float32 on the device of `indices`; row i depends on `key` and `indices[i]` alone.
    """
    # The image's own stream starts at a hash, so that streams of neighbouring images never overlap.
    start = _mix(indices * _GOLDEN + derive_seed(*key))
    position = torch.arange(1, count + 1, device=indices.device, dtype=torch.int64)
    bits = _mix(start[:, None] + position * _GOLDEN)
    return _shift_right(bits, 40).to(torch.float32) * 2.0**-24  # 24 bits: exact in float32, never 1.0


def normal(key: tuple[int | str, ...], indices: Tensor, count: int) -> Tensor:
    """Standard normal numbers, (B, count) float32; see `uniform`. (Box–Muller.)

    Logarithm and cosine may round their last bit differently by device and by batch; `uniform` never does.
    """
    u = uniform(key, indices, 2 * count)
    radius = torch.sqrt(-2.0 * torch.log1p(-u[:, :count]))
    return radius * torch.cos(2.0 * math.pi * u[:, count:])


def permutation(key: tuple[int | str, ...], count: int) -> Tensor:
    """A random order of `range(count)`, (count,) int64 on the CPU; the same on every machine."""
    generator = torch.Generator().manual_seed(derive_seed(*key))
    return torch.randperm(count, generator=generator)
