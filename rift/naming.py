"""What networks, methods and jobs are called in results: by what ran, whatever was typed."""

from __future__ import annotations

from rift import plugins
from rift.config import Config
from rift.models import network_name


def model_name(config: Config) -> str:
    """The network that runs, whatever was typed: `resnet18`, `resnet18_w16`, `timm_resnet26d`."""
    model = config.model
    return network_name(model.family, timm_name=model.name, width=model.width, pretrained=model.pretrained)


def method_name(config: Config) -> str:
    """What made θ_AT: a method of ours, or `checkpoint`; `untrained` if nothing did."""
    trained = config.method.label + ("" if config.stage.at.average is None else "_ema")
    if "at" in config.stage.run and config.stage.at.epochs > 0:
        return trained
    if config.model.checkpoint is not None:
        return "checkpoint"
    return trained if config.stage.at.epochs > 0 else "untrained"


def job_name(config: Config) -> str:
    """How people call a job: `resnet18-cifar10-pgd_at-s0`."""
    return f"{model_name(config)}-{config.dataset.name}-{method_name(config)}-s{config.seed}"


def chosen_plugins(config: Config) -> dict[str, dict[str, str]]:
    """Package, version and digest of what other packages contribute to a run, by group."""
    chosen = {"model": config.model.family, "method": config.method.name, "dataset": config.dataset.name}
    return plugins.identities({**chosen, "attack": config.attack.plugin or ""})
