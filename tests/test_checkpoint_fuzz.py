"""Any bytes at all under the name of a file that we read: a result or one sentence, never another error."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch
from hostile_checkpoints import archive, program
from safetensors.torch import save_file

from rift.checkpoint import load_tensors, save_tensors
from rift.errors import UserError
from rift.models.checkpoint_file import read_state_dict

hypothesis = pytest.importorskip("hypothesis")
from hypothesis import strategies as st  # noqa: E402

TENSORS = {"w": torch.ones(3, 2), "n": torch.arange(3), "h": torch.ones(2).bfloat16(), "e": torch.empty(0, 3)}
KINDS = ["own.safetensors", "foreign.safetensors", "zip.pt", "row.pt"]
# The same examples each time, and few: bits are flipped one by one in a test of their own.
few = hypothesis.settings(derandomize=True, deadline=None, database=None, max_examples=100)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("fuzz")


@pytest.fixture(scope="module")
def wholes(folder):
    """By kind: the bytes of a sound file."""
    save_tensors(folder / KINDS[0], TENSORS, {"epoch": 3, "rows": [1.5, None]})
    save_file(TENSORS, folder / KINDS[1])
    torch.save({"epoch": 3, "net": TENSORS}, folder / KINDS[2])
    torch.save({"epoch": 3, "net": TENSORS}, folder / KINDS[3], _use_new_zipfile_serialization=False)
    return {kind: (folder / kind).read_bytes() for kind in KINDS}


def outcome(folder, kind, content):
    """Reads `content` as a file of that kind: "read" or "refused"; any other error is the test's."""
    path = folder / f"damaged-{kind}"
    path.write_bytes(content)
    try:
        if kind.startswith("own"):
            tensors, note = load_tensors(path)
            json.dumps(note, allow_nan=False)
        else:
            tensors, notes = read_state_dict(path)
            assert all(note.isprintable() for note in notes)
        for tensor in tensors.values():
            assert tensor.numel() * tensor.element_size() <= len(content)
            tensor.clone()
    except UserError as error:
        said = str(error)
        assert said.isprintable() and said.endswith(".") and len(said) < 1000
        return "refused"
    return "read"


@pytest.mark.parametrize("kind", KINDS)
def test_every_single_bit_of_the_part_that_describes(folder, wholes, kind):
    whole = wholes[kind]
    # A header, and some of all that follows.
    places = [*range(120), *range(120, len(whole), 7)]
    outcomes = set()
    for place in places:
        for bit in range(0, 8, 1 if place < 120 else 3):
            if place < len(whole):
                damaged = bytearray(whole)
                damaged[place] ^= 1 << bit
                outcomes.add(outcome(folder, kind, damaged))
    assert outcomes == {"read", "refused"}


@pytest.mark.parametrize("kind", KINDS)
@few
@hypothesis.given(data=st.data())
def test_bytes_changed_moved_and_cut(folder, wholes, kind, data):
    damaged = bytearray(wholes[kind])
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(damaged)))
        until = min(len(damaged), at + data.draw(st.integers(0, 40)))
        damaged[at:until] = data.draw(st.binary(max_size=12))
    outcome(folder, kind, bytes(damaged))


@pytest.mark.parametrize("kind", KINDS)
@few
@hypothesis.given(content=st.binary(max_size=400))
def test_random_bytes(folder, kind, content):
    outcome(folder, kind, content)


NUMBERS = st.one_of(
    st.integers(-3, 9), st.integers(-(2**65), 2**65), st.floats(), st.none(), st.text(max_size=3)
)
TYPES = st.sampled_from(
    [
        "F64",
        "F32",
        "F16",
        "BF16",
        "I64",
        "I8",
        "U8",
        "BOOL",
        "F4",
        "F6_E2M3",
        "F8_E4M3",
        "F8_E8M0",
        "C64",
        "X",
    ]
)
ENTRY = st.fixed_dictionaries(
    {
        "dtype": TYPES,
        "shape": st.lists(NUMBERS, max_size=4),
        "data_offsets": st.lists(NUMBERS, min_size=2, max_size=2),
    }
)
NOTE = st.one_of(
    st.text(max_size=20), st.sampled_from(["NaN", "[" * 100_000, "1" * 5000, "-Infinity"]), NUMBERS
)
HEADER = st.dictionaries(st.text(max_size=5), ENTRY, max_size=3)


@pytest.mark.parametrize("kind", KINDS[:2])
@few
@hypothesis.given(header=HEADER, note=NOTE, body=st.binary(max_size=64))
def test_headers_that_are_json(folder, kind, header, note, body):
    content = json.dumps(header | {"__metadata__": {"note": note}}).encode()
    outcome(folder, kind, struct.pack("<Q", len(content)) + content + body)


@few
@hypothesis.given(
    steps=st.lists(
        st.sampled_from(
            [
                b"}",
                b"]",
                b")",
                b"(",
                b"N",
                b"K\x01",
                b"t",
                b"\x85",
                b"\x86",
                b"s",
                b"u",
                b"a",
                b"e",
                b"R",
                b"b",
                b"Q",
                b"q\x00",
                b"h\x00",
                b"X\x01\x00\x00\x00w",
                b"ccollections\nOrderedDict\n",
                b"ctorch\nFloatStorage\n",
                b"ctorch._utils\n_rebuild_tensor_v2\n",
                b"ctorch._utils\n_rebuild_parameter\n",
                b"ctorch\nfloat16\n",
                b"ctorch._tensor\n_rebuild_from_type_v2\n",
                b"X\x07\x00\x00\x00storage",
            ]
        ),
        max_size=30,
    )
)
def test_pickles_of_steps_that_are_known(folder, steps):
    archive(folder / "made.pt", program(*steps)).close()
    outcome(folder, "zip.pt", (folder / "made.pt").read_bytes())


@pytest.mark.parametrize(
    "header",
    [
        {"__metadata__": {"note": "[" * 100_000}},
        {"__metadata__": {"note": "NaN"}},
        {"__metadata__": {"note": 3}},
        {"__metadata__": {"note": "1" * 5000}},
        {"w": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}},
    ],
)
def test_headers_that_were_tracebacks_or_notes_that_we_never_write(folder, header):
    content = json.dumps(header).encode()
    assert outcome(folder, "own.safetensors", struct.pack("<Q", len(content)) + content) == "refused"


def test_a_pipe_is_not_waited_for(folder):
    os.mkfifo(folder / "resume.safetensors")
    with pytest.raises(UserError, match="no such file"):
        load_tensors(folder / "resume.safetensors")
