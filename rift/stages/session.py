"""What every stage is given besides its inputs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from rift.attacks import Attack, Verdicts, robust_verdicts
from rift.data import Dataset, Split
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
        """A network with these weights, on the device, in eval mode."""
        network = self.new_network()
        network.load_state_dict(state)
        return network.eval()

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
        """
        if crafting is None:
            crafting = CraftingNetwork(network, self.runtime, self.runtime.evaluation_precision)
        else:
            crafting.refresh()
        crafting.check(split.images[:8] / 255)
        with borrowed(network, training=False), measured(label, runs * len(split)) as meter:
            return robust_verdicts(
                network,
                crafting,
                split,
                attack,
                runs=runs,
                exact_runs=exact_runs,
                seed=derive_seed(purpose, self.seed),
                batch_size=self.runtime.batch_size,
                channels_last=self.runtime.channels_last,
                advance=meter.advance,
                accelerate=lambda craft: crafting.captured(attack, craft),
            )
