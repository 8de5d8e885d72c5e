"""What a pickle says, told without doing any of it: names, containers, and where the tensors should lie.

A pickle is a program. This reads the program's steps with the standard library's disassembler and keeps a
description of each value; nothing is imported, called, or made as large as it claims to be.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass
from typing import Any, BinaryIO

import torch

# A network of 1000 tensors with its optimiser's state takes some 100 000 steps, a step some 100 bytes.
MAX_STEPS = 1_000_000
MAX_DIMENSIONS = 64  # torch's own limit

_STORAGES = {
    "Double": torch.float64,
    "Float": torch.float32,
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Long": torch.int64,
    "Int": torch.int32,
    "Short": torch.int16,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Bool": torch.bool,
    "ComplexDouble": torch.complex128,
    "ComplexFloat": torch.complex64,
    "QInt8": torch.qint8,
    "QInt32": torch.qint32,
    "QUInt8": torch.quint8,
}
# The names that stand for a type of values, of a storage or of a tensor.
_TYPES = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda")
    for name, dtype in _STORAGES.items()
}
_TYPES |= {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
_TYPES["torch.storage.UntypedStorage"] = torch.uint8
# What is left aside when a checkpoint holds it beside the weights: bytes, sets, shapes, a schedule's counts.
_HARMLESS = {
    "collections.Counter",
    "torch.Size",
    "torch.Tensor",
    "torch.device",
    "torch.serialization._get_layout",
    "torch.per_tensor_affine",
    "torch.per_channel_affine",
    "torch.per_channel_affine_float_qparams",
    "_codecs.encode",
}
_HARMLESS |= {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("bytearray", "set")}
_HARMLESS |= {"builtins.complex", "__builtin__.complex"}
_TENSORS = {"_rebuild_tensor", "_rebuild_tensor_v2", "_rebuild_tensor_v3"}
_PARAMETERS = {"_rebuild_parameter", "_rebuild_parameter_with_state"}
_UNUSABLE = {
    "_rebuild_qtensor": "quantised",
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_meta_tensor_no_storage": "without values",
}
_WITH_ATTRIBUTES = "torch._tensor._rebuild_from_type_v2"
_CALLS = _TENSORS | _PARAMETERS | _UNUSABLE.keys()
_KNOWN = (
    _TYPES.keys() | _HARMLESS | {f"torch._utils.{name}" for name in _CALLS}
    | {"collections.OrderedDict", _WITH_ATTRIBUTES}
)  # fmt: skip

_LITERALS = {
    "BININT",
    "BININT1",
    "BININT2",
    "LONG1",
    "BINFLOAT",
    "BINUNICODE",
    "BINSTRING",
    "SHORT_BINSTRING",
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Malformed(ValueError):
    """The file is not what torch.save writes; the message ends the clause "since it …"."""


class Forbidden(Exception):
    """The pickle names a Python object that is no part of a state dict; the message is its name."""


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of values in the file, as the pickle claims it."""

    key: str
    dtype: torch.dtype
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Claim:
    """A tensor as the pickle claims it: `first`, `size` and `stride` in values of `dtype`, as in torch."""

    storage: Storage
    dtype: torch.dtype
    first: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Other:
    """Anything else. `tensor` says what kind of tensor it is, if it is one: "quantised", "sparse", …"""

    name: str = ""
    tensor: str = ""


def read_pickle(file: BinaryIO, widths: dict[str, int] | None = None) -> Any:
    """Reads one pickle from where `file` stands, up to its end.

    Args:
        file: open for reading; a read must not allocate more than there is, as with BytesIO.
        widths: filled with the bytes of a value for each storage's key.

    Returns:
        What it describes: text, numbers, dicts, lists and tuples as they are, though perhaps holding
        themselves, tensors as `Claim`, all else as `Other`.

    Raises:
        Malformed: torch.save writes no such thing.
        Forbidden: it names an object that no state dict needs.
        Exception: of any other kind if it is damaged.
    """
    reader = _Reader({} if widths is None else widths)
    for count, (opcode, argument, _) in enumerate(pickletools.genops(file)):
        if count == MAX_STEPS:
            raise Malformed(f"describes its contents in more than {MAX_STEPS} steps")
        reader.step(opcode.name, argument)
    return reader.stack.pop()


class _Reader:
    def __init__(self, widths: dict[str, int]) -> None:
        self.widths = widths
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        stack = self.stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _EMPTY:
            stack.append(_EMPTY[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self.memo[argument])
        elif name == "MARK":
            self.marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._pop(self.marks.pop())))
        elif name in _TUPLES:
            stack.append(tuple(self._pop(len(stack) - _TUPLES[name])))
        elif name in ("APPEND", "APPENDS"):
            items = self._pop(self.marks.pop() if name == "APPENDS" else len(stack) - 1)
            _expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = self._pop(self.marks.pop() if name == "SETITEMS" else len(stack) - 2)
            keys = map(_as_key, items[::2])
            _expect(stack[-1], dict).update(zip(keys, items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_named(argument.replace(" ", ".", 1)))
        elif name == "BINPERSID":
            storage = _storage(stack.pop())
            self.widths.setdefault(storage.key, storage.dtype.itemsize)
            stack.append(storage)
        elif name == "REDUCE":
            arguments = _expect(stack.pop(), tuple)
            stack.append(_call(_expect(stack.pop(), Other).name, arguments))
        elif name == "BUILD":  # the attributes of an OrderedDict, which state_dict() adds to
            stack.pop()
            _expect(stack[-1], dict)
        elif name not in ("PROTO", "STOP"):
            raise Malformed(f"has the pickle operation {name}, which torch.save does not write")

    def _pop(self, start: int) -> list[Any]:
        if start < 0:
            raise Malformed("takes values from an empty stack")
        items = self.stack[start:]
        del self.stack[start:]
        return items


def _expect(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise Malformed(f"uses a {type(value).__name__} as a {kind.__name__}")
    return value


def _as_key(key: Any) -> Any:
    """Keys that would take long to hash (nested tuples, long integers of one remainder) stay outside."""
    short = isinstance(key, str | bytes | float | None) or (isinstance(key, int) and abs(key) < 2**60)
    return key if short else Other()


def _named(name: str) -> Other:
    if name not in _KNOWN:
        raise Forbidden(name)
    return Other(name)


def _storage(identity: Any) -> Storage:
    word, kind, key, _, count, *view = _expect(identity, tuple)
    if word != "storage":
        raise Malformed("refers to something that is no storage")
    dtype = _TYPES[_expect(kind, Other).name]
    first = 0
    if view and view[0] is not None:  # of files from before torch 0.4
        _, first, count = view[0]
    return Storage(_expect(key, str), dtype, _natural(first), _natural(count))


def _natural(value: Any) -> int:
    if not 0 <= _expect(value, int) < 2**63:
        raise Malformed("has a size below zero or beyond 64 bits")
    return value


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    """What the call of a known function describes."""
    if name == "collections.OrderedDict":
        # Python 2 pickled the pairs as an argument. Used up, they cannot be copied a million times over.
        pairs = _expect(arguments[0], list) if arguments else []
        made = {_as_key(key): value for key, value in pairs}
        pairs.clear()
        return made
    if name == _WITH_ATTRIBUTES:
        function, _, inner, *_ = arguments
        return _tensor(_expect(function, Other).name, _expect(inner, tuple))
    return _tensor(name, arguments)


def _tensor(name: str, arguments: tuple[Any, ...]) -> Any:
    function = name.removeprefix("torch._utils.")
    if function in _PARAMETERS:
        return arguments[0]
    if function not in _TENSORS:
        return Other(tensor=_UNUSABLE.get(function, ""))
    storage, first, size, stride, *rest = arguments
    dtype = _expect(storage, Storage).dtype
    if function == "_rebuild_tensor_v3":
        dtype = _TYPES[_expect(rest[2], Other).name]
        rest = rest[:2] + rest[3:]
    if rest[2:] and rest[2]:
        return Other(tensor="conjugated or negated")
    if len(_expect(size, tuple)) != len(_expect(stride, tuple)) or len(size) > MAX_DIMENSIONS:
        raise Malformed("has a tensor whose sizes and strides do not go together")
    size, stride = (tuple(map(_natural, numbers)) for numbers in (size, stride))
    return Claim(storage, dtype, _natural(first), size, stride)
