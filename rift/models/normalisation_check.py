"""Whether imported weights expect another normalisation of their input than they are given."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from rift.errors import UserError

FAR_BETTER = 0.1  # of the images: more than three standard errors of a paired difference on 200 of them

# What published networks for three channels are trained with, beside a data set's own.
_COLOUR = {
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR's": ((0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
}


def check_normalisation(model: nn.Module, images: Tensor, labels: Tensor, source: str) -> str:
    """Measures clean accuracy under the model's normalisation and under the other usual ones.

    Weights alone do not tell what they were trained on, and under the wrong normalisation a good network
    is a bad one without a word.

    Args:
        model: as `build_model` made it, in eval mode; left as found.
        images: (N, C, H, W) float32 in [0, 1], a few hundred.
        labels: (N,).
        source: the weights' origin, for the sentence.

    Returns:
        One sentence: the normalisation in use, the accuracy under it and without any, and whether that is
        hardly more than chance.

    Raises:
        UserError: under another one the accuracy is higher by more than `FAR_BETTER`.
    """
    channels = images.shape[1]
    others = {"none": ((0.0,) * channels, (1.0,) * channels), "[-1, 1]": ((0.5,) * channels,) * 2}
    own = _values(model)
    found = _accuracy(model, images, labels, *own)
    accuracies = {
        name: _accuracy(model, images, labels, *pair)
        for name, pair in {**others, **(_COLOUR if channels == 3 else {})}.items()
    }
    best = max(accuracies, key=accuracies.__getitem__)
    on = f"of {len(images)} training images"
    if accuracies[best] > found + FAR_BETTER:
        mean, std = {**others, **_COLOUR}[best]
        remedy = f"'dataset.mean={list(mean)}' 'dataset.std={list(std)}'"
        raise UserError(
            f"{source} is right on {found:.0%} {on} under the data set's normalisation and on "
            f"{accuracies[best]:.0%} under another ({best}): set "
            f"{'model.normalise=false' if best == 'none' else remedy}."
        )
    mean, std = ([round(value, 4) for value in values] for values in own)
    chance = float(labels.bincount().max()) / len(labels)
    doubt = "; hardly more than chance, so the network may have another activation or padding than theirs"
    return (
        f"Normalises with mean {mean} and std {std}: right on {found:.1%} {on}, without normalisation on "
        f"{accuracies['none']:.1%}{doubt if found < chance + FAR_BETTER else ''}."
    )


def _values(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return tuple(tuple(getattr(model.normalize, kind).flatten().tolist()) for kind in ("mean", "std"))


@torch.no_grad()
def _accuracy(
    model: nn.Module, images: Tensor, labels: Tensor, mean: tuple[float, ...], std: tuple[float, ...]
) -> float:
    buffers = model.normalize.mean, model.normalize.std
    saved = [buffer.clone() for buffer in buffers]
    try:
        for buffer, values in zip(buffers, (mean, std), strict=True):
            buffer.copy_(torch.tensor(values).view_as(buffer))
        return (model(images).argmax(dim=1) == labels).double().mean().item()
    finally:
        for buffer, values in zip(buffers, saved, strict=True):
            buffer.copy_(values)
