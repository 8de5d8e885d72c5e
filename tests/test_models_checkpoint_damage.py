"""Checkpoints that are damaged, diverged, or of another network: one sentence each; what is read is right."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import save_file
from test_models_checkpoint import assert_loads, assert_refused, build, saved, weights

from rift.errors import UserError
from rift.models import load_foreign_checkpoint
from rift.models.checkpoint_file import read_state_dict

PAGE = b"\xef\xbb\xbf\n<!DOCTYPE html><html><head><title>Sign in</title></head></html>"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n"
FLOATS = [
    name
    for name in ("float64", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2")
    if hasattr(torch, name)
]


def write(path, content, zipped=True):
    if path.suffix == ".safetensors":
        save_file(content, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
    return path


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (bytes(100_000), "it begins with nothing but zeros"),
        (PAGE, "it is a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "it is a web page"),
        (POINTER, "it is a pointer of Git LFS"),
    ],
    ids=["empty", "zeros", "page", "xml", "pointer"],
)
def test_failed_downloads_are_called_what_they_are(tmp_path, suffix, content, said):
    path = tmp_path / f"weights.{suffix}"
    path.write_bytes(content)
    assert_refused(path, said, "fetch it again")


@pytest.mark.parametrize("kind", ["zip", "row", "safetensors"])
def test_files_cut_short_anywhere_are_refused(tmp_path, kind):
    suffix = "safetensors" if kind == "safetensors" else "pt"
    path = write(tmp_path / f"weights.{suffix}", weights(build()), zipped=kind == "zip")
    whole = path.read_bytes()
    for share in range(200):
        path.write_bytes(whole[: len(whole) * share // 200])
        with pytest.raises(UserError, match=r"(?s)^The checkpoint .* cannot be read \(.*\.$"):
            read_state_dict(path)


def test_a_flipped_bit_in_the_weights_of_a_zip_is_found(tmp_path):
    path = write(tmp_path / "weights.pt", weights(build()))
    damaged = bytearray(path.read_bytes())
    place = damaged.find(weights(build())["fc.weight"].numpy().tobytes())
    damaged[place + 17] ^= 1
    path.write_bytes(damaged)
    assert_refused(path, "BadZipFile")


@pytest.mark.parametrize(
    ("value", "dtype", "said"),
    [
        (math.nan, torch.float32, "that are not finite"),
        (math.inf, torch.float32, "that are not finite"),
        (-math.inf, torch.float16, "that are not finite"),
        (1e300, torch.float64, "that float32 cannot hold"),
        (-1e39, torch.float64, "that float32 cannot hold"),
    ],
)
@pytest.mark.parametrize("name", ["layer2.0.conv1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"])
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_numbers_that_no_network_has_are_refused(tmp_path, suffix, name, value, dtype, said):
    state = weights(build())
    state[name] = state[name].to(dtype)
    state[name].view(-1)[-1] = value
    assert_refused(write(tmp_path / f"weights.{suffix}", state), f"'{name}' {said}")


def test_a_negative_variance_is_refused(tmp_path):
    state = weights(build())
    state["layer3.0.bn2.running_var"][1] = -1e-12
    assert_refused(saved(tmp_path, state), "'layer3.0.bn2.running_var' that are negative")
    state["layer3.0.bn2.running_var"][1] = 0.0
    load_foreign_checkpoint(build(seed=1), saved(tmp_path, state))


def test_size_and_architecture_are_said_of_both(tmp_path):
    other = saved(tmp_path, weights(build("resnet18", width=8)))
    assert_refused(
        other,
        "does not fit the model (model=resnet_small model.width=4):",
        "choose model=resnet18 model.width=8",
    )
    other = saved(tmp_path, weights(build("resnet_small", width=8)))
    assert_refused(other, "(8, 3, 3, 3) and not (4, 3, 3, 3)", "choose model=resnet_small model.width=8")
    other = saved(tmp_path, weights(build("wrn34_10", num_classes=100)))
    assert_refused(other, "(first 'block1.layer", "choose model=wrn34_10 model.width=2")


@pytest.mark.parametrize("shape", [(), (0,), (3,)])
@pytest.mark.parametrize("name", ["conv1.weight", "block1.layer.0.conv1.weight", "fc.bias", "mean", "std"])
def test_a_tensor_of_an_odd_shape_is_one_sentence(tmp_path, name, shape):
    assert_refused(saved(tmp_path, weights(build("resnet18")) | {name: torch.ones(shape)}))
    assert_refused(saved(tmp_path, {name: torch.ones(shape)}))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_other_floats_are_converted_exactly(tmp_path, suffix, dtype):
    dtype = getattr(torch, dtype)
    state = {n: v.to(dtype) if v.is_floating_point() else v for n, v in weights(build()).items()}
    model = build(seed=1)
    (note,) = load_foreign_checkpoint(model, write(tmp_path / f"weights.{suffix}", state))
    assert note.endswith("to float32.")
    for name, value in model.state_dict().items():
        assert torch.equal(value, state[name].to(value.dtype)), name


def exotic(kind, like):
    if kind == "quantised":
        return torch.quantize_per_tensor(like, 0.1, 0, torch.qint8)
    if kind == "per channel":
        scales = torch.full((len(like),), 0.1)
        return torch.quantize_per_channel(like, scales, torch.zeros(len(like)), 0, torch.qint8)
    if kind == "sparse":
        return like.to_sparse()
    if kind == "meta":
        return like.to("meta")
    if kind == "conjugated":
        return like.to(torch.complex64).conj()
    if kind == "float4_e2m1fn_x2":
        return torch.ones(like.shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)
    return torch.ones(like.shape).to(getattr(torch, kind))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "kind",
    [
        *(
            "quantised",
            "per channel",
            "sparse",
            "meta",
            "conjugated",
            "float4_e2m1fn_x2",
            "complex64",
            "bool",
        ),
        *("uint8", "int8", "int64", "uint16"),
    ],
)
@pytest.mark.parametrize("name", ["conv1.weight", "mean"])
def test_types_that_are_no_weights_are_one_sentence(tmp_path, name, kind):
    if kind.startswith("float4") and not hasattr(torch, kind):
        pytest.skip(f"this torch has no {kind}")
    state = weights(build())
    value = exotic(kind, state.get(name, torch.full((3, 1), 0.5)))
    assert_refused(saved(tmp_path, state | {name: value}), f"'{name}'")


def test_a_counter_of_truth_values_is_refused(tmp_path):
    state = weights(build()) | {"bn1.num_batches_tracked": torch.tensor(True)}
    assert_refused(saved(tmp_path, state), "'bn1.num_batches_tracked' as bool where the model has int64")


SPITEFUL = "conv1\x1b[2J\r\n\u202ebias\x00\x9b"


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
def test_names_that_a_terminal_would_obey_are_refused_in_plain_letters(tmp_path, suffix):
    path = write(tmp_path / f"weights.{suffix}", weights(build()) | {SPITEFUL: torch.ones(1)})
    with pytest.raises(UserError) as refusal:
        load_foreign_checkpoint(build(seed=1), path)
    assert str(refusal.value).isprintable() and r"conv1\x1b[2J\r\n\u202ebias" in str(refusal.value)


def test_keys_left_aside_reach_the_log_in_plain_letters(tmp_path):
    content = {SPITEFUL: 3, "net": weights(build()) | {SPITEFUL + "2": "text", (1, 2): 3, "x" * 5000: 1}}
    notes = assert_loads(saved(tmp_path, content))
    assert all(note.isprintable() and len(note) < 600 for note in notes)
    assert any(r"\x1b[2J\r\n" in note for note in notes)


def test_a_path_that_a_terminal_would_obey(tmp_path):
    with pytest.raises(UserError) as refusal:
        read_state_dict(tmp_path / "a\x1b[2J\n.pt")
    assert str(refusal.value).isprintable()


def raw(tensor):
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


@pytest.mark.parametrize("zipped", [True, False])
def test_what_is_read_is_what_torch_reads(tmp_path, zipped):
    base = torch.randn(4, 3, 5, 5)
    content = {
        "float": base,
        "channels_last": base.to(memory_format=torch.channels_last),
        "transposed": base[0, 0].t(),
        "part": base.view(-1)[7:40:3],
        "scalar": torch.tensor(7),
        "empty": torch.empty(0, 3),
        "trained": torch.nn.Parameter(torch.ones(2)),
        "twice": torch.nn.Parameter(base),
    }
    # Types without a storage class of their own are written another way, which torch reads from a zip only.
    names = ["float64", "float16", "bfloat16", "int32", "int16", "int8", "uint8", "bool", "complex64"]
    for name in [*names, *(["uint16", "uint32", "float8_e4m3fn"] if zipped else [])]:
        content[name] = torch.arange(6).to(getattr(torch, name)).view(2, 3)
    state = {"epoch": 3, "state_dict": content, "rate": 0.1, "sizes": torch.Size([3]), "bytes": b"abc"}
    path = write(tmp_path / "weights.pt", state, zipped)
    ours, theirs = read_state_dict(path)[0], torch.load(path, weights_only=True)["state_dict"]
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name].dtype, ours[name].stride()) == (value.dtype, value.stride()), name
        assert raw(ours[name]).equal(raw(value)), name
    assert ours["twice"].untyped_storage().data_ptr() == ours["float"].untyped_storage().data_ptr()
