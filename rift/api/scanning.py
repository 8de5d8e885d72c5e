"""`rift.mrc_scan`: which module of anybody's network robustness needs least."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rift.api.inputs import (
    Images,
    attack_of,
    gathered,
    machine,
    options_of,
    own_copy,
    session_of,
    undisturbed,
)
from rift.api.ranking import Ranking
from rift.attacks import Attack
from rift.errors import UserError
from rift.models import scannable_modules
from rift.stage_options import MRCConfig
from rift.stages import mrc_scan as scan
from rift.stages.folder import MemoryFolder


def mrc_scan(
    model: nn.Module,
    images: Images,
    labels: Tensor | None = None,
    *,
    epsilon: float | None = None,
    attack: Attack | None = None,
    options: MRCConfig | None = None,
    seed: int = 0,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    precision: str = "float32",
) -> Ranking:
    """Module robust criticality of every convolution and linear layer (Sec. 3.2, 3.3 and Algorithm 1).

    MRC(i) is the largest rise of the mean cross-entropy on fixed adversarial examples while the weight of
    module i moves within a ball of `options.epsilon_w` times its norm. Where `torch.fx` can trace the
    network, only what follows a module is computed again and again; each cut is compared with the network
    itself, and where that cannot be done, the whole network runs, which `attrs["fallbacks"]` says.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K), normalisation inside; left as it was.
        images: (N, C, H, W) float32 in [0, 1], or a `DataLoader` of (images, labels), read once; held on the
            device.
        labels: (N,) integers in [0, K); none with a loader.
        epsilon: radius of the ℓ∞ ball of the examples, in units of the [0, 1] image; 8/255 if not given.
        attack: another attack altogether, see `rift.attack`.
        options: `rift.MRCConfig(...)`: solver, radius, epochs, images per step, how many images.
        seed: of the order of the images and of the random starts.
        batch_size: images at a time while the examples are made.
        device: where to compute; the model's own if not given.
        precision: of the attack; `options.precision` is the search's. MRC always comes from float32.

    Returns:
        A data frame, a row per module: `module`, `mrc`, `drop` (of robust accuracy, a fraction), `rank`; see
        `Ranking`, whose `least_critical` names the module to fine-tune.

    Raises:
        UserError: a `ValueError`: what was given cannot be, or the search diverged, in one sentence.
    """
    with undisturbed():
        chosen = attack_of(epsilon, attack)
        options = options_of(options, MRCConfig, ("split",))
        runtime = machine(model, device, batch_size, precision)
        network = own_copy(model, runtime)
        if not scannable_modules(network):
            raise UserError(f"{type(model).__name__} has no convolution or linear layer to scan.")
        split = gathered(images, labels, network, runtime).to(runtime.device)
        session = session_of(network, split, runtime, seed)
        folder = MemoryFolder()
        result = scan(session, folder, options, network.state_dict(), chosen)
    names = {"module": "module", "mrc": "mrc", "drop": "robust_accuracy_drop", "rank": "rank"}
    ranking = Ranking({column: [row[name] for row in result["modules"]] for column, name in names.items()})
    ranking.attrs = {name: result[name] for name in ("robust_loss", "robust_accuracy", "num_images")}
    ranking.attrs["fallbacks"] = list(runtime.fallbacks)
    return ranking
