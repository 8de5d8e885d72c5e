"""Models that travel: what is exported, what is refused, and what a card may not do."""

from __future__ import annotations

import hashlib
import json
import os
import re
import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from report_samples import write
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_digits
from tiny_jobs import same_bits
from torch import nn

from rift import tracking
from rift.checkpoint import file_digest
from rift.data import DATASETS, load_dataset
from rift.errors import UserError
from rift.export import export_job, load_exported
from rift.export.__main__ import main
from rift.export.card import Network
from rift.export.measured_on import SPLITS, in_words, measured_on
from rift.models import build_model
from rift.store import MANIFEST, Store

ROOT = Path(__file__).resolve().parent.parent
NARROW = {"family": "resnet_small", "width": 4, "timm_name": None}
IMAGE_OPTIONS = {"dataset.mean": [0.3], "dataset.std": [0.38], "dataset.test_limit": None}
IMAGES = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def network_of(about, channels=1, size=8, classes=4):
    return Network(**about, num_classes=classes, in_channels=channels, image_size=size, mean=[0.3] * channels,
                   std=[0.4] * channels)  # fmt: skip


def finished(output: Path, stage: str, options, result, **weights) -> Path:
    """A result as a stage leaves it."""
    folder = Store(output / "store").folder(stage, "tiny", options)
    with folder.locked():
        folder.begin()
        for name, tensors in weights.items():
            folder.save(name, tensors)
        folder.finish(result)
    return folder.path


def made_up_job(
    output: Path, about=NARROW, channels=1, size=8, shaken=lambda network: network, classes="abcd", **changes
):
    """A finished job without training: two networks of random weights; its folder, θ_AT and θ*."""
    torch.manual_seed(0)
    described = network_of(about, channels, size, len(classes))
    options = {
        "num_classes": len(classes),
        "in_channels": channels,
        "image_size": size,
        "width": about["width"],
    }
    options |= {"timm_name": about["timm_name"], "mean": described.mean, "std": described.std}
    theta_at, theta_star = (shaken(build_model(about["family"], **options)).eval() for _ in range(2))
    data = {"name": "digits", "shape": [channels, size, size], "classes": list(classes)}
    data |= {"counts": {"train": 1438, "holdout": 0, "test": 359}, "sha256": {"train": "0", "test": "1"}}
    model = {"family": about["family"], "name": about["timm_name"], "width": about["width"]}
    decided = {"model": model, "data": data, "normalisation": [described.mean, described.std]}
    made = {"commit": "abc", "seconds": 7.0}
    at = finished(output, "at", decided, made, best=theta_at.state_dict(), last=theta_star.state_dict())
    rift = finished(output, "interpolate", {}, {"alpha": 0.6}, weights=theta_star.state_dict())
    splits = {f"stage.{stage}.selection_split": "holdout" for stage in ("at", "finetune", "interpolate")}
    full = {
        "key": "0123456789abcdef",
        "stages": {"at": str(at), "interpolate": str(rift)},
        "options": {"stage.at.select": "best", **splits, **IMAGE_OPTIONS},
        "provenance": {"command": "rift", "commit": None, "data": data},
    }
    write(output / "jobs" / "demo", "tiny-0123456789abcdef", **{**full, **changes})
    return output / "jobs" / "demo" / "tiny-0123456789abcdef", theta_at, theta_star


@pytest.fixture
def job(tmp_path, shaken):
    return made_up_job(tmp_path, shaken=shaken)


# -- what is exported -----------------------------------------------------------------------------------


def test_both_networks_come_back_bit_for_bit(job):
    folder, theta_at, theta_star = job
    assert main([str(folder / "summary.json")]) == 0
    for which, expected in (("at", theta_at), ("rift", theta_star)):
        network = load_exported(folder / "export", which)
        assert same_bits(network.state_dict(), expected.state_dict())
        assert torch.equal(network(IMAGES), expected(IMAGES))
    assert not same_bits(theta_at.state_dict(), theta_star.state_dict())


def test_the_card_says_what_it_is_and_where_it_comes_from(job):
    folder, *_ = job
    output = export_job(folder, licence="CC0-1.0")
    card = json.loads((output / "card.json").read_text())
    summary = json.loads((folder / "summary.json").read_text())
    for which, section in (("at", "at"), ("rift", "interpolate")):
        entry, store = card["weights"][which], Path(summary["stages"][section])
        assert entry["sha256"] == file_digest(output / entry["file"])
        assert (
            entry["sha256"] == json.loads((store / MANIFEST).read_text())["files"][Path(entry["result"]).name]
        )
        assert card["numbers"][which] == summary[which]
    assert card["numbers"]["attack"] == summary["attack"]
    assert card["chosen"] == {
        "theta_at": "best",
        "target": "least_critical",
        "modules": summary["target_modules"],
        "alpha": 0.6,
        "tolerance": summary["alpha_tolerance"],
        "splits": {"at": "holdout", "interpolate": "holdout"},
    }
    assert card["protocol"]["notes"] == summary["notes"]
    assert card["provenance"]["weights"]["at"] == {"commit": "abc", "seconds": 7.0}
    assert card["data"] == summary["provenance"]["data"] and card["licence"]["weights"] == "CC0-1.0"


def test_the_fields_of_the_card_are_documented(job):
    card = json.loads((export_job(job[0]) / "card.json").read_text())
    named = set(re.findall(r"`([\w.]+)`", (ROOT / "docs" / "export.md").read_text(encoding="utf-8")))
    words = {word for name in named for word in name.split(".")}
    assert {*card, *card["network"], *card["weights"]["at"], *card["chosen"], *card["numbers"]} <= words
    assert {*card["measured_on"]} <= words


def digest_of(images, labels):
    """As the page says."""
    return hashlib.sha256(images.tobytes() + labels.tobytes()).hexdigest()


def test_the_page_says_which_digits_were_measured_and_how_to_have_them(job):
    """Rebuilt here from the page's words, without rift."""
    text = (export_job(job[0]) / "README.md").read_text(encoding="utf-8")
    assert (
        "n counts images of the test split of digits, 359 in all: of the 1797 images of scikit-learn" in text
    )
    raw = load_digits()
    chosen = []
    for label in range(10):
        (members,) = (raw.target == label).nonzero()
        told = hashlib.sha256(f"str:digits test set\x1fint:{label}".encode()).digest()
        seed = int(bin(int.from_bytes(told, "big"))[2:].zfill(256)[:63], 2)
        order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed)).numpy()
        chosen += members[order][: round(len(members) / 5)].tolist()
    images = (raw.images[sorted(chosen)] * (255 / 16)).round().astype("uint8")[:, None]
    (call,) = re.findall(r"`rift\.data\.(load_dataset\(.*?\))\.test`", text)
    dataset = eval(call, {"load_dataset": load_dataset})
    expected = digest_of(images, raw.target[sorted(chosen)].astype("int64"))
    assert dataset.identity["sha256"]["test"] == expected and len(images) == 359
    assert digest_of(dataset.test.images.numpy(), dataset.test.labels.numpy()) == expected


def test_a_limit_of_the_test_images_is_said():
    data = {"name": "cifar10", "counts": {"test": 1000}, "sha256": {"test": "abc"}}
    options = {**IMAGE_OPTIONS, "dataset.test_limit": 1000}
    said = in_words(measured_on({"provenance": {"data": data}, "options": options}))
    assert "cifar10, 1000 in all: the official test batch, in its order; at most 1000 of them: the" in said
    assert "`abc`" in said and "std=[0.38], test_limit=1000).test`" in said
    assert set(SPLITS) == set(DATASETS)


def test_a_loaded_network_is_what_an_attack_expects(job):
    output = export_job(job[0])
    state = torch.random.get_rng_state()
    network = load_exported(output / "card.json")
    assert torch.equal(torch.random.get_rng_state(), state)  # nobody's random numbers are used up
    assert isinstance(network, nn.Module) and not any(module.training for module in network.modules())
    images = IMAGES.clone().requires_grad_()
    logits = network(images)
    assert logits.shape == (3, 4) and logits.dtype == torch.float32
    (gradient,) = torch.autograd.grad(logits.sum(), images)
    assert gradient.abs().sum() > 0
    assert torch.equal(network(IMAGES.to(memory_format=torch.channels_last)).argmax(1), logits.argmax(1))


NETWORKS = {
    "narrow": (NARROW, 1, 8),
    "torchvision": ({"family": "resnet18", "width": 64, "timm_name": None}, 3, 8),
    "one of timm's for any size": ({"family": "timm", "width": None, "timm_name": "test_resnet"}, 3, 32),
    "one of timm's for one size": ({"family": "timm", "width": None, "timm_name": "test_vit"}, 3, 32),
    "none of timm's": ({"family": "wrn28_10", "width": 1, "timm_name": None}, 3, 8),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_way_of_the_page_gives_the_same_logits(name, tmp_path, monkeypatch, shaken):
    about, channels, size = NETWORKS[name]
    folder, _, theta_star = made_up_job(tmp_path, about, channels, size, shaken, dataset="digits")
    output = export_job(folder, tmp_path / "out")
    blocks = code_of(output)
    assert len(blocks) == (1 if name == "none of timm's" else 3)
    images = torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(1))
    expected = theta_star(images)
    monkeypatch.chdir(output)
    for block in blocks[:2]:
        assert torch.equal(executed(block)["model"](images), expected), block
    for block in blocks[2:]:  # timm's checkpoints are for normalised images; the last line is another way
        first, second = (executed(text)["network"].eval() for text in (block.rsplit("\n", 2)[0], block))
        mean, std = (torch.tensor(second.pretrained_cfg[what]).view(-1, 1, 1) for what in ("mean", "std"))
        for network in (first, second):
            assert torch.equal(network((images - mean) / std), expected), block


def code_of(output: Path) -> list[str]:
    """The blocks of an export's page."""
    return re.findall(r"```python\n(.*?)```", (output / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def executed(code: str) -> dict:
    """The names that a block makes."""
    made: dict = {}
    exec(code, made)
    return made


def test_robustbench_gets_what_it_takes(job, monkeypatch):
    calls = []
    stand_in = ModuleType("robustbench.eval")  # the library itself is not needed
    stand_in.benchmark = lambda model, **options: calls.append((model, options))
    monkeypatch.setitem(sys.modules, "robustbench", ModuleType("robustbench"))
    monkeypatch.setitem(sys.modules, "robustbench.eval", stand_in)
    output = export_job(job[0])  # the made-up summary is of CIFAR-10
    monkeypatch.chdir(output)
    first, call = code_of(output)[:2]
    executed(first + call)
    ((model, options),) = calls
    assert options == {"dataset": "cifar10", "threat_model": "Linf", "eps": 8 / 255}
    assert isinstance(model, nn.Module) and not model.training
    assert torch.equal(model(IMAGES), job[2](IMAGES))


def test_torch_hub_finds_it(job):
    output = export_job(job[0])
    names = runpy.run_path(str(ROOT / "hubconf.py")).items()
    assert [name for name, value in names if callable(value) and name[0] != "_"] == ["rift_model"]
    network = torch.hub.load(str(ROOT), "rift_model", str(output), source="local", which="at")
    assert torch.equal(network(IMAGES), job[1](IMAGES))


def test_results_that_were_copied_with_their_job_are_found(job, tmp_path):
    there = tmp_path / "there"
    for part in ("store", "jobs"):
        shutil.move(tmp_path / part, there / part)
    assert load_exported(export_job(there / "jobs" / "demo" / job[0].name), "at")


def test_a_download_that_is_links_into_a_cache(job, tmp_path):
    (tmp_path / "snapshot" / "at").mkdir(parents=True)
    output = export_job(job[0])
    for file in ("card.json", "at/model.safetensors"):
        (tmp_path / "snapshot" / file).symlink_to(output / file)
    for where in (tmp_path / "snapshot", tmp_path / "snapshot" / "card.json"):
        assert same_bits(load_exported(where, "at").state_dict(), job[1].state_dict())
    (output / "card.json").unlink()
    (output / "card.json").symlink_to(tmp_path / "snapshot" / "card.json")  # and back, for ever
    with pytest.raises(UserError, match="link"):
        load_exported(output)


def test_theta_at_alone(tmp_path):
    folder, theta_at, _ = made_up_job(tmp_path)
    summary = json.loads((folder / "summary.json").read_text())
    del summary["stages"]["interpolate"], summary["rift"]
    (folder / "summary.json").write_text(json.dumps(summary))
    output = export_job(folder)
    assert not (output / "rift").exists()
    assert same_bits(load_exported(output, "at").state_dict(), theta_at.state_dict())
    with pytest.raises(UserError, match="no network 'rift'"):
        load_exported(output)


def test_an_export_is_written_anew_over_its_own(job):
    first = {path: path.read_bytes() for path in export_job(job[0]).rglob("*.safetensors")}
    (job[0] / "export" / "README.md").unlink()
    (job[0] / "export" / "card.json").unlink()  # as a kill leaves it
    assert {path: path.read_bytes() for path in export_job(job[0]).rglob("*.safetensors")} == first
    assert export_job(job[0]) == job[0] / "export"


# -- what is refused ------------------------------------------------------------------------------------


def refused(capsys, *arguments) -> str:
    """The one sentence with which the command ends."""
    assert main([str(argument) for argument in arguments]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and said.endswith(".\n")
    return said


@pytest.mark.parametrize("state", ["running", "failed", "stopped"])
def test_an_unfinished_job(job, capsys, state):
    (job[0] / "state.json").write_text(json.dumps({"state": state}))
    assert "is not finished" in refused(capsys, job[0])
    assert not (job[0] / "export").exists()


def test_no_job(tmp_path, capsys):
    assert "no job's folder" in refused(capsys, tmp_path / "nowhere")


@pytest.mark.parametrize("file", ["best.safetensors", "options.json"])
def test_files_that_the_manifest_does_not_vouch_for(job, capsys, file):
    path = Path(json.loads((job[0] / "summary.json").read_text())["stages"]["at"]) / file
    path.write_bytes(path.read_bytes().replace(b'"size"', b'"Size"') + b"\n")
    assert "damaged" in refused(capsys, job[0])
    assert not (job[0] / "export").exists()


def test_a_result_that_is_gone(job, capsys):
    shutil.rmtree(json.loads((job[0] / "summary.json").read_text())["stages"]["interpolate"])
    assert "missing or unfinished" in refused(capsys, job[0])


def test_a_summary_of_something_else(job, capsys):
    (job[0] / "summary.json").write_text("{}")
    assert "not what this version of rift writes" in refused(capsys, job[0])


@pytest.mark.parametrize("name", ["thesis.tex", "README.md", "at/thesis.tex"])
def test_a_folder_with_something_else(job, capsys, tmp_path, name):
    (tmp_path / "mine" / "at").mkdir(parents=True)
    (tmp_path / "mine" / name).write_text("years of work")
    assert "holds something else" in refused(capsys, job[0], "--output", tmp_path / "mine")
    assert (tmp_path / "mine" / name).read_text() == "years of work"


def test_a_folder_with_the_export_of_another_job(job, capsys, tmp_path):
    other, *_ = made_up_job(tmp_path / "other", key="fedcba9876543210")
    before = file_digest(export_job(other, tmp_path / "out") / "card.json")
    assert "of another job" in refused(capsys, job[0], "--output", tmp_path / "out")
    assert file_digest(tmp_path / "out" / "card.json") == before


# -- cards that are not to be trusted -------------------------------------------------------------------

HOSTILE = {
    "another version": {"format": 2},
    "no weights": {"weights": None},
    "no digest": {"weights": {"rift": {}}},
    "a wrong digest": {"weights": {"rift": {"sha256": "0" * 64}}},
    "no network": {"network": []},
    "an unknown family": {"family": "os.system"},
    "a family that is no word": {"family": ["resnet18"]},
    "a network from the hub": {"family": "timm", "timm_name": "hf-hub:somebody/something", "width": None},
    "a network of timm without a name": {"family": "timm", "timm_name": None, "width": None},
    "an absurd width": {"width": 10**9},
    "a width that fills the memory": {"width": 4096},
    "an odd width": {"width": 5},
    "no integer": {"num_classes": True},
    "no classes": {"num_classes": 0},
    "endless images": {"image_size": 10**400},
    "an infinite mean": {"mean": [float("inf")]},
    "a mean beyond floats": {"mean": [10**400]},
    "no mean": {"mean": "0.5"},
    "a mean for other channels": {"mean": [0.5, 0.5]},
    "no deviation": {"std": [0.0]},
    "other classes": {"num_classes": 5},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_card_is_one_sentence(job, name):
    output = export_job(job[0])
    card = json.loads((output / "card.json").read_text())
    for field, value in HOSTILE[name].items():
        (card if field in card else card["network"])[field] = value
    (output / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError) as told:
        load_exported(output)
    said = str(told.value)
    assert str(output) in said and said.endswith(".") and len(said) < 600


def test_files_that_are_no_card_or_no_weights(job, tmp_path):
    output = export_job(job[0])
    with pytest.raises(UserError, match="missing"):
        load_exported(tmp_path / "nowhere")
    with pytest.raises(UserError, match="ask for"):
        load_exported(output, "best")
    (output / "rift" / "model.safetensors").unlink()
    os.mkfifo(output / "rift" / "model.safetensors")  # nobody waits for it
    with pytest.raises(UserError, match="no plain file"):
        load_exported(output)
    (output / "card.json").write_text("[" * 10**5)
    with pytest.raises(UserError, match="not JSON"):
        load_exported(output)


def test_weights_of_another_type_are_refused(job):
    output = export_job(job[0])
    path = output / "rift" / "model.safetensors"
    save_file({name: tensor.double() for name, tensor in load_file(path).items()}, path)
    card = json.loads((output / "card.json").read_text())
    card["weights"]["rift"]["sha256"] = file_digest(path)
    (output / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match=r"as torch\.float64"):
        load_exported(output)


# -- W&B ------------------------------------------------------------------------------------------------


def test_a_failing_wandb_loses_nothing(job, capsys, monkeypatch):
    logger = {"name": "none", "mode": "offline", "project": "rift", "entity": None, "tags": []}
    (job[0] / "config.json").write_text(json.dumps({"logger": logger}))

    def start(*arguments):
        raise RuntimeError("the disk is full\nand more")

    monkeypatch.setattr(tracking, "_start", start)
    assert main([str(job[0]), "--artifact"]) == 0
    out, err = capsys.readouterr()
    assert out.strip() == str(job[0] / "export")
    assert "the export is whole in" in err and "Traceback" not in err
    assert load_exported(job[0] / "export")
