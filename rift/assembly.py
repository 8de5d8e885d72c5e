"""From the configuration to the objects that the stages work with."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rift import plugins
from rift.attacks import Attack
from rift.attacks.plugin import GIVEN, PluginAttack
from rift.config import AttackConfig, Config
from rift.data import SHAPES, load_dataset
from rift.errors import UserError
from rift.limits import number
from rift.method_options import resolved
from rift.methods import Method
from rift.methods import make_method as method_by_name
from rift.models import build_model
from rift.preflight import check_data, check_plan
from rift.room import check_room
from rift.runtime import (
    Runtime,
    choose_device,
    choose_precision,
    distributed,
    row_major_is_faster,
    seed_everything,
    set_global_switches,
)
from rift.runtime.device import DTYPES
from rift.stages import Session


def make_attack(config: AttackConfig) -> Attack:
    """The configuration as the attack's parameters; fractions become numbers here."""
    values: dict[str, Any] = {
        "norm": config.norm,
        "epsilon": number("attack.epsilon", config.epsilon),
        "step_size": number("attack.step_size", config.step_size),
        "steps": config.steps,
        "random_start": config.random_start,
        "keep": config.keep,
        "batchnorm": config.batchnorm,
    }
    if config.plugin is None:
        return Attack(**values)
    options = plugins.with_options("attack", config.plugin, config.options, GIVEN)
    about = plugins.identity("attack", config.plugin)
    return PluginAttack(**values, plugin=config.plugin, options=tuple(options.items()), identity=about)


def make_method(config: Config) -> Method:
    """The training method, with the official code's values where none were given."""
    options = resolved(config.method, config.model.family)
    method = method_by_name(config.method.name, options, config.stage.at.label_smoothing)
    if not method.of_single_images and "at" in config.stage.run and distributed.active():
        raise UserError(
            f"method={config.method.name} compares the images of a whole batch with each other, so several "
            "processes cannot share it out: train with it in one."
        )
    return method


def make_runtime(config: Config) -> Runtime:
    """Chooses device and precision and sets torch's switches."""
    options = config.runtime
    set_global_switches(
        tf32=options.tf32,
        deterministic=options.deterministic,
        threads=options.threads,
        benchmark_limit=options.benchmark_limit,
    )
    device = choose_device(options.device)
    if device.index is not None:
        torch.cuda.set_device(device)  # streams and graphs belong to the current device
    on_gpu = device.type == "cuda"
    return Runtime(
        device=device,
        precision=choose_precision(options.precision, device),
        selection_precision=choose_precision(options.selection_precision, device),
        evaluation_precision=DTYPES[options.evaluation_precision],
        channels_last=options.channels_last is not False,
        row_major_float32=options.channels_last is None and on_gpu and row_major_is_faster(device),
        full_batches=on_gpu and not options.deterministic,
        fold_batchnorm=options.fold_batchnorm,
        cuda_graphs=options.cuda_graphs,
        compile=options.compile,
        batch_size=options.batch_size,
        cache_mib=options.cache_mib,
        strict=options.strict,
        save_seconds=options.save_seconds,
    )


def normalisation(config: Config) -> tuple[list[float], list[float]]:
    """Mean and std, per channel, that the network's first layer normalises by; 0 and 1 leave images alone."""
    mean, std = config.dataset.mean, config.dataset.std
    return (mean, std) if config.model.normalise else ([0.0] * len(mean), [1.0] * len(std))


def new_network(config: Config, runtime: Runtime, shape: tuple[int, int, int], num_classes: int) -> nn.Module:
    """A fresh network for images of `shape`, (C, H, W), on the device; the same weights each time.

    Raises:
        UserError: there is no such network, or not for such images.
    """
    seed_everything("initial weights", config.seed)
    model = config.model
    mean, std = normalisation(config)
    network = build_model(
        model.family,
        num_classes=num_classes,
        in_channels=shape[0],
        image_size=shape[1],
        mean=mean,
        std=std,
        width=model.width,
        timm_name=model.name,
        pretrained=model.pretrained,
        plugin_options=model.options,
    )
    return runtime.place(network)


def make_session(config: Config, runtime: Runtime) -> Session:
    """Refuses what cannot go well, loads the data, and prepares the network's blueprint.

    The plan is checked before the data are read where their shape is known by name: reading can take minutes.

    Raises:
        UserError: data or network cannot be had, or a later stage would refuse its options.
    """
    data = config.dataset
    if data.name in SHAPES:
        check_plan(config, new_network(config, runtime, *SHAPES[data.name]))
    read = partial(
        load_dataset,
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
        at_least_per_class=2 if config.smoke else 0,
        plugin_options=data.options,
    )
    dataset = distributed.writer_first(read).to(runtime.device)
    make = partial(new_network, config, runtime, dataset.shape, dataset.num_classes)
    network = make()
    if data.name not in SHAPES:
        check_plan(config, network)
    check_data(config, dataset, network)
    if distributed.is_writer():
        check_room(Path(config.output), network, config)
    return Session(dataset, runtime, config.seed, make)
