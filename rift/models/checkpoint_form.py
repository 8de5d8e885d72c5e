"""Which network a file of weights is of, told from its names and shapes: for the sentence of a refusal."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from rift.models.registry import MODELS, own_width

_RESNETS = {(2, 2, 2, 2): "resnet18", (3, 4, 6, 3): "resnet34", (1, 1, 1, 1): "resnet_small"}
# Where networks take their images and give their logits, if it is not where the model at hand does.
_STEMS = ("conv1", "init_conv", "conv_stem", "stem.0", "stem.conv", "patch_embed.proj", "features.0")
_HEADS = ("fc", "linear", "logits", "classifier", "head", "head.fc")


@dataclass(frozen=True)
class Images:
    """The images that a network is wanted for, and others that weights may be for.

    Attributes:
        ours: name of the data set.
        known: of data sets by name, channels of their images and number of their classes.
    """

    ours: str = "the data set"
    known: Mapping[str, tuple[int, int]] = field(default_factory=dict)

    def choice(self, channels: int, classes: int) -> str:
        """What to say in place of our data set, part of a sentence."""
        fitting = [f"dataset={name}" for name, ends in self.known.items() if ends == (channels, classes)]
        return "the data set that it was trained on" + (f" ({' or '.join(fitting)}?)" if fitting else "")


def ends(entries: Mapping[str, Tensor], layers: Sequence[str]) -> tuple[int, int] | None:
    """Channels that a network takes and classes that it tells apart, if its first and last layer are found.

    Args:
        entries: tensors by name.
        layers: names of the layers of the model at hand, in order.
    """
    stem = _first(entries, [layers[0], *_STEMS], dims=4)
    head = _first(entries, [layers[-1], *_HEADS], dims=2)
    return None if stem is None or head is None else (stem.shape[1], head.shape[0])


def _first(entries: Mapping[str, Tensor], layers: Sequence[str], dims: int) -> Tensor | None:
    found = (entries.get(f"{layer}.weight") for layer in layers)
    return next((weight for weight in found if weight is not None and weight.ndim == dims), None)


def advice(entries: Mapping[str, Tensor]) -> str | None:
    """What to do about weights that do not fit: the choice of `model` whose form they have, if one is known.

    Args:
        entries: tensors by the names in the file, without prefixes.

    Returns:
        The end of a sentence ("choose model=wrn34_10 model.width=20, whose form it has"), or None.
    """
    found = form(entries)
    if found is None:
        return None
    if found.startswith("model="):
        return f"choose {found}, whose form it has"
    return f"it is {found}, which is no choice of model"


def form(entries: Mapping[str, Tensor]) -> str | None:
    """The network with these names and shapes: what to type ("model=wrn34_10"), or its name in words."""
    convolutions = {name: value for name, value in entries.items() if value.dim() == 4}
    others = {name: value for name, value in entries.items() if "conv" not in name}
    return _wide(convolutions) or _narrow(convolutions | others)


def _wide(entries: Mapping[str, Tensor]) -> str | None:
    forms = (
        ("block1.layer.{}.conv1.weight", "wrn", ""),
        ("layer.0.block.{}.conv_0.weight", "wrn_silu_", " with SiLU"),
    )
    for name, prefix, kind in forms:
        blocks = 0
        while name.format(blocks) in entries:
            blocks += 1
        if blocks:
            depth, width = 6 * blocks + 4, _channels(entries[name.format(0)]) // 16
            family = next((name for name in MODELS if name.startswith(f"{prefix}{depth}_")), None)
            return _typed(family, width) or f"a wide ResNet {depth}-{width}{kind}"
    return None


def _narrow(entries: Mapping[str, Tensor]) -> str | None:
    if "layer_0.0.conv_2d_1.weight" in entries:
        return "the pre-activation ResNet with SiLU and 3×3 shortcuts of Gowal et al."
    stem = entries.get("conv1.weight")
    blocks = [name[5] for name in entries if re.fullmatch(r"layer[1-4]\.\d+\.conv1\.weight", name)]
    layers = tuple(blocks.count(stage) for stage in "1234")
    # Three convolutions in a block, or a stem of 7×7, are of other ResNets.
    if stem is None or stem.shape[-1:] != (3,) or "layer1.0.conv3.weight" in entries:
        return None
    if "bn1.weight" in entries:
        return _typed(_RESNETS.get(layers), _channels(stem))
    if layers == (2, 2, 2, 2) and "layer1.0.bn1.weight" in entries:
        if "bn.weight" in entries:
            return _typed("preact_resnet18", _channels(stem))
        return "a pre-activation ResNet18 without a BatchNorm before its classifier"
    return None


def _channels(weight: Tensor) -> int:
    return weight.shape[0] if weight.ndim else 0


def _typed(family: str | None, width: int) -> str | None:
    if family is None:
        return None
    return f"model={family}" + ("" if width == own_width(family) else f" model.width={width}")
