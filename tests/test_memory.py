"""Full scale fits: WRN-34-10 on 64×64 images within an 80 GB GPU, counted on tensors without data.

Shapes alone decide how much is alive at once, so the loops run here on the `meta` device. Not counted:
what libraries take beside the tensors (cuDNN's work space).
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rift.attacks import Attack, pgd
from rift.criticality import _gradients
from rift.models import build_model, scannable_modules
from rift.runtime import CraftingNetwork, Runtime
from rift.runtime.suffix import FrozenGraph

META = Runtime(torch.device("meta"))
GIB = 2**30
ONE_STEP = Attack("linf", 8 / 255, 2 / 255, 1)


class Alive(TorchDispatchMode):
    """The most bytes that the results of operations took at one time."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._storages = 0, {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self._storages = {key: held for key, held in self._storages.items() if not held[0].expired()}
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._storages.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self.peak = max(self.peak, sum(size for _, size in self._storages.values()))
        return result


def peak_gib(call: Callable[[], object]) -> float:
    with Alive() as alive:
        call()
    return alive.peak / GIB


def test_the_count_is_of_what_is_alive_at_once():
    def call():
        a = torch.empty(GIB // 4, device="meta")  # 1 GiB
        b = a + 1
        del a
        return b + 1

    assert peak_gib(call) == 2


@pytest.fixture(scope="module")
def network():
    mean = std = (0.5,) * 3
    return build_model("wrn34_10", num_classes=200, image_size=64, mean=mean, std=std).to("meta")


def batch(count, dtype=torch.float32):
    images = torch.empty(count, 3, 64, 64, device="meta", dtype=dtype)
    return images, torch.empty(count, device="meta", dtype=torch.int64)


def test_a_training_step_of_128(network):
    low = copy.deepcopy(network).bfloat16().train()  # autocast knows no meta device
    images, labels = batch(128, torch.bfloat16)
    assert 3 < peak_gib(lambda: F.cross_entropy(low(images).float(), labels).backward()) < 10


@pytest.mark.parametrize(("count", "precision", "most"), [(128, torch.bfloat16, 8), (512, torch.float32, 40)])
def test_crafting(network, count, precision, most):
    body = CraftingNetwork(network, META, precision).body
    images, labels = batch(count)
    peak = peak_gib(lambda: pgd(lambda x: body(x).float(), images, labels, images, ONE_STEP))
    assert most / 3 < peak < most


def test_a_gradient_of_the_scan_with_its_batch_of_512(network):
    frozen = network.eval().requires_grad_(False)
    cut = FrozenGraph(frozen, META).cut(list(scannable_modules(frozen))[1])
    images, labels = batch(512)
    with torch.no_grad():
        boundary = cut.before(images)
    assert 15 < peak_gib(lambda: _gradients(cut.after, cut.weights, boundary, labels)) < 40
