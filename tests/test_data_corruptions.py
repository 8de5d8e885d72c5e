"""Generated corruptions: against plain per-image ones, the published files' sums, and known answers."""

from __future__ import annotations

import hashlib
import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from corruption_twins import distance_to, edges, equalised, twin
from PIL import Image

from rift.corruption_names import ALL, DETERMINISTIC, SEVERITIES
from rift.data import load_dataset
from rift.data.cifar_c_sums import MD5
from rift.data.corruptions import blur, constants_for, corrupt, filters, spatter
from rift.data.corruptions.arithmetic import Draws, normal_quantile, to_unit
from rift.data.corruptions.constants import TABLES, arguments_of
from rift.data.corruptions.noise import poisson
from rift.errors import UserError

DATA = Path(os.environ.get("RIFT_TEST_DATA", "/nonexistent"))
RANDOM = tuple(name for name in ALL if name not in DETERMINISTIC)


def synthetic(count, size, channels=3, width=None, seed=0):
    """Images with smooth areas, edges, black and white, like photographs: uint8 (N, C, H, W)."""
    rng = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        coarse = rng.uniform(-0.3, 1.3, size=(channels, 4, 4))
        rows = np.linspace(0, 3.99, size).astype(int)
        columns = np.linspace(0, 3.99, width or size).astype(int)
        x = coarse[:, rows][:, :, columns] * 0.5 + np.clip(np.linspace(0, 1, width or size), 0, 1) * 0.5
        images.append((np.clip(x + rng.normal(scale=0.03, size=x.shape), 0, 1) * 255).astype(np.uint8))
    return torch.from_numpy(np.stack(images))


def real_images():
    if not (DATA / "cifar-10-batches-py").is_dir():
        return None
    return load_dataset("cifar10", root=str(DATA), mean=(0.5,) * 3, std=(0.25,) * 3).test.images


@pytest.fixture(scope="module")
def photographs():
    images = real_images()
    return synthetic(200, 32) if images is None else images[:200]


def by_twin(name, images, severity, seed=0):
    rng = np.random.default_rng(seed)
    return torch.stack(
        [
            torch.from_numpy(np.ascontiguousarray(twin(name, image, severity, rng))).permute(2, 0, 1)
            for image in images.permute(0, 2, 3, 1).numpy()
        ]
    )


def change(corrupted, images):
    """Mean and standard deviation of each image's change, in grey levels, (2, N)."""
    difference = (corrupted.double() - images.double()).flatten(1)
    return torch.stack([difference.mean(1), difference.std(1)])


@pytest.mark.parametrize("name", ALL)
def test_any_size_and_number_of_channels_comes_back_as_it_was(name):
    for height, width, channels in ((8, 8, 1), (8, 8, 3), (32, 32, 1), (24, 40, 3), (64, 64, 3), (56, 48, 1)):
        images = synthetic(3, height, channels, width)
        for severity in SEVERITIES if height != 64 else (1, 4, 5):
            result = corrupt(images, torch.arange(3), name, severity)
            assert result.shape == images.shape and result.dtype == torch.uint8
            assert result.is_contiguous()
    for size in (1, 2, 3, 5):
        assert corrupt(synthetic(2, size), torch.arange(2), name, 5).shape == (2, 3, size, size)
    assert corrupt(images[:0], torch.arange(0), name, 1).shape == images[:0].shape


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize(("size", "severities"), [(32, SEVERITIES), (64, (2, 4, 5))])
def test_an_image_is_the_same_bits_in_any_batch_and_order(name, size, severities):
    images, indices = synthetic(150, size)[: 150 if size == 32 else 40], torch.arange(1000, 1150)
    count = len(images)
    indices = indices[:count]
    order = torch.randperm(count, generator=torch.Generator().manual_seed(3))
    for severity in severities:
        whole = corrupt(images, indices, name, severity)
        shuffled = corrupt(images[order], indices[order], name, severity)
        assert torch.equal(shuffled, whole[order])
        for batch in (1, 7, 64):
            upto = min(count, 3 * batch)
            parts = [
                corrupt(images[i : i + batch], indices[i : i + batch], name, severity)
                for i in range(0, upto, batch)
            ]
            assert torch.equal(torch.cat(parts), whole[: sum(len(part) for part in parts)])


@pytest.mark.parametrize("name", RANDOM)
def test_random_numbers_differ_by_image_and_severity_alone(name):
    images = synthetic(1, 32).expand(3, -1, -1, -1)
    result = corrupt(images, torch.tensor([5, 6, 5]), name, 3)
    assert torch.equal(result[0], result[2])
    assert not torch.equal(result[0], result[1])


@pytest.mark.parametrize("name", [name for name in DETERMINISTIC if name != "jpeg_compression"])
@pytest.mark.parametrize("size", [32, 64])
def test_without_random_numbers_it_equals_the_plain_one(name, size, photographs):
    # Within one grey level: colorsys and scipy order some sums otherwise than scikit-image and OpenCV, and
    # truncation makes a level of a last bit. Pillow's and the zoom's own are equal.
    exact = name in ("pixelate", "zoom_blur")
    for images in (photographs[:30], synthetic(10, 24, 1, 40)) if size == 32 else (synthetic(10, 64),):
        for severity in SEVERITIES:
            result = corrupt(images, torch.arange(len(images)), name, severity)
            difference = (result.int() - by_twin(name, images, severity).int()).abs()
            assert difference.max() <= (0 if exact else 1), severity
            assert (difference > 0).float().mean() < 0.02, severity


@pytest.mark.parametrize(("height", "width"), [(32, 32), (24, 40), (33, 47), (64, 64)])
def test_jpegs_equal_the_plain_ones_up_to_roundings(height, width):
    # The plain one works in fractions: now and then a coefficient is rounded to the other side.
    for severity in SEVERITIES:
        for channels in (1, 3):
            images = synthetic(10, height, channels, width)
            result = corrupt(images, torch.arange(10), "jpeg_compression", severity)
            difference = (result.int() - by_twin("jpeg_compression", images, severity).int()).abs().double()
            assert difference.mean() < 0.6
            assert (difference > 1).double().mean() < 0.15


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (8, 8)])
def test_grey_jpegs_equal_pillows(size):
    # Colour ones need not: Pillow's library may halve its resolution otherwise than the published images'.
    images = synthetic(10, size[0], 1, size[1])
    for severity in SEVERITIES:
        (quality,) = TABLES["cifar"]["jpeg_compression"][severity - 1]
        for image, ours in zip(
            images, corrupt(images, torch.arange(10), "jpeg_compression", severity), strict=True
        ):
            buffer = io.BytesIO()
            Image.fromarray(image[0].numpy()).save(buffer, "JPEG", quality=quality)
            assert np.array_equal(ours[0].numpy(), np.array(Image.open(buffer)))


def agree(name, images, severity):
    """The changes' mean and spread over images are the plain one's within four standard errors."""
    ours = change(corrupt(images, torch.arange(len(images)), name, severity), images)
    plain = change(by_twin(name, images, severity, seed=severity), images)
    # Paired by image, since images differ far more than random numbers do.
    difference = ours - plain
    error = difference.std(1) / len(images) ** 0.5
    assert (difference.mean(1).abs() <= 4 * error + 0.02).all(), (severity, difference.mean(1), error)


@pytest.mark.parametrize("name", RANDOM)
def test_with_random_numbers_it_changes_images_as_much_as_the_plain_one(name, photographs):
    for severity in (1, 3, 5):
        agree(name, photographs[:100], severity)


@pytest.mark.slow
@pytest.mark.parametrize("name", RANDOM)
def test_random_changes_agree_at_every_severity_size_and_in_grey(name, photographs):
    for severity in SEVERITIES:
        agree(name, photographs, severity)
        agree(name, synthetic(40, 64), severity)
        agree(name, synthetic(60, 24, 1, 40), severity)


@pytest.mark.parametrize("name", ALL)
def test_more_severe_changes_more(name, photographs):
    indices = torch.arange(len(photographs))
    amounts = [
        (corrupt(photographs, indices, name, severity).float() - photographs).abs().mean().item()
        for severity in SEVERITIES
    ]
    assert min(amounts) > 0
    # The first elastic severity shifts pixels furthest, only it does so smoothly; drawn images have neither
    # the textures nor the colours of photographs.
    excepted = ["elastic_transform"] + (["pixelate", "saturate"] if real_images() is None else [])
    assert amounts[-1] > amounts[0] or name in excepted
    # Some severities trade one constant for another, and saturation first falls, then rises.
    if name not in ("glass_blur", "motion_blur", "elastic_transform", "saturate", "spatter", "snow", "frost"):
        assert amounts == sorted(amounts) or name in excepted


def test_a_constant_image_has_no_contrast_to_lose():
    images = torch.tensor([0, 1, 100, 255], dtype=torch.uint8)[:, None, None, None].expand(4, 3, 32, 32)
    difference = corrupt(images, torch.arange(4), "contrast", 5).int() - images.int()
    assert difference.min() >= -1 and difference.max() <= 0  # truncated


def test_black_becomes_as_bright_as_the_constant():
    images = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    for severity in SEVERITIES:
        (added,) = TABLES["cifar"]["brightness"][severity - 1]
        assert (corrupt(images, torch.arange(1), "brightness", severity) == int(added * 255)).all()


def test_blurs_leave_a_constant_image_alone():
    images = torch.full((2, 3, 32, 32), 200, dtype=torch.uint8)
    for name in ("gaussian_blur", "defocus_blur", "zoom_blur", "motion_blur", "glass_blur", "pixelate"):
        difference = corrupt(images, torch.arange(2), name, 4).int() - 200
        assert difference.abs().max() <= 2, name


def test_impulses_hit_the_stated_share_half_white_half_black():
    images = torch.full((100, 3, 32, 32), 128, dtype=torch.uint8)
    for severity in SEVERITIES:
        (share,) = TABLES["cifar"]["impulse_noise"][severity - 1]
        result = corrupt(images, torch.arange(100), "impulse_noise", severity)
        for value in (0, 255):
            assert (result == value).double().mean().item() == pytest.approx(share / 2, rel=0.03)


@pytest.mark.parametrize("scale", [15, 75, 500])
def test_poisson_numbers_have_their_mean_and_variance(scale):
    count = 40_000
    for value in (0, 1, 20, 128, 255):
        images = torch.full((1, 1, 1, count), value, dtype=torch.uint8)
        u = Draws("test", scale, torch.arange(1)).uniform(count, value).view(images.shape)
        numbers = poisson(images, u, scale).double()
        mean = value / 255 * scale
        assert numbers.mean().item() == pytest.approx(mean, abs=4 * (mean / count) ** 0.5 + 1e-12)
        # The variance of a Poisson sample's variance is (μ + 2μ²) / n.
        assert numbers.var().item() == pytest.approx(
            mean, abs=5 * ((mean + 2 * mean**2) / count) ** 0.5 + 1e-12
        )


def test_poisson_numbers_invert_the_distribution_function():
    from scipy.stats import poisson as reference

    u = torch.tensor([0.0, 2.0**-24, 1e-3, 0.1, 0.5, 0.9, 1 - 2.0**-24], dtype=torch.float64)
    for value in (1, 9, 255):
        images = torch.full(u.shape, value, dtype=torch.uint8)
        expected = reference.ppf(u.numpy(), value / 255 * 500).clip(0)
        ours = poisson(images, u, 500).double()
        assert torch.equal(ours[1:], torch.from_numpy(expected)[1:]), value


def test_normal_numbers_invert_the_distribution_function():
    from scipy.stats import norm

    steps = torch.cat([torch.arange(5000), torch.arange(0, 2**24, 997), 2**24 - 1 - torch.arange(5000)])
    expected = torch.from_numpy(norm.ppf((steps.numpy() + 0.5) / 2**24))
    torch.testing.assert_close(normal_quantile(steps.double() / 2**24), expected, rtol=0, atol=1e-6)


def test_edges_distances_and_ranks_equal_the_plain_ones():
    layer = np.random.default_rng(0).normal(0.65, 0.15, size=(40, 20, 33))
    layer = filters.gaussian_blur(torch.from_numpy(layer), 0.8)
    layer = torch.where(layer < 0.7, 0.0, layer).clamp_max(1).mul(255).floor()
    layer[3] = 0  # no edge at all
    found = spatter.edges(layer)
    assert 0 < found.float().mean() < 0.5
    levels = spatter.distance_to(found).clamp_max(20)
    ranks = spatter.equalised(levels.floor())
    for i in range(len(layer)):
        assert np.array_equal(found[i].numpy(), edges(layer[i].numpy().astype(np.uint8)))
        np.testing.assert_allclose(
            levels[i].numpy(), np.minimum(distance_to(found[i].numpy()), 20), atol=1e-12
        )
        assert np.array_equal(ranks[i].numpy(), equalised(levels[i].floor().numpy().astype(int)))


@pytest.mark.parametrize("shift", [1, 2, 3])
def test_glass_moves_pixels_as_one_by_one_does(shift):
    height, width = 17, 24
    u = Draws("test", shift, torch.arange(20)).uniform(2 * height * width)
    origins = blur._shuffle(u, height, width, shift)
    for image, origin in zip(u.view(20, 2, height, width), origins, strict=True):
        moves = (image * 2 * shift).floor().int() - shift
        places = torch.arange(height * width).view(height, width).clone()
        for row in range(height - shift, shift, -1):
            for column in range(width - shift, shift, -1):
                right, down = moves[:, row, column]
                places[row, column] = places[row + down, column + right].clone()
        assert torch.equal(places.flatten(), origin)


@pytest.mark.slow
@pytest.mark.parametrize("name", DETERMINISTIC)
def test_the_published_file_comes_out_byte_for_byte(name):
    images = real_images()
    if images is None:
        pytest.skip("needs CIFAR-10 in the folder RIFT_TEST_DATA")
    assert published_sum(name, images) == MD5["CIFAR-10-C"][name]


def published_sum(name, images):
    """md5 of the file numpy.save would write of all severities, (50000, 32, 32, 3)."""
    digest = hashlib.md5(usedforsecurity=False)
    header = {"descr": "|u1", "fortran_order": False, "shape": (5 * len(images), 32, 32, 3)}
    np.lib.format.write_array_header_1_0(Writer(digest), header)
    for severity in SEVERITIES:
        result = corrupt(images, torch.arange(len(images)), name, severity)
        digest.update(result.permute(0, 2, 3, 1).contiguous().numpy())
    return digest.hexdigest()


class Writer:
    """A file that only sums up what is written."""

    def __init__(self, digest):
        self.write = digest.update


def test_constants_follow_the_shorter_side():
    assert [constants_for(size) for size in (8, 32, 47, 48, 64)] == ["cifar"] * 3 + ["tiny_imagenet"] * 2
    assert arguments_of("gaussian_noise", 5, 32) == (0.10,)
    assert arguments_of("gaussian_noise", 5, 64) == (0.18,)
    for table in TABLES.values():
        assert table.keys() == set(ALL)
        assert all(len(rows) == 5 for rows in table.values())


def test_mistakes_are_named():
    images, indices = synthetic(1, 8), torch.arange(1)
    with pytest.raises(UserError, match="did you mean 'gaussian_noise'"):
        corrupt(images, indices, "gausian_noise", 1)
    for severity in (0, 6):
        with pytest.raises(UserError, match=f"severity {severity} is unknown"):
            corrupt(images, indices, "fog", severity)
    with pytest.raises(UserError, match="4 channels"):
        corrupt(torch.zeros(1, 4, 8, 8, dtype=torch.uint8), indices, "fog", 1)


def test_bytes_become_the_same_fractions_as_numpys():
    values = torch.arange(256, dtype=torch.uint8)
    assert np.array_equal(to_unit(values).numpy(), values.numpy() / 255)
