"""Random numbers: known values, independence of how they are drawn, uniformity."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from rift.randomness import derive_seed, normal, permutation, uniform

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def splitmix_finaliser(x):
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def plain_uniform(seed, index, count):
    """The generator in Python's own unbounded integers: the image's hash starts a splitmix64 stream."""
    start = splitmix_finaliser((index * GOLDEN + seed) & MASK)
    bits = [splitmix_finaliser((start + position * GOLDEN) & MASK) for position in range(1, count + 1)]
    return [(value >> 40) / 2**24 for value in bits]


def plain_seed(text):
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


# If one of these changes, no earlier result can be reproduced any more.


def test_seed_has_its_known_values():
    assert derive_seed("start", 0, 3) == plain_seed("str:start\x1fint:0\x1fint:3")
    assert derive_seed("start", 0, 3) == 6_091_437_916_972_116_157
    assert derive_seed() == plain_seed("") == 8_203_414_616_412_130_826


def test_uniform_has_its_known_values():
    found = uniform(("crop", 0, 1), torch.tensor([0, 1, 49_999]), 2)
    known = [[6_687, 9_937_401], [5_328_213, 1_615_457], [5_266_179, 4_416_132]]
    assert (found.double() * 2**24).tolist() == known


def test_permutation_has_its_known_value():
    assert permutation(("order", 0, 1), 10).tolist() == [1, 9, 3, 6, 8, 2, 0, 4, 7, 5]


@pytest.mark.parametrize("index", [0, 1, 2**31, 2**62, 2**63 - 1])
@pytest.mark.parametrize("key", [("crop", 0, 0), ("flip", 12345, 109)])
def test_uniform_equals_splitmix64_in_python(key, index):
    found = uniform(key, torch.tensor([index]), 50)
    assert found.dtype == torch.float32
    assert found[0].double().tolist() == plain_uniform(derive_seed(*key), index, 50)


@pytest.mark.parametrize("draw", [uniform, normal])
def test_a_row_depends_on_key_and_index_alone(draw):
    indices = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    together = draw(("start", 1, 2), indices, 7)
    torch.rand(3)  # the global generator has no part in it
    one_by_one = torch.cat([draw(("start", 1, 2), index[None], 7) for index in indices])
    reordered = draw(("start", 1, 2), indices.flip(0), 7).flip(0)
    rounding = 0 if draw is uniform else 1e-6
    torch.testing.assert_close(together, one_by_one, rtol=0, atol=rounding)
    torch.testing.assert_close(together, reordered, rtol=0, atol=rounding)


def test_more_numbers_begin_with_the_same_ones():
    indices = torch.arange(20)
    assert torch.equal(uniform(("a",), indices, 5), uniform(("a",), indices, 9)[:, :5])


def test_global_generator_is_left_alone():
    before = torch.get_rng_state()
    uniform(("a",), torch.arange(9), 5), normal(("a",), torch.arange(9), 5), permutation(("a",), 9)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_device_changes_nothing():
    indices = torch.arange(1000)
    assert torch.equal(uniform(("a",), indices.cuda(), 30).cpu(), uniform(("a",), indices, 30))


def test_key_parts_are_told_apart_by_type_and_boundary():
    keys = [("a", 1), ("a", "1"), ("a1",), ("a", 1, ""), ("a", "1", ""), ("", "a", 1), (1, "a"), ("a", 11)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


def test_seeds_are_63_bit_and_do_not_collide():
    seeds = {
        derive_seed(name, seed, epoch)
        for name in ("crop", "flip", "order")
        for seed in range(20)
        for epoch in range(110)
    }
    assert len(seeds) == 3 * 20 * 110
    assert min(seeds) >= 0 and max(seeds) < 2**63


def test_neighbouring_keys_and_indices_share_no_numbers():
    # Were streams shifted copies of each other, the pairs (n-th, n+1-th number) would repeat between them.
    seen = []
    for key in (("start", 0, 0), ("start", 0, 1), ("start", 1, 0), ("crop", 0, 0)):
        numbers = (uniform(key, torch.arange(100), 51) * 2**24).to(torch.int64)
        seen.append(numbers[:, :-1] * 2**24 + numbers[:, 1:])
    pairs = torch.cat(seen).flatten()
    assert len(pairs.unique()) == len(pairs)


def chi_square(values, bins):
    counts = torch.histc(values.double(), bins=bins, min=0, max=1)
    expected = values.numel() / bins
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize("axis", ["positions of one image", "images at one position", "keys"])
def test_uniform_is_uniform(axis):
    if axis == "positions of one image":
        values = uniform(("a",), torch.tensor([17]), 100_000).flatten()
    elif axis == "images at one position":
        values = uniform(("a",), torch.arange(100_000), 1).flatten()
    else:
        values = torch.cat([uniform(("a", epoch), torch.arange(10), 10).flatten() for epoch in range(1000)])
    assert values.min() >= 0 and values.max() < 1
    # 99 degrees of freedom: mean 99, standard deviation 14.1; the draw is fixed, so this cannot flicker.
    assert chi_square(values, 100) < 99 + 4 * 14.1
    neighbours = torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1]
    assert abs(neighbours.item()) < 4 / math.sqrt(len(values))


def test_normal_has_the_moments_of_a_normal_distribution():
    values = normal(("a",), torch.arange(1000), 200).double().flatten()
    n = values.numel()
    assert torch.isfinite(values).all()
    # Standard errors of the first four moments of a standard normal sample: 1, √2, √15, √96 over √n.
    moments = [(values**power).mean().item() for power in (1, 2, 3, 4)]
    for found, right, spread in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(found - right) < 4 * math.sqrt(spread / n)


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_permutation_is_one(count):
    order = permutation(("order", 0), count)
    assert order.dtype == torch.int64
    assert order.sort().values.tolist() == list(range(count))


def test_permutations_differ_between_epochs():
    orders = {tuple(permutation(("order", 0, epoch), 50).tolist()) for epoch in range(50)}
    assert len(orders) == 50
