"""Any network of timm, as timm defines and initialises it."""

from __future__ import annotations

from difflib import get_close_matches

import timm
import torch
from torch import nn

from rift.errors import UserError


def timm_model(
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    timm_name: str | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """timm's `timm_name` with a new classifier.

    Args:
        timm_name: a name of timm's registry, with or without the tag of its weights ("resnet50.a1_in1k").
        num_classes: logits.
        in_channels: channels of the images.
        image_size: side of the square images in pixels; passed on to networks made for one size only.
        pretrained: start from timm's weights, which are downloaded. The normalisation stays the data set's.

    Returns:
        A network that takes normalised images (N, C, image_size, image_size) and gives logits.

    Raises:
        UserError: timm has no such network or weights, or the network does not take such images.
    """
    if timm_name is None:
        raise UserError(
            "model=timm needs the network's name: set model.name, for example model.name=resnet50."
        )
    _check_name(timm_name)
    options = {"num_classes": num_classes, "in_chans": in_channels}
    try:
        try:
            model = timm.create_model(timm_name, pretrained=pretrained, img_size=image_size, **options)
        except TypeError as error:
            # Nothing in timm tells which networks are built for one image size; only their signature does.
            if "img_size" not in str(error):
                raise
            model = timm.create_model(timm_name, pretrained=pretrained, **options)
        _check_logits(model, (1, in_channels, image_size, image_size), num_classes)
    # What goes wrong is up to timm's network or to its download, so it can be any exception.
    except Exception as error:
        # timm's advice in later lines and its full stop would make two sentences of this one.
        reason = f"{type(error).__name__}: {error}".splitlines()[0].rstrip(". ")
        size = f"{in_channels}x{image_size}x{image_size} images"
        remedy = "choose another model.name or dataset.image_size"
        if pretrained:
            remedy += ", or start from random weights with model.pretrained=false"
        raise UserError(f"timm's '{timm_name}' cannot be built for {size} ({reason}): {remedy}.") from error
    return model


def _check_name(name: str) -> None:
    # timm would also take the address of a hub or a folder; what those hold is not ours to trust.
    known = timm.list_models()
    if "." in name and name.split(".", 1)[0] in known:
        known = timm.list_pretrained()  # the name is right but for its tag, perhaps
    if name not in known and not (timm.is_model(name) and "." not in name):  # old names are not listed
        near = get_close_matches(name, known, n=3, cutoff=0.3)
        hint = f"; the nearest are {', '.join(near)}" if near else ""
        raise UserError(f"timm has no model '{name}'{hint}: set model.name to a name of timm.list_models().")


def _check_logits(model: nn.Module, shape: tuple[int, ...], num_classes: int) -> None:
    model.eval()  # one image: BatchNorm keeps its statistics and nothing random is drawn
    with torch.no_grad():
        logits = model(torch.zeros(shape))
    model.train()
    if tuple(logits.shape) != (1, num_classes):
        raise ValueError(f"it gives {tuple(logits.shape)} and not {num_classes} logits for an image")
