"""A user's own folders of images: labels, sizes, formats, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from rift.data import load_dataset
from rift.errors import UserError


def load(root, **options):
    return load_dataset("image_folder", root=root, mean=(0.5,) * 3, std=(0.25,) * 3, **options)


def save(path, size=(6, 4), colour=(10, 20, 30), mode="RGB"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path)


@pytest.fixture
def tree(tmp_path):
    for part in ("train", "test"):
        save(tmp_path / part / "cat" / "b.png", colour=(1, 2, 3))
        save(tmp_path / part / "cat" / "a.bmp", colour=(4, 5, 6))
        save(tmp_path / part / "ant" / "x.png", colour=77, mode="L")
        (tmp_path / part / "ant" / "notes.txt").write_text("not an image")
        (tmp_path / part / "ant" / ".hidden.png").write_text("not an image")
    return tmp_path


def test_labels_follow_sorted_folders_and_images_become_rgb(tree):
    data = load(tree)
    assert data.classes == ("ant", "cat") and data.shape == (3, 4, 6)
    assert data.train.labels.tolist() == data.test.labels.tolist() == [0, 1, 1]
    assert data.train.images[:, :, 0, 0].tolist() == [[77, 77, 77], [4, 5, 6], [1, 2, 3]]
    assert (data.train.images == data.train.images[:, :, :1, :1]).all()


def test_palette_and_transparent_images_become_rgb(tree):
    Image.new("RGBA", (6, 4), (9, 8, 7, 255)).save(tree / "train/cat/c.png")
    Image.new("RGB", (6, 4), (200, 0, 0)).quantize(4).save(tree / "train/cat/d.png")
    pixels = load(tree).train.images[-2:, :, 0, 0].tolist()
    assert pixels == [[9, 8, 7], [200, 0, 0]]


def test_different_sizes_need_image_size(tree):
    save(tree / "test/cat/wide.png", size=(40, 20))
    with pytest.raises(UserError, match=r"wide.png is 40×20 pixels .* 6×4: set dataset.image_size"):
        load(tree)
    data = load(tree, image_size=4)
    assert data.shape == (3, 4, 4) and len(data.test) == 4


@pytest.mark.parametrize("transposed", [False, True])
def test_resize_keeps_the_shape_and_crops_the_centre(tree, transposed):
    # Three squares side by side, each of one shade: the centre crop is the middle one.
    pixels = np.repeat(np.array([0, 100, 200], dtype=np.uint8), 16)[None].repeat(16, axis=0)
    Image.fromarray(pixels.T if transposed else pixels).save(tree / "train/cat/z.png")
    image = load(tree, image_size=8).train.images[-1]
    inner = image[:, 1:-1] if transposed else image[:, :, 1:-1]
    assert (inner == 100).all()


def test_resizing_is_antialiased(tree):
    # One-pixel stripes average to grey; picking pixels would give black or white.
    pixels = np.zeros((32, 32), dtype=np.uint8)
    pixels[:, ::2] = 255
    Image.fromarray(pixels).save(tree / "train/cat/z.png")
    inner = load(tree, image_size=4).train.images[-1][:, :, 1:-1].float()
    assert (inner - 127.5).abs().max() < 8


def test_cache_depends_on_image_size_and_files(tree, tmp_path):
    assert load(tree, image_size=4).shape == (3, 4, 4)
    assert load(tree, image_size=3).shape == (3, 3, 3)
    before = load(tree)
    (tree / "test/cat/b.png").rename(tree / "test/ant/b.png")
    assert load(tree).test.labels.tolist() == [0, 0, 1]
    assert torch.equal(load(tree).train.images, before.train.images)


def rename(tree, old, new):
    (tree / old).rename(tree / new)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda tree: rename(tree, "test", "val"), "not found at .*test: point dataset.root="),
        (lambda tree: rename(tree, "test/cat", "test/cats"), "'cat' is in .*train but not in .*test"),
        (lambda tree: save(tree / "test/dog/a.png"), "'dog' is in .*test but not in .*train"),
        (lambda tree: (tree / "train/ant/x.png").unlink(), "train/ant holds no images"),
        (lambda tree: (tree / "train/ant/x.png").write_text("no"), "x.png cannot be read as an image"),
        (lambda tree: Image.new("I;16", (6, 4)).save(tree / "train/ant/x.png"), "more than 8 bits"),
    ],
)
def test_what_cannot_be_used_is_refused(tree, damage, words):
    damage(tree)
    with pytest.raises(UserError, match=words) as error:
        load(tree)
    assert "\n" not in str(error.value)


def test_image_size_must_be_positive(tree):
    with pytest.raises(UserError, match="at least 1"):
        load(tree, image_size=0)


def test_one_class_is_too_few(tmp_path):
    for part in ("train", "test"):
        save(tmp_path / part / "only" / "a.png")
    with pytest.raises(UserError, match="1 class folders"):
        load(tmp_path)
