"""Files that are whole or absent, and what is read back is what was written."""

from __future__ import annotations

import hashlib
import json
import os

import pytest
import torch

from rift.checkpoint import file_digest, load_tensors, save_json, save_tensors, write_atomically
from rift.errors import UserError


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "value.json"
    save_json(path, {"a": 1})

    def half(partial):
        partial.write_text("{ half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, half)
    assert json.loads(path.read_text()) == {"a": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["value.json"]


def test_a_write_killed_before_the_rename_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights.safetensors"
    save_tensors(path, {"w": torch.ones(3)})

    def killed(descriptor):
        raise SystemExit("killed")

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(SystemExit):
        save_tensors(path, {"w": torch.zeros(3)})
    monkeypatch.undo()
    assert load_tensors(path)[0]["w"].tolist() == [1, 1, 1]


def test_data_reach_the_disk_before_the_name_does(tmp_path, monkeypatch):
    """The order that survives a power cut: contents, then name, then folder."""
    events = []
    real = os.fsync

    def fsync(descriptor):
        events.append(("sync", (tmp_path / "a.json").exists()))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    save_json(tmp_path / "a.json", [1])
    assert events == [("sync", False), ("sync", True)]


def test_json_refuses_what_json_cannot_say(tmp_path):
    with pytest.raises(ValueError):
        save_json(tmp_path / "a.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_tensors_of_every_kind_come_back_bit_for_bit(tmp_path):
    base = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    tensors = {
        "float": base,
        "channels_last": base.to(memory_format=torch.channels_last),
        "half": base.bfloat16(),
        "count": torch.tensor(7),
        "negative zero": torch.tensor([-0.0, 0.0]),
        "transposed": base[0, 0].t(),
        "shared": base[1:3],
        "bytes": torch.arange(4, dtype=torch.uint8),
        "empty": torch.empty(0, 3),
        "trained": torch.nn.Parameter(torch.ones(2)),
    }
    save_tensors(tmp_path / "t.safetensors", tensors, {"epoch": 3, "rows": [{"a": 0.1}], "none": None})
    found, note = load_tensors(tmp_path / "t.safetensors")
    assert note == {"epoch": 3, "rows": [{"a": 0.1}], "none": None}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name], tensor.detach())
    assert torch.signbit(found["negative zero"]).tolist() == [True, False]


def test_a_note_alone_is_enough(tmp_path):
    save_tensors(tmp_path / "t.safetensors", {}, [1, 2])
    assert load_tensors(tmp_path / "t.safetensors") == ({}, [1, 2])


@pytest.mark.parametrize("damage", ["missing", "empty", "text", "cut", "header"])
def test_a_damaged_file_is_one_sentence_with_the_remedy(tmp_path, damage):
    path = tmp_path / "t.safetensors"
    if damage != "missing":
        save_tensors(path, {"w": torch.ones(100)})
        whole = path.read_bytes()
        path.write_bytes(
            {"empty": b"", "text": b"not weights", "cut": whole[:-50], "header": b"\xff" * 8 + whole[8:]}[
                damage
            ]
        )
    with pytest.raises(UserError, match="delete its folder") as error:
        load_tensors(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_digest_is_sha256(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"rift" * 1000)
    assert file_digest(path) == hashlib.sha256(b"rift" * 1000).hexdigest()
