"""Device, precision, modes, and the fast forms of a network that the inner loops run through."""

from rift.runtime import distributed
from rift.runtime.crafting import CraftingNetwork
from rift.runtime.device import Runtime, choose_device, choose_precision, computes_bfloat16
from rift.runtime.graphs import gradient_pass, graphed
from rift.runtime.layout import row_major_is_faster
from rift.runtime.modes import batchnorm_layers, borrowed
from rift.runtime.switches import (
    random_state,
    restore_random_state,
    seed_everything,
    set_global_switches,
    untuned,
)

__all__ = [
    "CraftingNetwork",
    "Runtime",
    "batchnorm_layers",
    "borrowed",
    "choose_device",
    "choose_precision",
    "computes_bfloat16",
    "distributed",
    "gradient_pass",
    "graphed",
    "random_state",
    "restore_random_state",
    "row_major_is_faster",
    "seed_everything",
    "set_global_switches",
    "untuned",
]
