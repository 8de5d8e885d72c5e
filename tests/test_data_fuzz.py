"""Files of a data set filled with anything: a result or one clear sentence, soon; nothing is executed."""

from __future__ import annotations

import io
import os
import pickle
import time
import tracemalloc
import unicodedata
from contextlib import contextmanager, suppress

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.datasets import CIFAR10

from rift.data import load_dataset
from rift.data.decode import decode_image
from rift.data.files import class_names
from rift.data.md5 import file_md5, remembered_md5
from rift.data.plain_pickle import NotOfficialError, read_pickle
from rift.data.tiny_imagenet import _list_val
from rift.errors import UserError

# The same examples each time, and few: a second or two for each test.
few = settings(
    derandomize=True,
    max_examples=120,
    deadline=10_000,  # milliseconds for each input
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
fewer = settings(few, max_examples=40)  # for what takes milliseconds
CLASSES = ("n01", "n02")


@contextmanager
def one_sentence():
    """What is refused is refused in one line of no great length, with nothing in it that a terminal obeys."""
    try:
        yield
    except UserError as error:
        said = str(error)
        assert not {unicodedata.category(character) for character in said} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
        assert said.endswith(".") and len(said) < 2000
        said.encode()


# -- Tiny-ImageNet's annotations ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def val(tmp_path_factory):
    folder = tmp_path_factory.mktemp("val")
    (folder / "images").mkdir()
    for number in range(3):
        (folder / "images" / f"val_{number}.JPEG").touch()
    return folder


def labels_of(val, content: bytes) -> list[int] | None:
    (val / "val_annotations.txt").write_bytes(content)
    with one_sentence():
        paths, labels = _list_val(val, CLASSES)
        assert sorted(path.name for path in paths) == [f"val_{number}.JPEG" for number in range(3)]
        assert all(label in (0, 1) for label in labels)
        return labels
    return None


def test_the_annotations_as_published_are_read(val):
    lines = [f"val_{number}.JPEG\tn0{1 + number % 2}\t0\t0\t62\t62\n" for number in range(3)]
    assert labels_of(val, "".join(lines).encode()) == [0, 1, 0]
    assert labels_of(val, "".join(lines).replace("\n", "\r\n").encode()) == [0, 1, 0]


names = st.sampled_from(["val_0.JPEG", "val_1.JPEG", "val_2.JPEG", "../x", "/etc/passwd"]) | st.text(
    max_size=8
)
wnids = st.sampled_from([*CLASSES, "n03", "\x1b[2J"]) | st.text(max_size=4)
lines = st.lists(st.tuples(names, wnids, st.sampled_from(["", "\t0\t0", "\t" * 50])), max_size=6)


@few
@given(lines, st.sampled_from(["\n", "\r\n", "\r", "\x0b", "\n\n"]))
def test_annotations_that_are_nearly_right(val, lines, end):
    labels_of(val, end.join(f"{name}\t{wnid}{rest}" for name, wnid, rest in lines).encode(errors="replace"))


@few
@given(st.binary(max_size=400))
@example(b"\xff\xfe" + "val_0.JPEG\tn01".encode("utf-16-le"))
@example(b"\0" * 100)
@example(b"")
def test_annotations_of_any_bytes(val, content):
    assert labels_of(val, content) is None


@pytest.mark.parametrize(
    "content",
    [b"\n" * (1 << 20), b"\t" * (3 << 20), b"a" * (3 << 20), b"a\tb\n" * (1 << 18), b"x" * (5 << 20)],
)
def test_annotations_of_any_length(val, content):
    began = time.monotonic()
    tracemalloc.start()
    try:
        assert labels_of(val, content) is None
        assert tracemalloc.get_traced_memory()[1] < 60e6
    finally:
        tracemalloc.stop()
    assert time.monotonic() - began < 20


def test_endless_annotations_are_not_read_to_the_end(val):
    labels_of(val, b"")
    os.truncate(val / "val_annotations.txt", 1 << 40)  # takes no space on the disk
    with pytest.raises(UserError, match="more than 4 MiB of text"):
        _list_val(val, CLASSES)


# -- class listings -------------------------------------------------------------------------------------


# Anything that Linux lets a name be, with a weakness for what terminals obey.
component = st.binary(min_size=1, max_size=20) | st.text(
    "a猫\x1b\n\r\x9b\u2028 .-", min_size=1, max_size=6
).map(str.encode)


@few
@given(st.sets(component.filter(lambda name: b"/" not in name and b"\0" not in name), max_size=3))
def test_class_folders_of_any_name(tmp_path_factory, found):
    folder = tmp_path_factory.mktemp("classes")
    for name in found - {b".", b".."}:
        (folder / os.fsdecode(name)).mkdir()
    with one_sentence():
        names = class_names(folder)
        assert names == tuple(sorted(names))
        for name in names:
            name.encode()
            assert not set(name) & set(map(chr, [*range(32), *range(127, 160)]))


# -- images ---------------------------------------------------------------------------------------------


def encoded(kind: str) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


IMAGES = {kind: encoded(kind) for kind in ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")}


def decoded(path, content: bytes, size: int | None) -> None:
    path.write_bytes(content)
    with one_sentence():
        pixels = decode_image(path, size)
        assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3
        assert size is None or pixels.shape[:2] == (size, size)


@few
@given(
    st.sampled_from(sorted(IMAGES)),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), min_size=1, max_size=5),
    st.integers(0, 10_000) | st.none(),
    st.sampled_from([None, 1, 5]),
)
def test_images_with_bytes_changed_and_ends_cut_off(tmp_path, kind, changes, length, size):
    content = bytearray(IMAGES[kind])
    for position, value in changes:
        content[position % len(content)] = value
    decoded(tmp_path / "x.png", bytes(content[:length]), size)


@few
@given(st.sampled_from(sorted(IMAGES)), st.integers(0, 40), st.binary(max_size=200))
def test_images_that_begin_well(tmp_path, kind, kept, rest):
    decoded(tmp_path / "x.png", IMAGES[kind][:kept] + rest, None)


# -- CIFAR's pickles ------------------------------------------------------------------------------------


class Evil:
    """A pickle that runs a command."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def write_cifar(root, content: bytes) -> None:
    folder = root / CIFAR10.base_folder
    folder.mkdir(exist_ok=True)
    for name in [*(name for name, _ in CIFAR10.train_list + CIFAR10.test_list), "batches.meta"]:
        (folder / name).write_bytes(content)


def load_cifar(root):
    return load_dataset("cifar10", root=root, mean=(0.5,) * 3, std=(0.25,) * 3)


@fewer
@given(
    st.binary(max_size=200) | st.sampled_from([pickle.dumps({"data": 1}), b"r\xff\xff\xff\xff.", b"]" * 99])
)
def test_cifar_files_of_any_bytes(tmp_path, content):
    write_cifar(tmp_path, content)
    with pytest.raises(UserError, match="incomplete or damaged") as error:
        load_cifar(tmp_path)
    assert str(error.value).isprintable()


def test_a_pickle_that_runs_a_command_is_not_run(tmp_path, monkeypatch):
    """Neither under a wrong md5 sum nor, should md5 be broken for good, under the right one."""
    mark = tmp_path / "executed"
    write_cifar(tmp_path, pickle.dumps({"data": Evil(f"touch {mark}")}))
    with pytest.raises(UserError, match=r"md5 sum of batches\.meta is not the official one"):
        load_cifar(tmp_path)
    found = file_md5(tmp_path / CIFAR10.base_folder / "batches.meta")
    monkeypatch.setattr(CIFAR10, "meta", {**CIFAR10.meta, "md5": found})
    with pytest.raises(UserError, match=r"a pickle asks for posix.system"):
        load_cifar(tmp_path)
    assert not mark.exists()
    pickle.loads((tmp_path / CIFAR10.base_folder / "batches.meta").read_bytes())
    assert mark.exists()  # the fault is real


def test_a_file_exchanged_after_its_sum_was_taken_is_not_unpickled(tmp_path, monkeypatch):
    """The sum is taken of the bytes that are unpickled, so there is no moment in between."""
    mark, path = tmp_path / "executed", tmp_path / "batch"
    path.write_bytes(pickle.dumps({"data": np.arange(3)}, protocol=4))
    md5 = file_md5(path)
    real = pickle.Unpickler.load

    def exchange(self):
        path.write_bytes(pickle.dumps(Evil(f"touch {mark}")))
        return real(self)

    monkeypatch.setattr("rift.data.plain_pickle._PlainUnpickler.load", exchange, raising=False)
    assert read_pickle(path, md5)["data"].tolist() == [0, 1, 2]
    with pytest.raises(NotOfficialError):
        read_pickle(path, md5)
    assert not mark.exists()


def test_cifar_files_that_are_no_files(tmp_path):
    write_cifar(tmp_path, b"")
    path = tmp_path / CIFAR10.base_folder / "batches.meta"
    for make in (
        os.mkfifo,
        lambda path: path.symlink_to(path.name),
        lambda path: path.symlink_to("/dev/zero"),
    ):
        path.unlink()
        make(path)
        with pytest.raises(UserError, match=r"batches\.meta is missing, unreadable or no plain file"):
            load_cifar(tmp_path)


# -- the notebook of md5 sums ---------------------------------------------------------------------------


@fewer
@given(
    st.binary(max_size=100) | st.sampled_from([b"[" * 100_000, b'{"sums": [], "sha256": 1}', b"null", b"[]"])
)
def test_a_notebook_of_any_bytes(tmp_path, content):
    (tmp_path / "a.npy").write_bytes(b"a")
    (tmp_path / "notebook.json").write_bytes(content)
    sums = remembered_md5([tmp_path / "a.npy"], tmp_path / "notebook.json")
    assert sums == {tmp_path / "a.npy": file_md5(tmp_path / "a.npy")}
    with suppress(FileNotFoundError):
        (tmp_path / "notebook.json").unlink()
