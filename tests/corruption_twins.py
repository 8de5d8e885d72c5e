"""The 19 corruptions as one reads them: one image at a time, numpy, scipy and Pillow, loops.

Written from the published definitions (Hendrycks and Dietterich 2019), to test the fast ones against. The
severity constants, and the textures of frost, are the package's own.
"""

from __future__ import annotations

import colorsys
import io
import math

import numpy as np
import torch
from PIL import Image
from scipy import fft, ndimage

from rift.data.corruptions.constants import arguments_of
from rift.data.corruptions.frost import textures


def twin(name, image, severity, rng):
    """`image` is uint8 (H, W, C) with 1 or 3 channels; random numbers come from the numpy generator `rng`."""
    arguments = arguments_of(name, severity, min(image.shape[:2]))
    return globals()[name](image, rng, *arguments)


def to_bytes(x):
    return (np.clip(x, 0, 1) * 255).astype(np.uint8)


def blurred(x, sigma, mode="nearest", truncate=4.0):
    """Gaussian filter over the first two axes."""
    sigmas = (sigma, sigma) + (0,) * (x.ndim - 2)
    return ndimage.gaussian_filter(x, sigmas, mode=mode, truncate=truncate)


def luma(x):
    if x.shape[2] == 1:
        return x
    return (0.299 * x[..., 0] + 0.587 * x[..., 1] + 0.114 * x[..., 2])[..., None]


def clipped_zoom(x, factor):
    height, width = x.shape[:2]
    rows, columns = math.ceil(height / factor), math.ceil(width / factor)
    top, left = (height - rows) // 2, (width - columns) // 2
    middle = x[top : top + rows, left : left + columns]
    large = ndimage.zoom(middle, (factor, factor, 1), order=1)
    top, left = (large.shape[0] - height) // 2, (large.shape[1] - width) // 2
    return large[top : top + height, left : left + width]


def along_a_line(image, radius, sigma, degrees):
    """ImageMagick's motion blur: half a Gaussian, the border pixel goes on."""
    height, width = image.shape[:2]
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(2 * math.ceil(radius) + 1)]
    result = np.zeros(image.shape)
    for i, weight in enumerate(weights):
        down = math.ceil(i * math.sin(math.radians(degrees)) - 0.5)
        right = math.ceil(i * math.cos(math.radians(degrees)) - 0.5)
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        result += weight / sum(weights) * image[rows][:, columns]
    return np.floor(result + 0.5).astype(np.uint8)


# Noise


def gaussian_noise(image, rng, sigma):
    return to_bytes(image / 255 + rng.normal(scale=sigma, size=image.shape))


def speckle_noise(image, rng, sigma):
    x = image / 255
    return to_bytes(x + x * rng.normal(scale=sigma, size=image.shape))


def shot_noise(image, rng, scale):
    return to_bytes(rng.poisson(image / 255 * scale) / scale)


def impulse_noise(image, rng, share):
    hit = rng.random(image.shape) < share
    salt = rng.random(image.shape) < 0.5
    return to_bytes(np.where(hit, salt.astype(float), image / 255))


# Blur


def gaussian_blur(image, rng, sigma):
    return to_bytes(blurred(image / 255, sigma))


def defocus_blur(image, rng, radius, rim):
    reach = np.arange(-8, 9)
    disk = (reach[:, None] ** 2 + reach**2 <= radius**2).astype(np.float32)
    side = math.exp(-0.5 / rim**2)
    small = np.float32([side / (1 + 2 * side), 1 / (1 + 2 * side), side / (1 + 2 * side)])
    kernel = disk / disk.sum()
    for axis in (1, 0):  # in float32, whose sum is not quite 1
        kernel = ndimage.correlate1d(kernel, small, axis)
    return to_bytes(ndimage.correlate(image / 255, kernel[..., None].astype(float), mode="mirror"))


def zoom_blur(image, rng, end):
    x = (image / 255).astype(np.float32)
    factors = np.arange(1, end, 0.01)
    total = np.zeros_like(x)
    for factor in factors:
        total += clipped_zoom(x, factor)
    return to_bytes((x + total) / (len(factors) + 1))


def motion_blur(image, rng, radius, sigma):
    return along_a_line(image, radius, sigma, rng.uniform(-45, 45))


def glass_blur(image, rng, sigma, shift, rounds):
    x = to_bytes(blurred(image / 255, sigma))
    height, width = image.shape[:2]
    for _ in range(rounds):
        for row in range(height - shift, shift, -1):
            for column in range(width - shift, shift, -1):
                right, down = rng.integers(-shift, shift, size=2)
                # The published swap of two views copies one way only.
                x[row, column] = x[row + down, column + right]
    return to_bytes(blurred(x / 255, sigma))


# Weather


def fog(image, rng, strength, decay):
    height, width = image.shape[:2]
    x = image / 255
    side = 1 << (max(height, width) - 1).bit_length()
    cloud = plasma(rng, side, decay)[:height, :width, None]
    return to_bytes((x + strength * cloud) * x.max() / (x.max() + strength))


def plasma(rng, side, decay):
    """Diamond-square on a map that wraps around, point after point."""
    cloud = np.zeros((side, side))
    step, rough = side, 100.0

    def fill(row, column, corners):
        total = sum(cloud[(row + down) % side, (column + right) % side] for down, right in corners)
        cloud[row, column] = total / 4 + rough * rng.uniform(-rough, rough)

    while step >= 2:
        half = step // 2
        slanted = [(-half, -half), (-half, half), (half, -half), (half, half)]
        upright = [(-half, 0), (half, 0), (0, -half), (0, half)]
        for row in range(half, side, step):
            for column in range(half, side, step):
                fill(row, column, slanted)
        for row in range(0, side, half):
            for column in range(half if row % step == 0 else 0, side, step):
                fill(row, column, upright)
        step, rough = half, rough / decay
    cloud -= cloud.min()
    return cloud / cloud.max()


def frost(image, rng, image_weight, frost_weight):
    height, width, channels = image.shape
    sheet = textures(channels, torch.device("cpu"))[rng.integers(5)].permute(1, 2, 0).numpy()
    sheet = np.roll(sheet, tuple(rng.integers(sheet.shape[0], size=2)), (0, 1))[:height, :width]
    return np.clip(image_weight * image + frost_weight * sheet, 0, 255).astype(np.uint8)


def snow(image, rng, mean, sigma, zoom, threshold, radius, blur, weight):
    height, width = image.shape[:2]
    layer = clipped_zoom(rng.normal(mean, sigma, size=(height, width, 1)), zoom)
    layer[layer < threshold] = 0
    layer = along_a_line(to_bytes(layer), radius, blur, rng.uniform(-135, -45)) / 255
    x = image / 255
    x = weight * x + (1 - weight) * np.maximum(x, luma(x) * 1.5 + 0.5)
    return to_bytes(x + layer + np.rot90(layer, 2))


# Spatter


def spatter(image, rng, mean, sigma, blur, threshold, strength, mud):
    x = image / 255
    layer = blurred(rng.normal(mean, sigma, size=image.shape[:2]), blur)
    colour = np.array([[(63, 42, 20) if mud else (175, 238, 238)]]) / 255
    colour = colour if image.shape[2] == 3 else luma(colour)
    if mud:
        cover = blurred((layer > threshold).astype(float), strength)[..., None]
        cover[cover < 0.8] = 0
        return to_bytes(x * (1 - cover) + cover * colour)
    layer = (np.where(layer < threshold, 0, layer) * 255).astype(int) % 256
    distance = np.minimum(distance_to(edges(layer)), 20)
    distance = np.floor(box_mean(distance)).astype(int)
    relief = equalised(distance)
    light = np.array([(-2, -1, 0), (-1, 1, 1), (0, 1, 2)])
    relief = np.clip(ndimage.correlate(relief, light, mode="mirror"), 0, 255)
    water = layer * np.floor(box_mean(relief.astype(float)) + 0.5)
    water = water / water.max() if water.max() else water
    return to_bytes(x + strength * water[..., None] * colour)


def box_mean(x):
    return ndimage.correlate(x, np.ones((3, 3)), mode="mirror") / 9


def edges(layer):
    """Canny with |dx| + |dy|, thresholds 50 and 150: crests across the slope, then what joins a steep one."""
    dx = ndimage.sobel(layer.astype(int), 1, mode="nearest")
    dy = ndimage.sobel(layer.astype(int), 0, mode="nearest")
    slope = np.pad(np.abs(dx) + np.abs(dy), 1)
    weak, strong = np.zeros(layer.shape, bool), np.zeros(layer.shape, bool)
    for row, column in np.argwhere(slope[1:-1, 1:-1] > 50):
        x, y = dx[row, column], dy[row, column]
        across = abs(y) * 32768 < abs(x) * 13573
        upright = abs(y) * 32768 > abs(x) * (13573 + 65536)
        slant = 1 if (x < 0) == (y < 0) else -1
        down, right = (0, 1) if across else (1, 0) if upright else (1, slant)
        here = slope[row + 1, column + 1]
        before, after = slope[row + 1 - down, column + 1 - right], slope[row + 1 + down, column + 1 + right]
        if here > before and (here >= after if across or upright else here > after):
            weak[row, column], strong[row, column] = True, here > 150
    return ndimage.binary_propagation(strong, np.ones((3, 3)), mask=weak)


def distance_to(target):
    """Length of the shortest way in straight, diagonal and knight's steps, from its closed form."""
    rows, columns = np.indices(target.shape)
    nearest = np.full(target.shape, 1e3)
    for row, column in np.argwhere(target):
        long = np.maximum(abs(rows - row), abs(columns - column))
        short = np.minimum(abs(rows - row), abs(columns - column))
        flat = short * 143976 + (long - 2 * short) * 65536
        steep = (long - short) * 143976 + (2 * short - long) * 91750
        nearest = np.minimum(nearest, np.where(long >= 2 * short, flat, steep) / 65536)
    return nearest


def equalised(levels):
    lowest = (levels == levels.min()).sum()
    if lowest == levels.size:
        return levels
    below = np.array([(levels <= level).sum() - lowest for level in range(256)])
    return np.round(below * (255 / (levels.size - lowest))).astype(int)[levels]


# Digital


def in_hsv(image, change):
    """Applies `change` to hue, saturation and value of every pixel."""
    x = np.repeat(image, 3, 2) if image.shape[2] == 1 else image
    pixels = [
        colorsys.hsv_to_rgb(*change(*colorsys.rgb_to_hsv(*p))) for p in (x.reshape(-1, 3) / 255).tolist()
    ]
    rgb = np.array(pixels).reshape(x.shape)
    return to_bytes(rgb if image.shape[2] == 3 else luma(rgb))


def brightness(image, rng, added):
    return in_hsv(image, lambda hue, saturation, value: (hue, saturation, min(value + added, 1)))


def saturate(image, rng, factor, added):
    return in_hsv(image, lambda hue, saturation, value: (hue, min(saturation * factor + added, 1), value))


def contrast(image, rng, factor):
    x = image / 255
    mean = x.mean((0, 1))
    return to_bytes((x - mean) * factor + mean)


def elastic_transform(image, rng, strength, smooth, shift):
    height, width, _ = image.shape
    size = min(height, width)
    middle, arm = np.array([width // 2, height // 2]), size // 3
    points = middle + np.array([[arm, arm], [arm, -arm], [-arm, -arm]])
    moved = points + rng.uniform(-shift * size, shift * size, size=(3, 2))
    # The affine map from (x, y, 1) at the moved points back to the points.
    back = np.linalg.solve(np.c_[moved, np.ones(3)], points.astype(float))
    rows, columns = np.indices((height, width)).astype(float)
    source = np.stack([columns, rows, np.ones_like(rows)], -1) @ back
    x = sampled(image / 255, np.round(source[..., 1] * 32) / 32, np.round(source[..., 0] * 32) / 32, "mirror")
    if strength:
        noise = [rng.uniform(-1, 1, size=(height, width)) for _ in range(2)]
        right, down = (blurred(n, smooth * size, "reflect", 3) * strength * size for n in noise)
        x = sampled(x, rows + down, columns + right, "reflect")
    return to_bytes(x)


def sampled(x, rows, columns, mode):
    channels = [
        ndimage.map_coordinates(x[..., c], (rows, columns), order=1, mode=mode) for c in range(x.shape[2])
    ]
    return np.stack(channels, -1)


def picture(image):
    return Image.fromarray(image[..., 0] if image.shape[2] == 1 else image)


def pixelate(image, rng, scale):
    height, width = image.shape[:2]
    small = picture(image).resize((int(width * scale), int(height * scale)), Image.Resampling.BOX)
    return np.array(small.resize((width, height), Image.Resampling.BOX)).reshape(image.shape)


def jpeg_compression(image, rng, quality):
    """In fractions; colour by cosines of 16×16 pixels, as the Independent JPEG Group does since 7."""
    height, width, channels = image.shape
    block = 8 if channels == 1 else 16
    x = np.pad(image, ((0, -height % block), (0, -width % block), (0, 0)), "edge").astype(float)
    brightness_steps, colour_steps = quantisation(quality)
    if channels == 1:
        x = cosines_and_back(x[..., 0], 8, brightness_steps)[..., None]
    else:
        to_ycc = np.array(
            [(0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411)]
        )
        planes = np.round(x @ to_ycc.T + (0, 128, 128))
        sizes = ((8, brightness_steps), (16, colour_steps), (16, colour_steps))
        planes = [cosines_and_back(planes[..., i], *sizes[i]) for i in range(3)]
        x = np.round((np.stack(planes, -1) - (0, 128, 128)) @ np.linalg.inv(to_ycc).T)
    return np.clip(x[:height, :width], 0, 255).astype(np.uint8)


def quantisation(quality):
    """Pillow's tables for brightness and colour."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=quality)
    tables = Image.open(buffer).quantization
    return [np.array(tables[i]).reshape(8, 8) for i in range(2)]


def cosines_and_back(plane, size, steps):
    result = np.zeros(plane.shape)
    for row in range(0, plane.shape[0], size):
        for column in range(0, plane.shape[1], size):
            part = np.s_[row : row + size, column : column + size]
            kept = fft.dctn(plane[part] - 128, norm="ortho")[:8, :8] * 8 / size
            wide = np.zeros((size, size))
            wide[:8, :8] = np.round(kept / steps) * steps * size / 8
            result[part] = np.round(fft.idctn(wide, norm="ortho") + 128)
    return np.clip(result, 0, 255)
