"""From the configuration to the objects that the stages work with."""

from __future__ import annotations

import torch
from torch import nn

from rift.attacks import Attack
from rift.config import AttackConfig, Config, number
from rift.data import load_dataset
from rift.models import build_model
from rift.runtime import Runtime, choose_device, choose_precision, seed_everything, set_global_switches
from rift.runtime.device import DTYPES
from rift.stages import Session


def make_attack(config: AttackConfig) -> Attack:
    """The configuration as the attack's parameters; fractions become numbers here."""
    return Attack(
        norm=config.norm,
        epsilon=number("attack.epsilon", config.epsilon),
        step_size=number("attack.step_size", config.step_size),
        steps=config.steps,
        random_start=config.random_start,
        keep=config.keep,
        batchnorm=config.batchnorm,
    )


def make_runtime(config: Config) -> Runtime:
    """Chooses device and precision and sets torch's switches."""
    options = config.runtime
    set_global_switches(tf32=options.tf32, deterministic=options.deterministic, threads=options.threads)
    device = choose_device(options.device)
    if device.index is not None:
        torch.cuda.set_device(device)  # streams and graphs belong to the current device
    return Runtime(
        device=device,
        precision=choose_precision(options.precision, device),
        evaluation_precision=DTYPES[options.evaluation_precision],
        channels_last=options.channels_last,
        fold_batchnorm=options.fold_batchnorm,
        cuda_graphs=options.cuda_graphs,
        compile=options.compile,
        batch_size=options.batch_size,
        cache_mib=options.cache_mib,
    )


def make_session(config: Config, runtime: Runtime) -> Session:
    """Loads the data and prepares the network's blueprint.

    Raises:
        UserError: data or network cannot be had.
    """
    data = config.dataset
    dataset = load_dataset(
        data.name,
        root=data.root,
        download=data.download,
        mean=data.mean,
        std=data.std,
        train_limit=data.train_limit,
        test_limit=data.test_limit,
        holdout_fraction=data.holdout_fraction,
        split_seed=data.split_seed,
        image_size=data.image_size,
        cache=data.cache,
    ).to(runtime.device)

    def new_network() -> nn.Module:
        seed_everything("initial weights", config.seed)
        foreign = config.model.family == "timm"
        network = build_model(
            config.model.family,
            num_classes=dataset.num_classes,
            in_channels=dataset.shape[0],
            image_size=dataset.shape[1],
            mean=dataset.mean,
            std=dataset.std,
            width=config.model.width,
            timm_name=config.model.name if foreign else None,
            pretrained=config.model.pretrained,
        )
        return runtime.place(network)

    return Session(dataset, runtime, config.seed, new_network)
