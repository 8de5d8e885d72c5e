"""Any network of timm, as timm defines and initialises it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from functools import cache

import timm
import torch
from huggingface_hub import constants as hub  # timm's own dependency
from huggingface_hub.errors import LocalEntryNotFoundError
from torch import nn

from rift.errors import UserError
from rift.network import is_reachable


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
    options = {"num_classes": num_classes, "in_chans": in_channels, "pretrained": pretrained}
    try:
        with _fetching(timm_name) if pretrained else nullcontext():
            try:
                model = timm.create_model(timm_name, img_size=image_size, **options)
            except TypeError as error:
                # Only their signature tells which networks of timm are built for one image size.
                if "img_size" not in str(error):
                    raise
                model = timm.create_model(timm_name, **options)
        _check_logits(model, (1, in_channels, image_size, image_size), num_classes)
    except UserError:
        raise
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


@contextmanager
def _fetching(name: str) -> Iterator[None]:
    """Around the loading of published weights: where the hub does not answer, those that are here must do.

    The hub's own client would try for a minute, and for two kinds of file.
    """
    before, hub.HF_HUB_OFFLINE = hub.HF_HUB_OFFLINE, hub.HF_HUB_OFFLINE or not _answers(hub.ENDPOINT)
    try:
        yield
    except LocalEntryNotFoundError as error:
        raise UserError(
            f"the published weights of timm's '{name}' are not here, and {hub.ENDPOINT} does not answer: "
            f"connect once, or bring them into {hub.HF_HUB_CACHE}, or set model.pretrained=false."
        ) from error
    finally:
        hub.HF_HUB_OFFLINE = before


@cache
def _answers(url: str) -> bool:
    """Asked once: every stage makes networks anew."""
    return is_reachable(url)


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
