"""Choice of device and precision, global switches, seeds."""

from __future__ import annotations

import json
import platform
import random
import subprocess

import numpy as np
import pytest
import torch
from tiny_jobs import TINY, subprocess_arguments, tiny_config
from torch import nn

import rift.announcement
from rift.announcement import slow_bfloat16
from rift.errors import UserError
from rift.models import build_model
from rift.runtime import (
    Runtime,
    choose_device,
    choose_precision,
    computes_bfloat16,
    layout,
    seed_everything,
    set_global_switches,
    untuned,
)
from rift.runtime.device import for_one_shape
from rift.runtime.switches import agreement

CPU = torch.device("cpu")


def test_auto_takes_the_gpu_if_there_is_one():
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert choose_device("cpu") == CPU


@pytest.mark.parametrize("wanted", ["gpu", "cuda:99", "meta", "cpu:x", ""])
def test_a_device_that_is_not_there_is_one_sentence(wanted):
    with pytest.raises(UserError, match=r"runtime\.device") as caught:
        choose_device(wanted)
    assert "\n" not in str(caught.value)


def test_precision_is_float32_on_the_cpu_unless_asked_otherwise():
    assert choose_precision("auto", CPU) == torch.float32
    assert choose_precision("bfloat16", CPU) == torch.bfloat16
    assert choose_precision("float32", torch.device("cuda")) == torch.float32


def test_autocast_lowers_only_where_asked():
    layer, x = nn.Linear(2, 2), torch.ones(1, 2)
    with Runtime(CPU, precision=torch.float32).autocast():
        assert layer(x).dtype == torch.float32
    with Runtime(CPU, precision=torch.bfloat16).autocast():
        assert layer(x).dtype == torch.bfloat16
    assert layer(x).dtype == torch.float32


@pytest.mark.parametrize("channels_last", [False, True])
def test_place_sets_the_memory_format_and_changes_no_number(channels_last):
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(4, 4))
    network.register_buffer("five_dimensional", torch.rand(2, 2, 2, 2, 2))  # Swin's attention masks are
    before = {name: value.clone() for name, value in network.state_dict().items()}
    placed = Runtime(CPU, channels_last=channels_last).place(network)
    assert placed is network
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last) == channels_last
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_place_can_take_the_memory_format_back():
    network = nn.Conv2d(3, 4, 3)
    Runtime(CPU, channels_last=True).place(network)
    Runtime(CPU, channels_last=False).place(network)
    assert network.weight.is_contiguous()


def narrow_network(width):
    return build_model(
        "resnet_small", num_classes=10, in_channels=1, image_size=8, mean=[0.3], std=[0.4], width=width
    )


@pytest.mark.parametrize("width", [2, 4, 6, 8])
def test_narrow_strided_1x1_convolutions_stay_row_major_on_a_cpu(width):
    """Torch 2.10 to 2.15 on a CPU with AVX2 alone (oneDNN issue 6035): the gradient of a 1×1 convolution's
    weight, stride 2, fewer than 8 input channels, weight or input in channels-last, is written beyond its
    end; the process aborts with "corrupted size vs. prev_size"."""
    runtime = Runtime(CPU)
    network = runtime.place(narrow_network(width))
    assert runtime.channels_last == (width >= 8)
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert all(layer.weight.is_contiguous() for layer in convolutions) == (width < 8)
    assert runtime.laid_out(torch.rand(2, 3, 4, 4)).is_contiguous() == (width < 8)


@pytest.mark.slow
def test_a_narrow_network_trains_on_a_cpu_with_avx2_alone(tmp_path):
    """In a process of its own, since the fault would abort the tests."""
    arguments = (*TINY, "model.width=4", "stage=rift", f"output={tmp_path}")
    options = subprocess_arguments(*arguments)
    options["env"] |= {"ONEDNN_MAX_CPU_ISA": "AVX2", "MALLOC_CHECK_": "3"}
    done = subprocess.run(**options, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(platform.machine() != "x86_64", reason="waits for an x86 CPU")
@pytest.mark.parametrize(
    ("allowed", "knows"),
    [("AVX2", False), ("AVX512_CORE", False), ("avx512_core_bf16", True), ("DEFAULT", True), (None, True)],
)
def test_bfloat16_needs_instructions_that_may_be_used(monkeypatch, allowed, knows):
    monkeypatch.delenv("DNNL_MAX_CPU_ISA", raising=False)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if allowed:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", allowed)
    for has in (True, False):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
        assert computes_bfloat16(CPU) == (knows and has)


@pytest.mark.parametrize(
    "option",
    [
        "runtime.precision",
        "runtime.selection_precision",
        "runtime.evaluation_precision",
        "stage.mrc.precision",
    ],
)
def test_bfloat16_in_software_is_warned_of_where_it_was_asked_for(monkeypatch, option):
    monkeypatch.setattr(rift.announcement, "computes_bfloat16", lambda device: False)
    said = slow_bfloat16(tiny_config(f"{option}=bfloat16"), CPU)
    assert f"{option}: this CPU has no bfloat16 instructions" in said and f"say {option}=float32" in said
    assert slow_bfloat16(tiny_config(), CPU) is None
    monkeypatch.setattr(rift.announcement, "computes_bfloat16", lambda device: True)
    assert slow_bfloat16(tiny_config(f"{option}=bfloat16"), CPU) is None


def test_a_fallback_is_recorded_once():
    runtime = Runtime(CPU)
    for sentence in ("a", "b", "a"):
        runtime.fall_back(sentence)
    assert runtime.fallbacks == ["a", "b"]
    assert Runtime(CPU).fallbacks == []


def test_a_fallback_is_said_at_once_and_a_strict_runtime_takes_none(caplog):
    Runtime(CPU).fall_back("the network cannot be folded")
    assert "the network cannot be folded" in caplog.text
    with pytest.raises(UserError, match=r"cannot be folded; runtime\.strict=false would go on without"):
        Runtime(CPU, strict=True).fall_back("the network cannot be folded")


def test_what_is_compiled_is_used_for_one_shape():
    """An odd last batch takes the module itself: compiling for it would cost more than it brings."""
    calls = []
    call = for_one_shape(lambda x: calls.append("compiled") or x, lambda x: calls.append("plain") or x)
    for rows in (4, 4, 3, 4, 1):
        assert len(call(torch.rand(rows, 2))) == rows
    assert calls == ["compiled", "compiled", "plain", "compiled", "plain"]


def test_compilation_is_asked_for_once_and_gives_the_modules_numbers(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "compile", lambda module: asked.append(module) or module)
    layer = nn.Linear(3, 2)
    call, x = Runtime(CPU, compile=True).compiled(layer), torch.rand(5, 3)
    assert torch.equal(call(x), layer(x)) and torch.equal(call(x[:2]), layer(x[:2]))
    assert asked == [layer]
    assert Runtime(CPU).compiled(layer) is layer


@pytest.mark.parametrize(
    ("precision", "device", "tf32", "share"),
    [
        (torch.float32, "cpu", True, 1e-3),
        (torch.float32, "cuda", False, 1e-3),
        (torch.float32, "cuda", True, 1e-2),
        (torch.bfloat16, "cuda", False, 0.1),
    ],
)
def test_tolerances_follow_what_is_computed(monkeypatch, precision, device, tf32, share):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", tf32)
    assert agreement(precision, torch.device(device)) == share


def test_float32_can_be_row_major_beside_channels_last_bfloat16():
    runtime = Runtime(CPU, precision=torch.bfloat16, row_major_float32=True)
    images, layer = torch.rand(2, 3, 4, 4), nn.Conv2d(3, 4, 3)
    assert runtime.laid_out(images).is_contiguous(memory_format=torch.channels_last)
    assert runtime.laid_out(images, torch.float32).is_contiguous()
    assert runtime.place(layer, torch.float32).weight.is_contiguous()
    assert runtime.place(layer).weight.is_contiguous(memory_format=torch.channels_last)
    assert not Runtime(CPU, channels_last=False).channels_last_in(torch.bfloat16)


def test_the_faster_memory_format_is_measured_once(monkeypatch):
    times = []

    def measured(device, channels, side, layout):
        times.append(layout)
        return 1.0 if layout == torch.contiguous_format else 2.0

    monkeypatch.setattr(layout, "_seconds", measured)
    layout.row_major_is_faster.cache_clear()
    assert layout.row_major_is_faster(CPU) and layout.row_major_is_faster(CPU)
    assert len(times) == 2 * len(layout._SHAPES)
    layout.row_major_is_faster.cache_clear()


def test_a_format_is_timed_by_its_own_tensors(monkeypatch):
    monkeypatch.setattr(layout, "_ROUNDS", 1)
    assert layout._seconds(CPU, 8, 4, torch.channels_last) > 0


def test_cudnn_tries_nothing_for_a_check_on_a_few_images():
    before = torch.backends.cudnn.benchmark
    try:
        torch.backends.cudnn.benchmark = True
        with untuned():
            assert not torch.backends.cudnn.benchmark
        assert torch.backends.cudnn.benchmark
    finally:
        torch.backends.cudnn.benchmark = before


def test_description_is_plain_json():
    described = Runtime(CPU, precision=torch.bfloat16).describe()
    assert json.loads(json.dumps(described)) == described
    assert described["type"] == "cpu" and described["precision"] == "bfloat16"


def test_global_switches_are_set():
    flags = (
        torch.backends.cuda.matmul.allow_tf32,
        torch.backends.cudnn.allow_tf32,
        torch.backends.cudnn.benchmark,
        torch.are_deterministic_algorithms_enabled(),
        torch.get_num_threads(),
    )
    try:
        set_global_switches(tf32=True, deterministic=True, threads=1)
        assert torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
        assert torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.benchmark
        set_global_switches(tf32=False, deterministic=False, threads=None)
        assert not torch.are_deterministic_algorithms_enabled() and torch.get_num_threads() == 1
        assert not torch.backends.cuda.matmul.allow_tf32 and torch.backends.cudnn.benchmark
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = flags[:2]
        torch.backends.cudnn.benchmark = flags[2]
        torch.use_deterministic_algorithms(flags[3])
        torch.set_num_threads(flags[4])


def test_seeding_sets_every_global_generator():
    def draws():
        return random.random(), np.random.rand(), torch.rand(1).item()

    seed_everything("initial weights", 3)
    first = draws()
    seed_everything("initial weights", 4)
    other = draws()
    seed_everything("initial weights", 3)
    assert draws() == first
    assert all(a != b for a, b in zip(first, other, strict=True))
