"""Anyone's weights: what is the same network under other names loads bit for bit, all else is refused."""

from __future__ import annotations

import argparse
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from rift.errors import UserError
from rift.models import build_model, load_foreign_checkpoint

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)


def build(name="resnet_small", seed=0, num_classes=10, width=None):
    torch.manual_seed(seed)
    width = width or (2 if name == "wrn34_10" else 4)
    model = build_model(name, num_classes=num_classes, mean=MEAN, std=STD, width=width)
    # Statistics and counters that differ from a new network's, so that they show whether they were loaded.
    for key, buffer in model.state_dict().items():
        if key.endswith("num_batches_tracked"):
            buffer.fill_(17 + seed)
        elif "running" in key:
            buffer.uniform_(0.5, 1.5)
    return model


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def prefixed(prefix, state):
    return {prefix + name: value for name, value in state.items()}


def renamed(state, **names):
    return {
        ".".join(names.get(part, part) for part in name.split(".")): value for name, value in state.items()
    }


def assert_loads(path, name="resnet_small", **changed):
    """Loads into a network with other weights; every entry then equals the source's, or `changed`."""
    source, model = weights(build(name)), build(name, seed=1)
    parameters = dict(model.named_parameters())
    notes = load_foreign_checkpoint(model, path)
    assert all(parameter is parameters[n] for n, parameter in model.named_parameters())
    for key, value in model.state_dict().items():
        expected = changed.get(key.rpartition(".")[2], source[key])
        assert torch.equal(value, torch.as_tensor(expected)), key
    assert all(note.endswith(".") and "\n" not in note for note in notes)
    return notes


def assert_refused(path, *said, model=None):
    model = model or build(seed=1)
    before = weights(model)
    with pytest.raises(UserError) as refusal:
        load_foreign_checkpoint(model, path)
    message = str(refusal.value)
    assert all(words in message for words in (*said, str(path))), message
    assert message.endswith(".") and "\n" not in message and ". " not in message
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def saved(tmp_path, content):
    path = tmp_path / "weights.pt"
    torch.save(content, path)
    return path


def test_own_names_load_without_a_word(tmp_path):
    assert assert_loads(saved(tmp_path, weights(build()))) == []
    path = tmp_path / "weights.safetensors"
    save_file(weights(build()), path)
    assert assert_loads(str(path)) == []


@pytest.mark.parametrize("key", ["state_dict", "model", "net", "model_state_dict"])
def test_weights_under_a_key(tmp_path, key):
    content = {"epoch": 3, "best": torch.tensor(0.5), key: weights(build()), "optimizer": {"state": {}}}
    (note,) = assert_loads(saved(tmp_path, content))
    assert note == f"Took the weights under '{key}' and left aside 'epoch', 'best', 'optimizer'."


def test_weights_under_two_keys_in_turn(tmp_path):
    notes = assert_loads(saved(tmp_path, {"model": {"state_dict": weights(build()), "name": "x"}}))
    assert notes == [
        "Took the weights under 'model'.",
        "Took the weights under 'state_dict' and left aside 'name'.",
    ]


def test_what_is_no_tensor_is_left_aside(tmp_path):
    (note,) = assert_loads(saved(tmp_path, weights(build()) | {"epoch": 3}))
    assert note == "Left aside what is not a plain tensor: 'epoch'."


@pytest.mark.parametrize(
    "prefix",
    ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.module.", "model.", "module.1."],
)
def test_prefixes_are_stripped(tmp_path, prefix):
    state = weights(build())
    (note,) = assert_loads(saved(tmp_path, prefixed(prefix, state)))
    assert note == f"Stripped the prefix '{prefix}' from {len(state)} name(s)."


def test_names_of_the_cifar_resnet(tmp_path):
    state = renamed(weights(build()), downsample="shortcut", fc="linear")
    assert "layer2.0.shortcut.1.running_var" in state and "linear.bias" in state
    notes = assert_loads(saved(tmp_path, {"net": prefixed("module.", state)}))
    assert "Renamed 'shortcut' to 'downsample' in 18 name(s)." in notes  # 3 x (conv weight and 5 of BN)
    assert "Renamed 'linear' to 'fc' in 2 name(s)." in notes


@pytest.mark.parametrize("prefix", ["", "module."])
def test_dead_stage_of_the_wide_resnet_is_dropped(tmp_path, prefix):
    state = weights(build("wrn34_10"))
    dead = {"sub_" + name: value + 1 for name, value in state.items() if name.startswith("block1.")}
    notes = assert_loads(saved(tmp_path, prefixed(prefix, state | dead)), "wrn34_10")
    assert notes[-1] == f"Dropped {len(dead)} entries of 'sub_block1', which that network never uses."


def test_missing_counters_become_zero(tmp_path):
    state = {k: v for k, v in weights(build()).items() if not k.endswith("num_batches_tracked")}
    (note,) = assert_loads(saved(tmp_path, state), num_batches_tracked=0)
    assert note == "Set 12 missing 'num_batches_tracked' to 0."


@pytest.mark.parametrize(
    ("mean_name", "std_name"),
    [
        ("normalize.mean", "normalize.std"),
        ("mean", "std"),
        ("mu", "sigma"),
        ("module.norm._mean", "norm._std"),
    ],
)
def test_normalisation_that_agrees_is_dropped(tmp_path, mean_name, std_name):
    own = {mean_name: torch.tensor(MEAN).view(1, 3, 1, 1), std_name: torch.tensor((0.2470, 0.2434, 0.2616))}
    notes = assert_loads(saved(tmp_path, weights(build()) | own))
    assert f"Dropped '{std_name}', which agrees with the model's own normalisation." in notes


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        (
            "normalize.mean",
            (0.0, 0.0, 0.0),
            "mean (0.0, 0.0, 0.0) but the model with mean (0.4914, 0.4822, 0.4465)",
        ),
        ("std", (0.2023, 0.1994, 0.2010), "set 'dataset.std=[0.2023, 0.1994, 0.201]'."),
        ("mean", (float("nan"),) * 3, "'mean' that are not finite"),
        ("mean", (0.4914, 0.4822), "unknown to the model (first 'mean')"),
    ],
)
def test_normalisation_that_differs_is_refused(tmp_path, name, values, said):
    assert_refused(saved(tmp_path, weights(build()) | {name: torch.tensor(values)}), said)


@pytest.mark.parametrize(
    ("mean", "std", "options"),
    [
        (
            (0.5, 0.4, 0.5),
            (0.25, 0.25, 0.2),
            "'dataset.mean=[0.5, 0.4, 0.5]' 'dataset.std=[0.25, 0.25, 0.2]'",
        ),
        ((0.0,) * 3, (1.0,) * 3, "model.normalise=false"),
    ],
)
def test_the_whole_normalisation_is_said_as_options(tmp_path, mean, std, options):
    state = weights(build()) | {"mu": torch.tensor(mean), "sigma": torch.tensor(std)}
    assert_refused(saved(tmp_path, state), f": set {options}.")


def test_images_left_alone_although_the_checkpoint_normalises_are_refused(tmp_path):
    model = build_model("resnet_small", num_classes=10, mean=(0.0,) * 3, std=(1.0,) * 3, width=4)
    state = weights(build()) | {"mean": torch.tensor(MEAN), "std": torch.tensor(STD)}
    said = "set model.normalise=true 'dataset.mean=[0.4914, 0.4822, 0.4465]' 'dataset.std=[0.2471, 0.2435,"
    assert_refused(saved(tmp_path, state), said, model=model)


def test_half_precision_is_converted_and_said(tmp_path):
    half = {k: v.half() if v.is_floating_point() else v for k, v in weights(build()).items()}
    model = build(seed=1)
    (note,) = load_foreign_checkpoint(model, saved(tmp_path, half))
    assert note.startswith("Converted ") and note.endswith("from float16 to float32.")
    assert torch.equal(model.fc.weight, half["fc.weight"].float())


@pytest.mark.parametrize("name", ["resnet_small", "wrn34_10"])
def test_another_class_count_names_both(tmp_path, name):
    path = saved(tmp_path, weights(build(name, num_classes=100)))
    assert_refused(path, "for 100 classes", "has 10:", model=build(name, seed=1))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (
            lambda s: s.pop("layer3.0.conv1.weight"),
            "1 of the model's entries are missing (first 'layer3.0.conv1",
        ),
        (lambda s: s.pop("bn1.running_mean"), "missing (first 'bn1.running_mean')"),
        (
            lambda s: s.update(extra=torch.ones(1)),
            "1 of its entries are unknown to the model (first 'extra')",
        ),
        (lambda s: s.update({"sub_block1.x": torch.ones(1)}), "first 'sub_block1.x'"),
        (lambda s: s.update({"linear.bias": s["fc.bias"]}), "'fc.bias' twice"),
        (lambda s: s.update({"module.fc.bias": s["fc.bias"]}), "'fc.bias' twice"),
        (lambda s: s.update({"bn1.weight": torch.ones(5)}), "(first 'bn1.weight', (5,) and not (4,))"),
        (lambda s: s.update({"bn1.weight": torch.ones(4, dtype=torch.int8)}), "'bn1.weight' as int8"),
        (lambda s: s["conv1.weight"].view(-1)[3:4].fill_(float("nan")), "'conv1.weight' that are not finite"),
    ],
)
def test_weights_that_are_not_exactly_this_network_are_refused(tmp_path, spoil, said):
    state = weights(build())
    spoil(state)
    assert_refused(saved(tmp_path, state), said)


def test_names_are_changed_only_to_names_that_the_model_has(tmp_path):
    """A WRN has no `downsample`; its classifier may be called `linear` all the same."""
    state = renamed(weights(build("wrn34_10")), fc="linear")
    assert_loads(saved(tmp_path, state), "wrn34_10")
    state["shortcut.weight"] = torch.ones(1)
    assert_refused(saved(tmp_path, state), "first 'shortcut.weight'", model=build("wrn34_10", seed=1))


@pytest.mark.parametrize(("name", "width"), [("resnet18", 4), ("resnet_small", 8), ("wrn34_10", 1)])
def test_another_architecture_is_refused(tmp_path, name, width):
    assert_refused(saved(tmp_path, weights(build(name, width=width))), "does not fit", "model.width")


def test_two_networks_in_one_file_are_refused(tmp_path):
    content = {"net": weights(build()), "model": weights(build(seed=2))}
    assert_refused(saved(tmp_path, content), "'model' and 'net'")


def test_weights_of_one_epoch_and_of_two(tmp_path):
    (note,) = assert_loads(saved(tmp_path, {"last": weights(build()), "epoch": 3}))
    assert note == "Took the weights under 'last' and left aside 'epoch'."
    assert_loads(saved(tmp_path, {"net": weights(build()), "best": {"accuracy": 0.5}}))
    content = {"last": weights(build()), "best": weights(build(seed=2))}
    assert_refused(saved(tmp_path, content), "'best' and 'last'")


@pytest.mark.parametrize(
    "content", [{}, [1, 2], torch.ones(3), {"epoch": 3}, {"state_dict": {}}, {0: torch.ones(1)}]
)
def test_files_without_weights_are_refused(tmp_path, content):
    assert_refused(saved(tmp_path, content), "holds no named weights")


def test_missing_file_and_folder(tmp_path):
    assert_refused(tmp_path / "none.pt", "There is no file", "model.checkpoint")
    assert_refused(tmp_path, "There is a folder")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x80\x04\x95", None], ids=["empty", "text", "stub", "cut"]
)
def test_damaged_files(tmp_path, suffix, content):
    path = tmp_path / f"weights.{suffix}"
    if content is None:
        (save_file if suffix == "safetensors" else torch.save)(weights(build()), path)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    assert_refused(path, "cannot be read", "damaged or of another kind")


@pytest.mark.parametrize("zipped", [True, False])
def test_forbidden_objects_are_named(tmp_path, zipped):
    path = tmp_path / "weights.pt"
    content = {"state_dict": weights(build()), "args": argparse.Namespace(lr=0.1)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    assert_refused(path, "'argparse.Namespace'", "torch.save(model.state_dict()")


def test_whole_pickled_networks_are_refused(tmp_path):
    assert_refused(saved(tmp_path, build()), "Python object 'rift.models.normalisation.")


class Trap:
    """Unpickled without care, this creates the file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", [torch.save, lambda c, p: p.write_bytes(pickle.dumps(c, protocol=2))])
def test_nothing_in_a_file_is_executed(tmp_path, write):
    path, sprung = tmp_path / "weights.pt", tmp_path / "sprung"
    write({"conv1.weight": Trap(sprung)}, path)
    assert_refused(path, "posix.mkdir")
    assert not sprung.exists()
