"""Where the jobs of a sweep run: `hydra/launcher=slurm` on a cluster, `hydra/launcher=gpus` on one machine.

Their options are in `conf/hydra/launcher/`.
"""

from __future__ import annotations

from importlib.util import find_spec

from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins

# Hydra makes launchers of this package alone, which the names in the configuration therefore begin with.
_PACKAGE = "hydra_plugins.rift"

# The files of `conf/` name no code, so what they begin with does.
for _choice, _class in (("our_gpus", "GpusLauncher"), ("our_slurm", "SlurmLauncher")):
    _node = {"_target_": f"{_PACKAGE}.{_class}"}
    ConfigStore.instance().store(group="hydra/launcher", name=_choice, node=_node)


def register() -> None:
    """Makes our launchers known to Hydra: those whose libraries are installed."""
    from rift.launchers.gpus import GpusLauncher

    known = Plugins.instance().class_name_to_class
    known[f"{_PACKAGE}.GpusLauncher"] = GpusLauncher
    if has_slurm_extra():
        from rift.launchers.slurm import SlurmLauncher

        known[f"{_PACKAGE}.SlurmLauncher"] = SlurmLauncher


def has_slurm_extra() -> bool:
    """Whether what `hydra/launcher=slurm` is built on is installed; imports nothing."""
    return (
        find_spec("submitit") is not None and find_spec("hydra_plugins.hydra_submitit_launcher") is not None
    )
