"""Published corrupted sets: the right rows in the right order, and wrong files named one by one."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from rift.corruption_names import ALL, SEVERITIES
from rift.data import Split, cifar_c, md5, open_published, tiny_imagenet_c, zenodo
from rift.data.cifar_c_sums import MD5
from rift.data.decode import decode_image
from rift.data.zenodo import Archive
from rift.errors import UserError

IMAGES = 40
CPU = torch.device("cpu")
CORRUPTIONS = ("fog", "frost", "snow")
WNIDS = ("n01", "n02", "n05")


def sentence(error):
    assert "\n" not in str(error.value) and len(str(error.value).split(". ")) == 1
    return str(error.value)


# CIFAR


def split_of(labels, indices):
    images = torch.zeros(len(indices), 3, 32, 32, dtype=torch.uint8)
    return Split(images, torch.as_tensor(labels)[indices], torch.as_tensor(indices))


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """(root, the arrays, the labels) of a set with few images, whose sums pass for the published ones."""
    monkeypatch.setattr(cifar_c, "IMAGES", IMAGES)
    root, random = tmp_path / "root", np.random.default_rng(0)
    sums, arrays = {}, {}
    labels = random.integers(0, 10, IMAGES).astype(np.uint8)
    for name in ("CIFAR-10-C", "CIFAR-100-C"):
        (root / name).mkdir(parents=True)
        for stem in (*CORRUPTIONS, "labels"):
            array = random.integers(0, 256, (5 * IMAGES, 32, 32, 3), dtype=np.uint8)
            array = np.tile(labels, 5) if stem == "labels" else array
            np.save(root / name / f"{stem}.npy", array)
            content = (root / name / f"{stem}.npy").read_bytes()
            sums.setdefault(name, {})[stem] = hashlib.md5(content).hexdigest()
            arrays[name, stem] = array
    monkeypatch.setattr(cifar_c, "MD5", sums)
    return root, {stem: arrays["CIFAR-10-C", stem] for stem in CORRUPTIONS}, labels.astype(np.int64)


def open_cifar(cifar, indices=range(IMAGES), **options):
    root, _, labels = cifar
    settings = {
        "corruptions": CORRUPTIONS,
        "severities": SEVERITIES,
        "test": split_of(labels, list(indices)),
        "classes": [str(label) for label in range(10)],
        "download": False,
        "cache": root.parent / "cache",
    }
    return open_published("cifar10", root, **{**settings, **options})


@pytest.mark.parametrize("indices", [range(IMAGES), [1, 2, 17, 39]])
@pytest.mark.parametrize("batch_size", [1, 7, IMAGES, 1000])
def test_batches_are_the_rows_of_the_test_images(cifar, indices, batch_size):
    corrupted = open_cifar(cifar, indices)
    assert corrupted.paired and corrupted.kind == "published"
    assert corrupted.labels.tolist() == cifar[2][list(indices)].tolist()
    for corruption in CORRUPTIONS:
        for severity in SEVERITIES:
            batches = list(corrupted.batches(corruption, severity, batch_size, CPU))
            assert [len(batch) for batch in batches[:-1]] == [batch_size] * (len(batches) - 1)
            images = torch.cat(batches)
            assert images.dtype == torch.uint8 and all(batch.is_contiguous() for batch in batches)
            rows = cifar[1][corruption][(severity - 1) * IMAGES :][list(indices)]
            assert torch.equal(images, torch.from_numpy(rows).permute(0, 3, 1, 2))


def test_identity_is_the_sums_of_the_files_used(cifar):
    corrupted = open_cifar(cifar, corruptions=["fog"], severities=[3])
    expected = {f"{stem}.npy": cifar_c.MD5["CIFAR-10-C"][stem] for stem in ("fog", "labels")}
    assert corrupted.identity == {"kind": "published", "set": "CIFAR-10-C", "md5": expected}
    assert json.loads(json.dumps(corrupted.identity)) == corrupted.identity


def test_a_batch_reads_no_more_than_its_rows(cifar):
    """The arrays stay on disk: what is done to the file's other rows after it was opened is seen."""
    corrupted = open_cifar(cifar)
    path = cifar[0] / "CIFAR-10-C/fog.npy"
    assert all(isinstance(array, np.memmap) for array in corrupted._arrays.values())
    batches = corrupted.batches("fog", 1, 10, CPU)
    first = next(batches)
    writable = np.load(path, mmap_mode="r+")
    writable[:] = 7
    writable.flush()
    assert torch.equal(first, torch.from_numpy(cifar[1]["fog"][:10]).permute(0, 3, 1, 2))
    assert (next(batches) == 7).all()


def test_versions_that_were_not_opened_are_refused(cifar):
    corrupted = open_cifar(cifar, corruptions=["fog"], severities=[3])
    for corruption, severity in (("fog", 2), ("snow", 3)):
        with pytest.raises(
            UserError, match=f"{corruption} at severity {severity} is not among the 1 versions"
        ):
            corrupted.batches(corruption, severity, 8, CPU)
    with pytest.raises(UserError, match="batch size 0"):
        corrupted.batches("fog", 3, 0, CPU)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"corruptions": ["fogg"]}, "unknown corruption 'fogg': did you mean 'fog'"),
        ({"severities": [0]}, "severity 0 is not among"),
        ({"corruptions": []}, "no corruptions"),
        ({"severities": []}, "no severities"),
    ],
)
def test_names_that_do_not_exist(cifar, options, words):
    with pytest.raises(UserError, match=words) as error:
        open_cifar(cifar, **options)
    sentence(error)


def test_sets_that_are_not_published(cifar, tmp_path):
    with pytest.raises(UserError, match="no corrupted versions of digits are published"):
        open_published(
            "digits",
            tmp_path,
            corruptions=["fog"],
            severities=[1],
            test=split_of(cifar[2], [0]),
            classes=["0"],
            download=False,
            cache=tmp_path,
        )


def test_a_missing_folder_names_the_options(cifar):
    shutil.rmtree(cifar[0] / "CIFAR-10-C")
    with pytest.raises(UserError, match=r"dataset\.corrupted_root=.*dataset\.download=true") as error:
        open_cifar(cifar)
    sentence(error)


def test_all_that_is_wrong_is_named_in_one_sentence(cifar):
    folder = cifar[0] / "CIFAR-10-C"
    (folder / "fog.npy").unlink()
    whole = (folder / "frost.npy").read_bytes()
    (folder / "frost.npy").write_bytes(whole[: len(whole) // 2])
    shutil.copy(cifar[0] / "CIFAR-100-C/snow.npy", folder / "snow.npy")
    np.save(folder / "labels.npy", np.array([{}] * 5 * IMAGES))
    with pytest.raises(UserError, match="4 of the 4 files needed") as error:
        open_cifar(cifar)
    message = sentence(error)
    for words in (
        str(folder),
        "fog.npy (missing)",
        "frost.npy (truncated or damaged)",
        "snow.npy (is snow.npy of CIFAR-100-C)",
        "labels.npy (of pickled objects)",
        "https://zenodo.org/records/2535967/",
    ):
        assert words in message


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (
            np.zeros((4 * IMAGES, 32, 32, 3), np.uint8),
            r"fog.npy \(holds \(160, 32, 32, 3\) uint8 instead of \(200",
        ),
        (np.zeros((5 * IMAGES, 32, 32, 3), np.int16), r"fog.npy \(holds .* int16 instead of"),
        (np.zeros((5 * IMAGES, 32, 32, 3), np.uint8), r"fog.npy \(not the published file"),
    ],
)
def test_foreign_arrays(cifar, array, words):
    np.save(cifar[0] / "CIFAR-10-C/fog.npy", array)
    with pytest.raises(UserError, match=words) as error:
        open_cifar(cifar)
    sentence(error)
    assert open_cifar(cifar, corruptions=["snow"]).identity  # a file that is not needed is not looked at


@pytest.mark.parametrize("severity", [1, 4])
def test_labels_of_another_order(cifar, monkeypatch, severity):
    path = cifar[0] / "CIFAR-10-C/labels.npy"
    labels = np.load(path)
    labels[(severity - 1) * IMAGES + 17] = 9 - labels[(severity - 1) * IMAGES + 17]
    np.save(path, labels)
    monkeypatch.setitem(cifar_c.MD5["CIFAR-10-C"], "labels", hashlib.md5(path.read_bytes()).hexdigest())
    with pytest.raises(UserError, match=f"of another order .* at severity {severity}, image 17") as error:
        open_cifar(cifar)
    sentence(error)
    assert open_cifar(cifar, [3, 18])


def test_test_images_that_the_set_does_not_have(cifar):
    test = split_of(cifar[2], [0, 1])
    with pytest.raises(UserError, match="an image 40"):
        open_cifar(cifar, test=Split(test.images, test.labels, torch.tensor([0, IMAGES])))


def count_hashes(monkeypatch):
    hashed = []

    def hash_and_note(path):
        hashed.append(path.name)
        return zenodo.file_md5(path)

    monkeypatch.setattr(md5, "file_md5", hash_and_note)
    return hashed


def test_sums_are_computed_once(cifar, monkeypatch):
    hashed = count_hashes(monkeypatch)
    open_cifar(cifar, corruptions=["fog"])
    assert sorted(hashed) == ["fog.npy", "labels.npy"]
    open_cifar(cifar)
    assert sorted(hashed[2:]) == ["frost.npy", "snow.npy"]
    assert open_cifar(cifar).identity == open_cifar(cifar).identity and len(hashed) == 4

    path = cifar[0] / "CIFAR-10-C/fog.npy"
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    open_cifar(cifar)
    assert hashed[4:] == ["fog.npy"]
    stat = path.stat()
    path.write_bytes(path.read_bytes() + b"more")  # another size with the same time
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(UserError, match=r"fog\.npy"):
        open_cifar(cifar)
    assert hashed[5:] == ["fog.npy"]


def test_nothing_is_written_beside_the_files(cifar):
    before = sorted(cifar[0].rglob("*"))
    open_cifar(cifar)
    assert sorted(cifar[0].rglob("*")) == before


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b"[]", b"[" * 100_000, b'{"x": 3}'])
def test_a_damaged_notebook_is_made_again(cifar, monkeypatch, content):
    cache = cifar[0].parent / "cache"
    cache.mkdir()
    (cache / "published-md5.json").write_bytes(content)
    open_cifar(cifar)
    monkeypatch.setattr(md5, "file_md5", None)
    open_cifar(cifar)


def test_a_cache_that_cannot_be_written_is_a_warning(cifar, caplog):
    blocker = cifar[0].parent / "file"
    blocker.write_text("")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert open_cifar(cifar, cache=blocker / "cache").identity
    assert [record.message for record in caplog.records if "cannot be kept" in record.message]


def test_download_fetches_only_a_set_that_is_not_there(cifar, monkeypatch):
    asked = []

    def fetch(archive, root, folder, needs=()):
        asked.append(archive.file)
        shutil.copytree(cifar[0] / folder, root / folder)

    monkeypatch.setattr("rift.data.published.fetch_folder", fetch)
    open_cifar(cifar, download=True)
    assert not asked
    empty = cifar[0].parent / "empty"
    open_cifar((empty, *cifar[1:]), download=True)
    assert asked == ["CIFAR-10-C.tar"]


def test_download_without_a_network_is_one_sentence(cifar, monkeypatch):
    archive = Archive("http://127.0.0.1:9/CIFAR-10-C.tar?download=1", "0" * 32, 5)
    monkeypatch.setitem(cifar_c.ARCHIVES, "cifar10", archive)
    with pytest.raises(UserError, match="nothing answers at") as error:
        open_cifar((cifar[0].parent / "empty", *cifar[1:]), download=True)
    sentence(error)


def test_tables_are_whole():
    assert cifar_c.IMAGES == 10_000 and set(cifar_c.FOLDERS.values()) == set(MD5)
    for sums in MD5.values():
        assert set(sums) == {*ALL, "labels"} and len(set(sums.values())) == 20
        assert all(len(bytes.fromhex(value)) == 16 for value in sums.values())


# Tiny-ImageNet


def shade(corruption, severity, wnid, number):
    return 10 * CORRUPTIONS.index(corruption) + 40 * severity + 3 * WNIDS.index(wnid) + number


@pytest.fixture
def tiny(tmp_path):
    """The root of a set of 2 corruptions at 2 severities, 4 images of each class; each grey is one file's."""
    root = tmp_path / "root"
    for corruption in ("fog", "snow"):
        for severity in (1, 4):
            for wnid in WNIDS:
                folder = root / "Tiny-ImageNet-C" / corruption / str(severity) / wnid
                folder.mkdir(parents=True)
                for number in range(4):
                    image = Image.new("RGB", (64, 64), (shade(corruption, severity, wnid, number),) * 3)
                    image.save(folder / f"val_{number}.JPEG", quality=95)
    return root


def open_tiny(root, count=12, **options):
    images = torch.zeros(count, 3, 64, 64, dtype=torch.uint8)
    settings = {
        "corruptions": ("fog", "snow"),
        "severities": (1, 4),
        "test": Split(images, torch.zeros(count, dtype=torch.int64), torch.arange(count)),
        "classes": WNIDS,
        "download": False,
        "cache": root.parent / "cache",
    }
    return open_published("tiny_imagenet", root, **{**settings, **options})


@pytest.mark.parametrize("classes", [WNIDS, ("n05", "n01")])
@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_tiny_images_and_labels_agree(tiny, classes, batch_size):
    corrupted = open_tiny(tiny, classes=classes)
    assert not corrupted.paired and corrupted.kind == "published"
    assert corrupted.labels.tolist() == [label for label in range(len(classes)) for _ in range(4)]
    for corruption in ("fog", "snow"):
        for severity in (1, 4):
            batches = list(corrupted.batches(corruption, severity, batch_size, CPU))
            images = torch.cat(batches)
            assert max(map(len, batches)) == min(batch_size, len(images)) and images.dtype == torch.uint8
            paths = [
                tiny / "Tiny-ImageNet-C" / corruption / str(severity) / wnid / f"val_{number}.JPEG"
                for wnid in classes
                for number in range(4)
            ]
            pixels = np.stack([decode_image(path, None) for path in paths])
            assert torch.equal(images, torch.from_numpy(pixels).permute(0, 3, 1, 2))
            shades = [shade(corruption, severity, wnid, number) for wnid in classes for number in range(4)]
            assert ((images[:, 0, 0, 0].int() - torch.tensor(shades)).abs() <= 1).all()


@pytest.mark.parametrize(
    ("count", "each"), [(3, [1, 1, 1]), (7, [3, 2, 2]), (12, [4, 4, 4]), (50, [4, 4, 4])]
)
def test_tiny_limit_takes_the_first_of_each_class(tiny, count, each):
    corrupted = open_tiny(tiny, count)
    assert corrupted.labels.bincount().tolist() == each and corrupted.identity["images"] == sum(each)
    (images,) = corrupted.batches("snow", 4, 100, CPU)
    shades = [
        shade("snow", 4, WNIDS[label], number) for label, size in enumerate(each) for number in range(size)
    ]
    assert ((images[:, 0, 0, 0].int() - torch.tensor(shades)).abs() <= 1).all()


def test_tiny_is_decoded_once_for_each_version(tiny, monkeypatch):
    first = torch.cat(list(open_tiny(tiny).batches("fog", 1, 5, CPU)))
    assert len(list((tiny.parent / "cache").glob("tiny_imagenet_c-fog-1-*.safetensors"))) == 1
    monkeypatch.setattr("rift.data.cache.decode_all", None)
    assert torch.equal(torch.cat(list(open_tiny(tiny).batches("fog", 1, 5, CPU))), first)


def test_tiny_identity_follows_the_files_and_not_their_place(tiny, tmp_path):
    identity = open_tiny(tiny).identity
    shutil.copytree(tiny, tmp_path / "elsewhere")
    assert open_tiny(tmp_path / "elsewhere").identity == identity
    assert str(tmp_path) not in json.dumps(identity)
    with (tiny / "Tiny-ImageNet-C/snow/4/n02/val_1.JPEG").open("ab") as file:
        file.write(b"\0")
    assert open_tiny(tiny).identity != identity


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (os.mkfifo, "is a FIFO"),
        (lambda path: path.symlink_to("nowhere"), "is a link that leads nowhere"),
        (lambda path: path.symlink_to(path.name), "is a link that leads nowhere or in a circle"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device"),
    ],
)
def test_tiny_what_is_no_plain_file_is_named_as_the_set_is_opened(tiny, make, words):
    path = tiny / "Tiny-ImageNet-C/snow/4/n02/val_3.JPEG"
    path.unlink()
    make(path)
    with pytest.raises(UserError, match=f"snow/4/n02/val_3.JPEG {words}") as error:
        open_tiny(tiny)
    sentence(error)


def delete_class(tiny):
    for version in ("fog/1", "fog/4", "snow/1", "snow/4"):
        shutil.rmtree(tiny / "Tiny-ImageNet-C" / version / "n02")


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (
            lambda tiny: shutil.rmtree(tiny / "Tiny-ImageNet-C/snow/4"),
            r"1 of the 4 versions.*: snow/4 \(missing\)",
        ),
        (
            lambda tiny: shutil.rmtree(tiny / "Tiny-ImageNet-C/fog"),
            r"2 of the 4 .*: fog/1 \(missing\); fog/4 \(missing\)",
        ),
        (lambda tiny: shutil.rmtree(tiny / "Tiny-ImageNet-C/fog/1/n02"), r": fog/1 \(no folder n02\)"),
        (delete_class, r"4 of the 4 .*fog/1 \(no folder n02\).*snow/4 \(no folder n02\)"),
        (
            lambda tiny: (tiny / "Tiny-ImageNet-C/fog/1/n02/val_3.JPEG").unlink(),
            r": fog/1 \(3 of n02 instead of 4 images\)",
        ),
        (
            lambda tiny: (tiny / "Tiny-ImageNet-C/snow/1/n02/val_3.JPEG").rename(
                tiny / "Tiny-ImageNet-C/snow/1/n02/val_9.JPEG"
            ),
            r"1 of the 4 .*: snow/1 \(other file names in n02\)",
        ),
        (
            lambda tiny: shutil.rmtree(tiny / "Tiny-ImageNet-C"),
            "dataset.corrupted_root=.*dataset.download=true",
        ),
        (
            lambda tiny: Image.new("RGB", (32, 32)).save(tiny / "Tiny-ImageNet-C/fog/4/n01/val_0.JPEG"),
            r"fog/4/n01/val_0.JPEG holds images of \(3, 32, 32\)",
        ),
    ],
)
def test_tiny_damage_is_named(tiny, damage, words):
    damage(tiny)
    with pytest.raises(UserError, match=words) as error:
        open_tiny(tiny)
    sentence(error)


def test_tiny_damage_elsewhere_does_not_matter(tiny):
    shutil.rmtree(tiny / "Tiny-ImageNet-C/fog")
    (tiny / "Tiny-ImageNet-C/snow/1/n02/val_3.JPEG").unlink()
    assert open_tiny(tiny, corruptions=["snow"], severities=[4])
    assert open_tiny(tiny, corruptions=["snow"], classes=("n01", "n05"))


def test_tiny_damaged_image_is_named(tiny):
    path = tiny / "Tiny-ImageNet-C/snow/4/n02/val_1.JPEG"
    path.write_bytes(b"\xff\xd8 cut short")
    with pytest.raises(UserError, match=r"snow/4/n02/val_1\.JPEG cannot be read"):
        list(open_tiny(tiny).batches("snow", 4, 5, CPU))


def test_tiny_extra_corruptions_are_a_second_archive(tiny, monkeypatch):
    asked = []
    monkeypatch.setattr(
        "rift.data.published.fetch_folder",
        lambda archive, root, folder, needs=(): asked.append((archive.file, needs)),
    )
    open_tiny(tiny, download=True)
    assert not asked
    with pytest.raises(UserError, match=r"spatter/1 .*Tiny-ImageNet-C-extra\.tar"):
        open_tiny(tiny, download=True, corruptions=["fog", "spatter"])
    assert asked == [("Tiny-ImageNet-C-extra.tar", ("spatter",))]
    asked.clear()
    with pytest.raises(UserError, match="was not found"):
        open_tiny(tiny.parent / "empty", download=True)
    assert asked == [(tiny_imagenet_c.ARCHIVE.file, ())]
