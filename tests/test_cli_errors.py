"""Bad input at the command line: one sentence with the remedy, exit code 2, no traceback."""

from __future__ import annotations

import os
import subprocess

import pytest
import torch
from safetensors.torch import save_file
from tiny_jobs import TINY, command, subprocess_arguments, tiny_config

from rift.assembly import make_runtime, make_session
from rift.launchers import has_slurm_extra


def sentence(captured: str) -> str:
    """The one line that the user is to read, without `rift: error: `."""
    errors = [line for line in captured.splitlines() if line.startswith("rift: error: ")]
    assert len(errors) == 1, captured
    assert captured.splitlines()[-1] == errors[0], "something follows the error"
    assert "Traceback" not in captured
    return errors[0].removeprefix("rift: error: ")


def refused(capsys, *arguments: str) -> str:
    """Runs the command in this process; what it says as it refuses."""
    assert command(*arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.out
    return sentence(captured.err)


# -- in a process of its own: what users see ------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=resnet19"], ["model=resnet19 is no choice", "did you mean 'resnet18'"]),
        (["stage.at.epoch=3"], ["no option 'stage.at.epoch'", "did you mean 'epochs'"]),
        (
            ["dataset=cifar10", "dataset.root={tmp}/nowhere", "logger=none"],
            ["/nowhere", "dataset.download=true"],
        ),
    ],
)
def test_as_a_process(tmp_path, arguments, words):
    typed = [text.format(tmp=tmp_path) for text in arguments]
    options = subprocess_arguments(*typed, f"output={tmp_path}/out")
    done = subprocess.run(**options, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert all(word in sentence(done.stderr) for word in words)
    assert not any(path.is_file() for path in tmp_path.rglob("*")), "something was written all the same"


# -- while composing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["dataset=cifar"],
            ["dataset=cifar is no choice of the group dataset", "'cifar10'", "tiny_imagenet"],
        ),
        (["stage=train"], ["stage=train is no choice", "from_checkpoint"]),
        (["smoke=maybe"], ["smoke=maybe is no choice", "false, true"]),
        (["attack@evaluation_attack=pgd30"], ["pgd30 is no choice", "pgd20"]),
        (["protocol=offical"], ["did you mean 'official'"]),
        (["experiment=table9"], ["experiment=table9 is no choice", "table1"]),
        (["modle=resnet18"], ["'modle'", "did you mean 'model'"]),
        (["stage.finetune.learning_rate=0.1"], ["'stage.finetune.learning_rate'", "lr"]),
        (["attack.eps=8/255"], ["'attack.eps'", "epsilon"]),
        (["sed=3"], ["'sed'", "'seed'"]),
        (["stage.at.epochs=many"], ["stage.at.epochs=many", "Integer", "give a value of that type"]),
        (["dataset.flip=perhaps"], ["dataset.flip=perhaps", "bool"]),
        (["stage.at.milestones=5"], ["stage.at.milestones"]),
        (["seed=null"], ["seed"]),
        (["attack.epsilon=lots"], ["attack.epsilon=lots is no number", "8/255"]),
        (["+stage.at.epoch=3"], ["epoch"]),
        (["+colour=red"], ["colour"]),
        (["dataset=digits", "model=timm"], ["model=timm needs the network's name", "model.name=resnet50"]),
        (["dataset=image_folder"], ["dataset.root has no value", "dataset.root=VALUE"]),
        (["stage=options"], ["stage=options is no choice", "from_checkpoint"]),
        (["stage.finetune.lr=0.1,0.01"], ["stage.finetune.lr", "-m"]),
        (["seed=[1"], ["cannot be parsed at 'seed=[1'", "close what is opened"]),
        (["resnet18"], ["cannot be parsed", "option=value"]),
        (["attack=same"], ["attack.norm refers to itself"]),
        (["stage.mrc.split=holdout"], ["needs held-out images", "protocol=holdout"]),
        (["dataset=digits", "runtime.device=cuda:99"], ["runtime.device=cuda:99", "runtime.device=auto"]),
        (["dataset=digits", "runtime.device=gpu"], ["runtime.device=gpu is no device", "cuda"]),
        (["smoke=1"], ["smoke=1 is no choice of the group smoke", "false, true"]),
        (["model=18"], ["model=18 is no choice of the group model", "resnet18"]),
        (["model=null"], ["model=null is no choice", "leave it out"]),
        (["attack=null"], ["attack=null is no choice", "leave it out"]),
        (["model=resnet50"], ["model=resnet50 is no choice", "model=timm model.name=resnet50"]),
        (["evaluation_attack=pgd20"], ["say attack@evaluation_attack=pgd20"]),
        pytest.param(
            ["hydra/launcher=submitit_slurm"],
            ["install its extra", "'.[slurm]'"],
            marks=pytest.mark.skipif(has_slurm_extra(), reason="waits for an environment without it"),
        ),
        (["stage.run=at"], ["say 'stage.run=[at]'"]),
        (["dataset.root=/tmp/Ünï[1]"], ["""quote it twice""", """'dataset.root="/tmp/Ünï[1]"'"""]),
        (["model.name=resnet50"], ["model.name=resnet50 would not change the network", "model=timm"]),
        (["=3"], ["'=3' names no option", "option=value"]),
        (["stage=[mrc,at]"], ["names several choices of a group", "stage.run=[at,mrc]"]),
        (["attack.step_size=0"], ["attack.step_size=0 attacks nothing"]),
        (["stage.evaluate.severities=[1,1]"], ["severities=[1, 1] names one twice"]),
        (["attack.name=autoattack"], ["there is no option 'attack.name'"]),
    ],
)
def test_a_mistake_in_the_command(capsys, tmp_path, arguments, words):
    said = refused(capsys, *arguments, "logger=none", f"output={tmp_path}/out")
    assert not [word for word in words if word not in said], said
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").rglob("*.json"))


def test_a_sweep_that_cannot_begin_is_refused_as_a_whole(capsys):
    assert "-m is for many" in refused(capsys, "-m", "--cfg", "job")


def test_an_output_that_cannot_be_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    for output in (f"{tmp_path}/file", "/proc/x", "/dev/null/x"):
        said = refused(capsys, *TINY, f"output={output}")
        assert said.startswith(f"{output} cannot be written or read (") and "another output=FOLDER" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="waits for root, who may mount a small file system")
@pytest.mark.parametrize(
    ("kind", "words"),
    [("size=200k", "GiB free, and this job needs about"), ("size=1m,ro", "read-only file system")],
)
def test_a_full_or_read_only_disk(capsys, tmp_path, kind, words):
    command_line = ["mount", "-t", "tmpfs", "-o", kind, "tmpfs", str(tmp_path)]
    mounted = subprocess.run(command_line, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("waits for a machine where a small file system can be mounted")
    try:
        said = refused(capsys, *TINY, "stage=at", f"output={tmp_path}/out")
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
    assert words in said and "another output=FOLDER" in said
    assert ("make room" in said) == (kind == "size=200k")


# -- inputs ---------------------------------------------------------------------------------------------


def tiny(capsys, tmp_path, *arguments: str) -> str:
    return refused(capsys, *TINY, f"output={tmp_path}/out", *arguments)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stage=mrc"], ["no finished 'at' result", "stage=at", "model.checkpoint=PATH"]),
        (["stage=evaluate"], ["no finished 'at' result", "stage=at"]),
        (["model.checkpoint=/nonexistent/w.pt", "stage=mrc"], ["/nonexistent/w.pt"]),
        (["model=timm", "model.width=null", "model.name=resnet26x"], ["resnet26x"]),
        (["dataset.train_limit=5"], ["dataset.train_limit=5", "10 classes"]),
        (["dataset.mean=[0.1,0.2,0.3]"], ["dataset.mean", "one number per channel"]),
        (["stage=at", "stage.at.optimizer=sgdd"], ["stage.at.optimizer=sgdd"]),
        (["stage=at", "stage.at.schedule=stairs"], ["stage.at.schedule=stairs is not known"]),
        (["method.name=trade"], ["method.name=trade is not known", "pgd_at"]),
    ],
)
def test_an_input_that_is_not_there(capsys, tmp_path, arguments, words):
    said = tiny(capsys, tmp_path, *arguments)
    assert not [word for word in words if word not in said], said


def test_an_unknown_module_to_fine_tune(capsys, tmp_path):
    arguments = "stage.run=[at,finetune]", "stage.at.epochs=1", "stage.finetune.target=layer2.9.conv1"
    said = tiny(capsys, tmp_path, *arguments)
    assert "layer2.9.conv1 is no module of this network: did you mean 'layer2.0.conv1'" in said


@pytest.fixture(scope="module")
def state():
    """Weights that fit the tiny network."""
    config = tiny_config()
    return make_session(config, make_runtime(config)).new_network().state_dict()


def pickled(value, path):
    torch.save(value, path)


def two_classes(state, path):
    save_file(
        {n: v[:2].contiguous() if n.startswith("fc.") else v.contiguous() for n, v in state.items()}, path
    )


def cut_off(state, path):
    save_file({name: value.contiguous() for name, value in state.items()}, path)
    path.write_bytes(path.read_bytes()[:-100])


def text(state, path):
    path.write_text("no weights at all")


def other_network(state, path):
    save_file({"layer.weight": torch.ones(2, 2)}, path)


def not_a_number(state, path):
    spoilt = {name: value.contiguous() for name, value in state.items()}
    spoilt["conv1.weight"] = spoilt["conv1.weight"] * float("nan")
    save_file(spoilt, path)


class Evil:
    """A pickle that would run a command."""

    def __reduce__(self):
        import os

        return os.system, ("touch /tmp/rift-was-here",)


def dangerous(state, path):
    torch.save({"state_dict": Evil()}, path)


@pytest.mark.parametrize(
    ("name", "make", "words"),
    [
        ("w.safetensors", two_classes, ["2", "10", "classes"]),
        ("w.safetensors", cut_off, ["w.safetensors"]),
        ("w.pt", text, ["w.pt"]),
        ("w.safetensors", other_network, ["does not fit the model"]),
        ("w.safetensors", not_a_number, ["conv1.weight"]),
        ("w.pt", dangerous, ["system"]),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_checkpoint_that_cannot_be_used(capsys, tmp_path, state, name, make, words):
    make(state, tmp_path / name)
    said = tiny(capsys, tmp_path, f"model.checkpoint={tmp_path / name}", "stage=mrc")
    assert str(tmp_path / name) in said
    assert not [word for word in words if word not in said], said


# -- results that were damaged --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    output = tmp_path_factory.mktemp("trained")
    assert command(*TINY, "stage=at", "stage.at.epochs=1", f"output={output}") == 0
    (folder,) = (path for path in output.glob("store/at/*") if path.is_dir())
    return output, folder


@pytest.mark.parametrize("name", ["best.safetensors", "result.json", "options.json", "manifest.json"])
def test_a_damaged_result_is_named_with_the_remedy(capsys, trained, name):
    output, folder = trained
    whole = (folder / name).read_bytes()
    try:
        (folder / name).write_bytes(whole[: len(whole) // 2])
        said = refused(capsys, *TINY, "stage=mrc", "stage.at.epochs=1", f"output={output}")
    finally:
        (folder / name).write_bytes(whole)
    assert f"{folder / name} is missing or damaged: delete that folder" in said


def test_damaged_options_are_named_with_the_remedy(capsys, trained, tmp_path):
    _, folder = trained
    unfinished, name = tmp_path / "out" / "store" / "at" / folder.name, "options.json"
    unfinished.mkdir(parents=True)
    (unfinished / name).write_bytes(b"half")
    said = refused(capsys, *TINY, "stage=at", "stage.at.epochs=1", f"output={tmp_path}/out")
    assert str(unfinished / name) in said
    assert "delete" in said and "again" in said


def test_help_is_on_standard_output(capsys):
    assert command("--help") == 0
    printed = capsys.readouterr().out
    assert "rift experiment=demo" in printed and "$(rift -sc install=bash)" in printed
    assert "protocol: holdout, official, paper" in printed
