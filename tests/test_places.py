"""What is not there is refused before torch is imported, in the readers' own words."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from tiny_jobs import command, subprocess_arguments, tiny_config
from torchvision.datasets import CIFAR10, CIFAR100

from rift.data.cifar import read_cifar10
from rift.data.image_folder import read_image_folder
from rift.data.tiny_imagenet import read_tiny_imagenet
from rift.errors import UserError
from rift.models.checkpoint_file import read_state_dict
from rift.places import FOLDERS, check_places

WITHOUT_TORCH = """
import json, sys

class Refused:
    def find_spec(self, name, path=None, target=None):
        assert name != "torch", "torch is imported"

sys.meta_path.insert(0, Refused())
from hydra.core.global_hydra import GlobalHydra
from rift.main import main
for words in json.loads(sys.argv[1]):
    sys.argv[1:] = words
    GlobalHydra.instance().clear()
    try:
        main()
    except SystemExit as left:
        print(left.code)
"""


def test_it_takes_no_torch(tmp_path):
    commands = [
        ["dataset.root=/nowhere"],
        ["--check", "dataset.root=/nowhere", "dataset.download=true"],
        ["-m", "dataset.root=/nowhere,/elsewhere"],
        ["experiment=demo", "model.checkpoint=/nowhere.pt"],
    ]
    typed = json.dumps([[*words, "logger=none", f"output={tmp_path}/out"] for words in commands])
    given = subprocess_arguments() | {"args": [sys.executable, "-c", WITHOUT_TORCH, typed]}
    done = subprocess.run(**given, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr and done.stdout.split("\n")[0] == "2"
    said = [line for line in done.stderr.splitlines() if line.startswith("rift: error: ")]
    assert len(said) == 5, done.stderr
    assert "cifar10 was not found at /nowhere/cifar-10-batches-py" in said[0]
    assert "--check downloads nothing, so it ends here: cifar10 was not found" in said[1]
    assert "job #0: " in said[2] and "/nowhere/" in said[2] and "job #1: " in said[3] and "/else" in said[3]
    assert "There is no file at /nowhere.pt: set model.checkpoint" in said[4]
    assert not list(tmp_path.rglob("*.json"))


@pytest.mark.parametrize(
    ("name", "read", "there"),
    [
        ("cifar10", read_cifar10, []),
        ("tiny_imagenet", read_tiny_imagenet, []),
        ("image_folder", read_image_folder, []),
        ("image_folder", read_image_folder, ["train/a", "train/b"]),
    ],
)
def test_the_readers_say_the_same(tmp_path, name, read, there):
    for folder in there:
        (tmp_path / folder).mkdir(parents=True)
    with pytest.raises(UserError) as early:
        check_places(tiny_config(f"dataset.name={name}", f"dataset.root={tmp_path}"))
    with pytest.raises(UserError) as late:
        read(tmp_path, download=False, image_size=None, cache=tmp_path)
    assert str(early.value) == str(late.value) and f"{name} was not found at {tmp_path}" in str(late.value)


@pytest.mark.parametrize("kind", ["nothing", "folder", "empty", "page"])
def test_so_does_the_reader_of_checkpoints(tmp_path, kind):
    path = tmp_path / "w.pt"
    if kind == "folder":
        path.mkdir()
    elif kind != "nothing":
        path.write_bytes(b"<html>" if kind == "page" else b"")
    with pytest.raises(UserError) as early:
        check_places(tiny_config(f"model.checkpoint={path}"))
    with pytest.raises(UserError) as late:
        read_state_dict(path)
    assert str(early.value) == str(late.value) and str(path) in str(late.value)


def test_the_folders_are_torchvision_s():
    assert FOLDERS["cifar10"][0] == (CIFAR10.base_folder,) and FOLDERS["cifar100"][0] == (
        CIFAR100.base_folder,
    )


def test_what_is_to_be_fetched_or_has_no_folder_is_let_through(tmp_path):
    check_places(tiny_config("dataset.name=cifar10", "dataset.root=/nowhere", "dataset.download=true"))
    check_places(tiny_config("dataset.root=/nowhere"))  # the digits are embedded


def test_a_mistake_in_the_options_comes_before_a_missing_folder(capsys, tmp_path):
    assert command("dataset.root=/nowhere", "stage.at.lr=-1", f"output={tmp_path}/out") == 2
    assert "stage.at.lr" in capsys.readouterr().err
