"""Checkpoints that mean harm: they claim gigabytes, never end, or would run code. Each is made for real."""

from __future__ import annotations

import copy
import json
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

MIB = 1 << 20
# What could be called if names in a pickle were looked up; each is tried in three kinds of files.
GADGETS = [
    *("os.system", "posix.system", "nt.system", "os.execv", "os.popen", "os.mkdir", "shutil.rmtree"),
    *("builtins.eval", "builtins.exec", "builtins.compile", "builtins.__import__", "builtins.getattr"),
    *("builtins.open", "subprocess.Popen", "subprocess.check_output", "runpy._run_code", "pty.spawn"),
    *("importlib.import_module", "operator.attrgetter", "functools.partial", "pydoc.locate"),
    *("timeit.timeit", "cProfile.run", "ctypes.CDLL", "webbrowser.open", "numpy.load"),
    *("torch.load", "torch.hub.load", "torch.jit.load", "torch._utils._rebuild_wrapper_subclass"),
]

_ONE = b"K\x01"
_TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n"


def text(value: str) -> bytes:
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def number(value: int) -> bytes:
    data = value.to_bytes(value.bit_length() // 8 + 1, "little")
    return b"\x8a" + bytes([len(data)]) + data


def program(*steps: bytes) -> bytes:
    return b"\x80\x02" + b"".join(steps) + b"."


def named(name: str) -> bytes:
    return b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n"


def call(name: str, *arguments: bytes) -> bytes:
    return named(name) + b"(" + b"".join(arguments) + b"tR"


def tensor(key: str, count: int, size: int, stride: int = 1) -> bytes:
    """A float32 tensor of one dimension in a storage of `count` values."""
    place = (
        b"(" + text("storage") + named("torch.FloatStorage") + text(key) + text("cpu") + number(count) + b"tQ"
    )
    shape = number(size) + b"\x85" + number(stride) + b"\x85"
    return _TENSOR + b"(" + place + b"K\x00" + shape + b"\x89" + call("collections.OrderedDict") + b"tR"


def entry(value: bytes, name: str = "conv1.weight") -> bytes:
    """A pickle of a state dict with one entry."""
    return program(b"}", text(name), value, b"s")


def archive(
    path: Path, pickled: bytes, method: int = zipfile.ZIP_STORED, **records: bytes
) -> zipfile.ZipFile:
    """A zip as of torch.save, still open so that its list of contents can be spoilt."""
    made = zipfile.ZipFile(path, "w", method)
    made.writestr("a/data.pkl", pickled)
    for name, content in {"0": b"\0" * 4, **records}.items():
        made.writestr(f"a/data/{name}", content)
    return made


def row(pickled: bytes, keys: list[str], *counts: int) -> bytes:
    """A file as torch.save wrote them before 1.6."""
    begin = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join([*begin, pickled, pickle.dumps(keys, 2), *(struct.pack("<q", count) for count in counts)])


def _cycle() -> dict:
    outer: dict = {"epoch": 1}
    outer["model"] = {"state_dict": outer}
    return outer


def _cyclic_list() -> dict:
    loop: list = []
    loop.append(loop)
    return {"history": loop}


def _overlapping(path: Path) -> None:
    made = archive(path, entry(tensor("0", 2 * MIB, 2 * MIB)), **{"0": b"\0" * 8 * MIB})
    for index in range(1000):
        again = copy.copy(made.getinfo("a/data/0"))
        again.filename = again.orig_filename = f"a/data/x{index}"
        made.filelist.append(again)
    made.close()


def _false_size(path: Path) -> None:
    made = archive(path, entry(tensor("0", 2**31, 2**31)), **{"0": b"\0" * 8 * MIB})
    made.getinfo("a/data/0").file_size = made.getinfo("a/data/0").compress_size = 8 << 30
    made.close()


def _long_directory(path: Path) -> None:
    made = archive(path, entry(tensor("0", 1, 1)))
    pattern = made.getinfo("a/data/0")
    for index in range(120_000):
        again = copy.copy(pattern)
        again.filename = again.orig_filename = f"a/data/x{index}"
        made.filelist.append(again)
    made.close()


def _pickled(pickled: bytes) -> Callable[[Path], None]:
    return lambda path: archive(path, pickled).close()


def _deflated(pickled: bytes, **records: bytes) -> Callable[[Path], None]:
    return lambda path: archive(path, pickled, zipfile.ZIP_DEFLATED, **records).close()


def _bytes(content: bytes) -> Callable[[Path], None]:
    return lambda path: path.write_bytes(content)


def _saved(make: Callable[[], object]) -> Callable[[Path], None]:
    return lambda path: torch.save(make(), path)


def _header(header: dict | bytes, length: int | None = None, body: bytes = b"") -> Callable[[Path], None]:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return _bytes(struct.pack("<Q", len(content) if length is None else length) + content + body)


def _about(shape: list[int], end: int) -> dict:
    return {"conv1.weight": {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}}


_PAIR = b"q\x00h\x00\x86"  # remembers the top of the stack and makes a pair of it and itself
_SAME_HASH = b"".join(number(index * (2**61 - 1)) + _ONE for index in range(1, 100_000))
# 1000 pairs, made into a dictionary again and again.
_PAIRS = b"](" + b"".join(number(index) + _ONE + b"\x86" for index in range(1000)) + b"e" + b"q\x01"
_AGAIN = b"ccollections\nOrderedDict\nq\x02](" + b"h\x02h\x01\x85R" * 100_000 + b"e"

_DOUBLED = named("_codecs.encode") + b"h\x00" + text("hex") + b"\x86Rq\x00"

# By name: how to make it. All must be refused.
FILES: dict[str, Callable[[Path], None]] = {
    "cycle_of_wrappers.pt": _saved(_cycle),
    "cyclic_list.pt": _saved(_cyclic_list),
    "thousand_wrappers.pt": _pickled(
        program(*[b"}" + text("model")] * 1000, b"}", text("x"), _ONE, b"s", *[b"s"] * 1000)
    ),
    "key_of_million_tuples.pt": _pickled(program(b"}", _ONE, b"\x85" * 900_000, _ONE, b"s")),
    "key_of_doubled_tuples.pt": _pickled(program(b"}", _ONE, _PAIR * 60, _ONE, b"s")),
    "keys_of_one_hash.pt": _pickled(program(b"}(", _SAME_HASH, b"u")),
    "pairs_again_and_again.pt": _pickled(program(_PAIRS, _AGAIN)),
    "bytearray_of_8_gb.pt": _pickled(entry(call("builtins.bytearray", number(2**33)))),
    "tensor_class_of_8_gb.pt": _pickled(entry(call("torch.FloatTensor", number(2**31)))),
    "doubled_bytes.pt": _pickled(
        entry(b"(" + text("ab" * 500) + b"q\x00" + _DOUBLED * 40 + b"t")
    ),
    "views_of_8_mb.pt": lambda path: archive(
        path,
        program(b"}(", *(text(f"x{index}") + tensor("0", 2 * MIB, 2 * MIB) for index in range(30_000)), b"u"),
        **{"0": bytes(8 * MIB)},
    ).close(),
    "eight_million_dicts.pt": _pickled(program(b"(", b"}" * 8 * MIB, b"l")),
    "eight_million_sets.pt": _pickled(program(b"(", b"\x8f" * 8 * MIB, b"l")),
    "memo_at_2_to_31.pt": _pickled(program(_ONE, b"r" + struct.pack("<I", 2**31 - 1))),
    "text_of_4_gb.pt": _pickled(program(b"X" + struct.pack("<I", 2**32 - 1))),
    "name_of_8_mb.pt": _pickled(entry(tensor("0", 1, 1), "module." * MIB)),
    "stride_0.pt": _saved(lambda: {"conv1.weight": torch.zeros(1).expand(2**31)}),
    "shape_of_8_gb.pt": _pickled(entry(tensor("0", 1, 2**31))),
    "storage_of_8_gb.pt": _pickled(entry(tensor("0", 2**31, 2**31))),
    "shape_of_2_to_63.pt": _pickled(entry(tensor("0", 1, 2**63 - 1, 2**62))),
    "old_storage_of_8_gb.pt": _bytes(row(entry(tensor("0", 2**31, 2**31)), ["0"], 2**31) + b"\0" * 8 * MIB),
    "old_storage_below_0.pt": _bytes(row(entry(tensor("0", 1, 1)), ["0"], -(2**40)) + b"\0" * 64),
    "deflated_weights_of_256_mb.pt": _deflated(entry(tensor("0", 2**26, 2**26)), **{"0": bytes(256 * MIB)}),
    "deflated_pickle_of_128_mb.pt": _deflated(b"\x80\x02" + b"}" * (128 * MIB)),
    "zip_of_8_gb_by_overlap.pt": _overlapping,
    "zip_that_claims_8_gb.pt": _false_size,
    "zip_of_120000_entries.pt": _long_directory,
    "header_of_8_eb.safetensors": _header(b"{}", 2**63),
    "header_of_8_gb.safetensors": _header(b"{}", 2**33, bytes(8 * MIB)),
    "header_of_20_mb.safetensors": _header(b"{}" + b" " * 20 * MIB),
    "offsets_of_8_gb.safetensors": _header(_about([2**31], 2**33), body=bytes(8 * MIB)),
    "shape_beyond_bytes.safetensors": _header(_about([2**31], 4), body=bytes(4)),
    "empty_of_2_to_63.safetensors": _header(_about([0, 2**63], 0)),
    "deep_header.safetensors": _header(b'{"a":' * 100_000),
}  # fmt: skip


def make_gadgets(folder: Path) -> list[Path]:
    """Each of `GADGETS` called with a command, as a zip, an old row of pickles, and a plain pickle."""
    made = []
    for name in GADGETS:
        pickled = entry(call(name, text(f"mkdir {folder / 'sprung'}")))
        zipped, old, plain = (folder / f"{name}-{kind}.pt" for kind in ("zip", "row", "pickle"))
        archive(zipped, pickled).close()
        old.write_bytes(row(pickled, []))
        plain.write_bytes(pickled)
        made += [zipped, old, plain]
    return made
