"""Process-wide switches of torch, seeds, and the tolerances that follow from what is computed in."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from rift.randomness import derive_seed


def set_global_switches(
    *, tf32: bool, deterministic: bool, threads: int | None, benchmark_limit: int = 10
) -> None:
    """Process-wide switches of torch.

    Args:
        tf32: float32 products in TF32 on a GPU.
        deterministic: the same bits in every run, slower.
        threads: of the CPU; None is torch's choice.
        benchmark_limit: algorithms that cuDNN tries for each new shape; 0 is all.
    """
    torch.backends.cuda.matmul.allow_tf32 = tf32
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = not deterministic
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    torch.use_deterministic_algorithms(deterministic, warn_only=True)
    if torch.backends.cudnn.is_available():
        torch.backends.cudnn.benchmark_limit = benchmark_limit
    if threads is not None:
        torch.set_num_threads(threads)


@contextmanager
def untuned() -> Iterator[None]:
    """Without cuDNN's trial of algorithms: for a single call on a few images it costs more than it brings."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


def agreement(precision: torch.dtype, device: torch.device) -> float:
    """How far two ways to compute the same logits may be apart, as a share of the largest logit.

    TF32 keeps ten bits of each factor, bfloat16 seven.
    """
    if precision != torch.float32:
        return 0.1
    return 1e-2 if device.type == "cuda" and torch.backends.cudnn.allow_tf32 else 1e-3


def random_state() -> dict[str, Tensor]:
    """The state of torch's global generators, by name: of the CPU, and of the GPU where one is used."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def restore_random_state(state: Mapping[str, Tensor]) -> None:
    """Sets the generators to what `random_state` found."""
    torch.set_rng_state(state["cpu"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


@contextmanager
def generators_kept() -> Iterator[None]:
    """The global generators of torch, numpy and Python are afterwards what they were."""
    torchs, numpys, pythons = random_state(), np.random.get_state(), random.getstate()
    try:
        yield
    finally:
        restore_random_state(torchs)
        np.random.set_state(numpys)
        random.setstate(pythons)


def seed_everything(*key: int | str) -> None:
    """Seeds the global generators: initialisation and dropout draw from them, nothing else of ours does."""
    seed = derive_seed(*key) % 2**32
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
