"""`rift.fine_tune`: one module of anybody's network on clean images."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from rift.api.inputs import (
    Images,
    check_classes,
    check_modules,
    gathered,
    loaded,
    machine,
    options_of,
    own_copy,
    undisturbed,
)
from rift.data import Batch, batches
from rift.errors import UserError
from rift.limits import LARGEST_SEED, at_least
from rift.randomness import derive_seed
from rift.runtime import Runtime
from rift.stage_options import FinetuneConfig
from rift.stages.fine_tuning import Passes, clean_accuracy_on, tune
from rift.stages.folder import MemoryFolder

_CHOICE_OF_MODULES = ("target", "top_k", "target_seed", "selection_split")


def fine_tune(
    model: nn.Module,
    images: Images,
    labels: Tensor | None = None,
    *,
    module: str | Sequence[str],
    options: FinetuneConfig | None = None,
    selection: tuple[Tensor, Tensor] | Images | None = None,
    padding: int = 0,
    flip: bool = False,
    seed: int = 0,
    batch_size: int = 512,
    device: str | torch.device | None = None,
    inplace: bool = False,
) -> nn.Module:
    """Fine-tunes one module on clean images, everything else frozen bit for bit (Sec. 3.4 and 5.1).

    Ten epochs of SGD at a rate of 0.001, a tenth of it after five, unless `options` say otherwise.

    Args:
        model: images (N, C, H, W) in [0, 1] to logits (N, K), normalisation inside; left as it was.
        images: a `DataLoader` of (images, labels), read anew in every epoch, with its own batches, order and
            augmentation; or a tensor (N, C, H, W) float32 in [0, 1], in batches of `options.batch_size` whose
            order the seed decides.
        labels: (N,) integers in [0, K); none with a loader.
        module: exact name of a convolution or linear layer, such as `ranking.least_critical`, or several.
        options: `rift.FinetuneConfig(...)`: epochs, rate, optimiser, schedule, BatchNorm's statistics.
        selection: images and labels, or a loader of both, on which the best epoch is chosen, by clean
            accuracy; without it the last epoch's weights are returned. The paper chooses on the test set.
        padding: of a random crop, in pixels, and
        flip: whether images are mirrored at random; of tensors alone, a loader augments by itself.
        seed: of order, crops, flips and dropout.
        batch_size: images at a time on `selection`.
        device: where to compute; the model's own if not given.
        inplace: move the weights of `model` itself and return it.

    Returns:
        A new network like `model`, in the same mode, on the same device.

    Raises:
        UserError: a `ValueError`: what was given cannot be, or training diverged, in one sentence.
    """
    with undisturbed():
        at_least("seed", seed, 0, LARGEST_SEED)
        options = options_of(options, FinetuneConfig, _CHOICE_OF_MODULES)
        runtime = machine(model, device, batch_size, "float32")
        modules = check_modules(model, [module] if isinstance(module, str) else list(module))
        network = runtime.place(own_copy(model, runtime))
        moving = [network.get_submodule(name) for name in modules]
        channels_last, count = runtime.channels_last_in(runtime.precision), None
        if isinstance(images, Tensor):
            split = gathered(images, labels, network, runtime).to(runtime.device)
            count = len(split)

            def passes(epoch: int, skip: int) -> Iterator[Batch]:
                return batches(
                    split,
                    options.batch_size,
                    epoch=epoch,
                    seed=derive_seed("finetune", seed),
                    shuffle=True,
                    padding=padding,
                    padding_mode=options.padding_mode,
                    flip=flip,
                    channels_last=channels_last,
                )
        else:
            if labels is not None:
                raise UserError("labels are given beside a DataLoader, which has its own: leave them out.")
            if padding or flip:
                raise UserError("padding and flip are for tensors: let the DataLoader's data set augment.")
            passes = _passes_of(images, copy.deepcopy(network), runtime)
        judge = None
        if selection is not None:
            chosen = selection if isinstance(selection, tuple) else (selection, None)
            judged = gathered(*chosen, network, runtime).to(runtime.device)
            judge = clean_accuracy_on(judged, network, runtime)
        folder = MemoryFolder()
        tune(network, folder, options, moving, passes, count, judge, runtime, seed)
        weights = folder.load("last" if judge is None else options.select)
        tuned = model if inplace else copy.deepcopy(model)
        tuned.load_state_dict(weights)
    return tuned


def _passes_of(loader: Images, tried: nn.Module, runtime: Runtime) -> Passes:
    """A loader's epochs; an image's index is its place in the pass."""
    device = runtime.device

    def passes(epoch: int, skip: int) -> Iterator[Batch]:
        done = 0
        for images, labels in loaded(loader):
            if epoch == 0:
                check_classes(tried, images[:2].to(device), labels)
            indices = torch.arange(done, done + len(labels), device=device)
            done += len(labels)
            # A copy: a network may write over what it is given.
            yield Batch(runtime.laid_out(images.to(device, copy=True)), labels.to(device), indices)
        if done == 0:
            raise UserError(
                f"the DataLoader gives no batch in epoch {epoch + 1}: give one that can be read anew in "
                "every epoch, not an iterator."
            )

    return passes
