"""What every stage is given besides its inputs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from rift.attacks import Attack, Verdicts, robust_verdicts
from rift.data import Dataset, Split, as_floats
from rift.progress import measured
from rift.randomness import derive_seed
from rift.runtime import CraftingNetwork, Runtime, borrowed


@dataclass(frozen=True)
class Session:
    """One job's surroundings: data, machine, seed, and how to make a network.

    Attributes:
        dataset: all splits, on the runtime's device.
        runtime: device, precision, memory format.
        seed: of everything random but the held-out split.
        new_network: a freshly initialised network on the device; the same weights each time.
    """

    dataset: Dataset
    runtime: Runtime
    seed: int
    new_network: Callable[[], nn.Module]

    def network(self, state: dict[str, Tensor]) -> nn.Module:
        """A network with these weights, on the device, in eval mode, laid out for float32."""
        network = self.new_network()
        network.load_state_dict(state)
        return self.runtime.place(network, torch.float32).eval()

    def attacked(
        self,
        network: nn.Module,
        split: Split,
        attack: Attack,
        *,
        runs: int,
        exact_runs: bool = True,
        label: str = "attack",
        purpose: str = "selection",
        crafting: CraftingNetwork | None = None,
        begun: Tensor | None = None,
        pause: Callable[[Tensor], None] = lambda known: None,
    ) -> Verdicts:
        """Which images of a split survive the attack, with progress shown.

        Args:
            network: gives the verdicts, in eval mode and float32; left as found.
            split: what is attacked.
            attack: PGD's parameters.
            runs: random starts; the same for every network of this seed.
            exact_runs: see `rift.attacks.robust_verdicts`.
            label: for the progress bar.
            purpose: random starts differ between purposes, so what is chosen is not reported with its luck.
            crafting: the network's frozen form if there is one already; it is brought up to date.
            begun, pause: see `rift.attacks.robust_verdicts`.
        """
        runtime = self.runtime
        if crafting is None:
            reported = purpose != "selection"
            precision = runtime.evaluation_precision if reported else runtime.selection_precision
            crafting = CraftingNetwork(network, runtime, precision)
        else:
            crafting.refresh()
        crafting.check(as_floats(split.images[:8]))
        if runtime.row_major_float32 and runtime.precision != torch.float32:
            network = runtime.place(copy.deepcopy(network), torch.float32)  # it is laid out for training

        def verdicts() -> Verdicts:
            with borrowed(network, training=False), measured(label, runs * len(split)) as meter:
                return robust_verdicts(
                    runtime.filled(network, len(split)),
                    crafting,
                    split,
                    attack,
                    runs=runs,
                    exact_runs=exact_runs,
                    seed=derive_seed(purpose, self.seed),
                    batch_size=runtime.batch_size,
                    channels_last=runtime.channels_last_in(torch.float32),
                    advance=meter.advance,
                    accelerate=lambda craft: runtime.filled(crafting.captured(attack, craft), len(split)),
                    begun=begun,
                    pause=pause,
                )

        return runtime.in_smaller_batches(verdicts)
