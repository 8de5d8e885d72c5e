"""Result folders: their names, completion, damage, resumption, and who may write."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from tiny_jobs import stage_folder

import rift
from rift.errors import UserError
from rift.resume_point import BEFORE, RESUME, read_resume_point
from rift.store import MANIFEST, StageFolder, Store, digest


def finished(root, **options):
    folder = stage_folder(root, **options)
    folder.load_resume_point()
    folder.add_row({"epoch": 1, "accuracy": 0.5})
    folder.save("weights", {"w": torch.arange(4.0)})
    folder.finish({"accuracy": 0.5})
    return folder


# -- keys ---------------------------------------------------------------------------------------------


def test_the_key_does_not_depend_on_the_order_of_options():
    first = {"a": 1, "b": {"x": [1, 2], "y": None}}
    second = {"b": {"y": None, "x": [1, 2]}, "a": 1}
    assert digest(first) == digest(second)
    assert len(digest(first)) == 16


def test_the_key_is_stable_across_versions():
    """A key that changed would make every user's results unfindable."""
    assert digest({"lr": 0.1, "name": "α"}) == "f8363bea9de28889"


@pytest.mark.parametrize(
    "other",
    [
        {"a": 2, "b": {"x": [1, 2]}},
        {"a": 1, "b": {"x": [2, 1]}},
        {"a": 1, "b": {"x": [1, 2], "y": None}},
        {"a": "1", "b": {"x": [1, 2]}},
        {"a": True, "b": {"x": [1, 2]}},
        {"a": 1.5, "b": {"x": [1, 2]}},
        {"b": {"x": [1, 2]}},
    ],
)
def test_any_other_option_makes_another_key(other):
    assert digest(other) != digest({"a": 1, "b": {"x": [1, 2]}})


def test_the_stage_is_part_of_the_key_and_the_name_is_not(tmp_path):
    store = Store(tmp_path)
    at = store.folder("at", "resnet18", {"lr": 0.1})
    assert at.path == tmp_path / "at" / f"resnet18-{at.key}"
    assert store.folder("mrc", "resnet18", {"lr": 0.1}).key != at.key
    assert store.folder("at", "another name", {"lr": 0.1}).key == at.key


def test_tuples_and_lists_are_the_same_options(tmp_path):
    """JSON knows no tuples; what is stored must compare equal to what was digested."""
    first = stage_folder(tmp_path, milestones=(1, 2))
    second = stage_folder(tmp_path, milestones=[1, 2])
    assert first.path == second.path


def test_a_number_without_json_form_is_refused(tmp_path):
    with pytest.raises(ValueError):
        Store(tmp_path).folder("at", "x", {"lr": float("inf")})


# -- completion ---------------------------------------------------------------------------------------


def test_the_manifest_is_the_completion_mark_and_comes_last(tmp_path, monkeypatch):
    folder = stage_folder(tmp_path, lr=0.1)
    assert not folder.finished
    folder.load_resume_point()
    folder.save_resume_point({"w": torch.ones(2)}, {"next_epoch": 1})
    folder.settle()
    assert not folder.finished

    import rift.store

    def killed(path, value):
        if path.name == MANIFEST:
            raise SystemExit("killed")
        real(path, value)

    real = rift.store.save_json
    monkeypatch.setattr(rift.store, "save_json", killed)
    with pytest.raises(SystemExit):
        folder.finish({"accuracy": 0.5})
    assert not folder.finished
    assert (folder.path / RESUME).is_file()  # so the next attempt goes on from there
    monkeypatch.undo()
    folder.finish({"accuracy": 0.5})
    assert folder.finished
    folder.verify()


def test_a_finished_folder_holds_what_the_manifest_says_and_no_resume_point(tmp_path):
    folder = stage_folder(tmp_path, lr=0.1)
    folder.load_resume_point()
    folder.save_resume_point({"w": torch.ones(2)}, {})
    folder.settle()
    (folder.path / ".best.safetensors.4711.partial").write_bytes(b"left by a killed process")
    folder.save("best", {"w": torch.ones(2)})
    folder.finish({"accuracy": 0.5})
    names = {path.name for path in folder.path.iterdir()}
    assert names == {"options.json", "result.json", "metrics.jsonl", "best.safetensors", MANIFEST}
    listed = json.loads((folder.path / MANIFEST).read_text())["files"]
    assert set(listed) == names - {MANIFEST}
    assert folder.result() == {"accuracy": 0.5}


@pytest.mark.parametrize("name", ["options.json", "result.json", "metrics.jsonl", "weights.safetensors"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "missing"])
def test_damage_to_any_file_is_named_with_the_remedy(tmp_path, name, damage):
    folder = finished(tmp_path)
    path = folder.path / name
    whole = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        whole[-2] ^= 1
        path.write_bytes(whole if damage == "flipped" else whole[:-1])
    with pytest.raises(UserError, match="delete that folder") as error:
        folder.verify()
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"files": 3}', "{}"])
def test_a_damaged_manifest_is_named(tmp_path, text):
    folder = finished(tmp_path)
    (folder.path / MANIFEST).write_text(text)
    with pytest.raises(UserError, match=MANIFEST):
        folder.verify()


def test_a_folder_of_other_options_is_never_written_into(tmp_path):
    folder = finished(tmp_path, lr=0.1)
    stored = json.loads((folder.path / "options.json").read_text())
    assert stored == {"stage": "stage", "lr": 0.1}
    (folder.path / "options.json").write_text(json.dumps(stored | {"lr": 0.2}))
    before = {path.name: path.read_bytes() for path in folder.path.iterdir()}
    with pytest.raises(UserError, match="other options"):
        folder.begin()
    assert {path.name: path.read_bytes() for path in folder.path.iterdir()} == before


def test_unreadable_options_are_one_sentence(tmp_path):
    folder = stage_folder(tmp_path, lr=0.1)
    (folder.path / "options.json").write_text("{ half")
    with pytest.raises(UserError, match=r"options\.json") as error:
        folder.begin()
    assert "\n" not in str(error.value)


# -- rows and resumption ------------------------------------------------------------------------------


def rows_on_disk(folder):
    return [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def test_rows_written_after_the_resume_point_are_taken_back(tmp_path):
    first = stage_folder(tmp_path)
    assert first.load_resume_point() is None
    first.add_row({"epoch": 1})
    first.save_resume_point({"w": torch.tensor([1.0, -0.0])}, {"next_epoch": 1})
    first.settle()
    first.add_row({"epoch": 2})  # killed before the resume point of this epoch
    assert rows_on_disk(first) == [{"epoch": 1}, {"epoch": 2}]

    second = stage_folder(tmp_path)
    told = []
    second.on_restored = told.extend
    tensors, note = second.load_resume_point()
    assert note == {"next_epoch": 1}
    assert torch.signbit(tensors["w"]).tolist() == [False, True]
    assert second.rows() == rows_on_disk(second) == told == [{"epoch": 1}]
    assert second.resumed
    second.add_row({"epoch": 2, "again": True})
    second.finish({})
    assert second.rows() == rows_on_disk(second) == [{"epoch": 1}, {"epoch": 2, "again": True}]


def test_rows_of_an_attempt_without_a_resume_point_are_dropped(tmp_path):
    first = stage_folder(tmp_path)
    first.load_resume_point()
    first.add_row({"epoch": 1})
    second = stage_folder(tmp_path)
    assert second.load_resume_point() is None
    assert second.rows() == rows_on_disk(second) == []
    assert not second.resumed


def test_a_line_cut_in_the_middle_does_no_harm(tmp_path):
    first = stage_folder(tmp_path)
    first.load_resume_point()
    first.add_row({"epoch": 1})
    first.save_resume_point({}, {})
    first.settle()
    with (first.path / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 2, "accu')
    second = stage_folder(tmp_path)
    second.load_resume_point()
    assert rows_on_disk(second) == [{"epoch": 1}]


def test_rows_of_a_finished_folder_are_read_from_it(tmp_path):
    finished(tmp_path)
    again = stage_folder(tmp_path)
    assert again.rows() == [{"epoch": 1, "accuracy": 0.5}]
    assert torch.equal(again.load("weights")["w"], torch.arange(4.0))


def three_points(tmp_path):
    folder = stage_folder(tmp_path)
    for step in range(3):
        folder.add_row({"step": step})
        folder.save_resume_point({"w": torch.full((50,), float(step)), "n": torch.tensor(step)}, {"at": step})
    folder.settle()
    return folder


def test_the_newest_point_is_used_and_the_one_before_is_kept(tmp_path):
    folder = three_points(tmp_path)
    tensors, note = stage_folder(tmp_path).load_resume_point()
    assert (tensors["w"].unique().tolist(), note) == ([2.0], {"at": 2})
    assert read_resume_point(folder.path)[1]["rows"] == [{"step": 0}, {"step": 1}, {"step": 2}]
    folder.path.joinpath(RESUME).unlink()
    again = stage_folder(tmp_path)
    tensors, note = again.load_resume_point()
    assert (tensors["w"].unique().tolist(), note) == ([1.0], {"at": 1})
    assert again.rows() == [{"step": 0}, {"step": 1}]


def test_every_flipped_bit_is_noticed_and_the_point_before_taken(tmp_path, caplog):
    folder = three_points(tmp_path)
    path = folder.path / RESUME
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        for bit in (1, 128):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ bit]) + whole[position + 1 :])
            tensors, note = stage_folder(tmp_path).load_resume_point()
            assert (tensors["w"].unique().tolist(), note) == ([1.0], {"at": 1}), (position, bit)
    assert "is damaged" in caplog.text and "computed anew" in caplog.text


@pytest.mark.parametrize("content", [b"", b"half a file", bytes(1000)])
def test_without_a_whole_point_it_begins_anew_and_says_so(tmp_path, caplog, content):
    folder = three_points(tmp_path)
    for name in (RESUME, BEFORE):
        (folder.path / name).write_bytes(content)
    again = stage_folder(tmp_path)
    assert again.load_resume_point() is None
    assert not again.resumed and again.rows() == []
    assert caplog.text.count("is damaged") == 2


def test_a_kill_between_the_mark_and_the_last_removal_leaves_nothing_for_ever(tmp_path, monkeypatch):
    folder = three_points(tmp_path)
    folder.save("weights", {"w": torch.ones(3)})
    with monkeypatch.context() as patch:
        patch.setattr(StageFolder, "tidy", lambda self: None)  # as if killed before it
        folder.finish({})
    assert (folder.path / RESUME).is_file() and folder.finished
    folder.verify()
    folder.tidy()
    assert {path.name for path in folder.path.iterdir()} == {
        "options.json", "result.json", "metrics.jsonl", "weights.safetensors", MANIFEST,
    }  # fmt: skip


@pytest.mark.parametrize("left_out", ["all", "weights.safetensors", "result.json"])
def test_a_manifest_that_does_not_vouch_for_everything_is_not_accepted(tmp_path, left_out):
    folder = finished(tmp_path)
    listed = json.loads((folder.path / MANIFEST).read_text())["files"]
    kept = {} if left_out == "all" else {name: sha for name, sha in listed.items() if name != left_out}
    (folder.path / MANIFEST).write_text(json.dumps({"files": kept}))
    with pytest.raises(UserError, match=r"manifest\.json is missing or damaged"):
        folder.verify()


# -- one writer ---------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from rift.store import Store
root = Path(sys.argv[1])
folder = Store(root).folder("stage", "tiny", {})
with folder.locked():
    (root / "held").touch()
    while not (root / "release").exists():
        time.sleep(0.01)
    (root / "released").touch()
"""


def test_a_second_process_waits_until_the_first_is_done(tmp_path, caplog):
    root = Path(rift.__file__).parents[1]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=root)
    try:
        wait_for(tmp_path / "held")
        folder = Store(tmp_path).folder("stage", "tiny", {})
        seen = []

        def second():
            with folder.locked():
                seen.append((tmp_path / "released").exists())

        waiting = threading.Thread(target=second)
        with caplog.at_level("INFO", logger="rift"):
            waiting.start()
            waiting.join(0.3)
            assert waiting.is_alive() and not seen
            (tmp_path / "release").touch()
            waiting.join(30)
        assert seen == [True], "the folder was entered while another process held it"
        assert f"process {holder.pid} on {platform.node()} since 20" in caplog.text
        assert "waiting for it" in caplog.text
    finally:
        (tmp_path / "release").touch()
        assert holder.wait(30) == 0


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    root = Path(rift.__file__).parents[1]
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], cwd=root)
    wait_for(tmp_path / "held")
    holder.kill()
    holder.wait()
    began = time.monotonic()
    with Store(tmp_path).folder("stage", "tiny", {}).locked():
        assert time.monotonic() - began < 5


def test_the_lock_is_not_part_of_the_result(tmp_path):
    folder = finished(tmp_path)
    with folder.locked():
        pass
    folder.verify()
    assert not any("lock" in path.name for path in folder.path.iterdir())


def wait_for(path, seconds=240):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never appeared"
        time.sleep(0.01)
