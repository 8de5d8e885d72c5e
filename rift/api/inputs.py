"""What is handed to the interface, checked: each mistake is one sentence before anything is computed."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from rift.attacks import Attack
from rift.data import Dataset, Split
from rift.errors import UserError, choose_from
from rift.limits import LARGEST_SEED, at_least, one_of
from rift.models import scannable_modules
from rift.runtime import Runtime, batchnorm_layers, choose_device, choose_precision, row_major_is_faster
from rift.runtime.crafting import traceable
from rift.runtime.switches import generators_kept
from rift.stages import Session

Images = Tensor | Iterable[Any]
"""A tensor (N, C, H, W), or a `DataLoader` (any iterable) of pairs of images and labels."""


def machine(model: nn.Module, device: str | torch.device | None, batch_size: int, precision: str) -> Runtime:
    """The runtime for somebody's network: the device that it is on, unless another is named.

    Raises:
        UserError: no such device, precision or batch size, or a network that is no float32 module.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"model is a {type(model).__name__}: give a torch.nn.Module.")
    wrong = [n for n, p in model.named_parameters() if p.is_floating_point() and p.dtype != torch.float32]
    if wrong:
        dtype = model.get_parameter(wrong[0]).dtype
        raise UserError(f"model's {wrong[0]} is of {dtype}: give model.float().")
    one_of("precision", precision, ("auto", "float32", "bfloat16"))
    at_least("batch_size", batch_size, 1)
    places = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    if len(places) > 1:
        raise UserError(f"model lies on {', '.join(sorted(map(str, places)))}: move it to one device first.")
    own = next(iter(places), torch.device("cpu"))
    chosen = own if device is None else choose_device(str(device))
    low = choose_precision(precision, chosen)
    on_gpu = chosen.type == "cuda"
    # What mixes the images of a batch sees which others are there: no filling up, no graphs of full batches.
    mixes = any(layer.running_mean is None for layer in batchnorm_layers(model))
    return Runtime(
        device=chosen,
        selection_precision=low,
        evaluation_precision=low,
        row_major_float32=on_gpu and row_major_is_faster(chosen),
        full_batches=on_gpu and not mixes,
        cuda_graphs=on_gpu and not mixes and traceable(model),
        batch_size=batch_size,
        save_seconds=float("inf"),
    )


def own_copy(model: nn.Module, runtime: Runtime) -> nn.Module:
    """A copy of the network on the device, in eval mode and without gradients; the network stays as it is.

    Raises:
        UserError: it cannot be copied.
    """
    try:
        twin = copy.deepcopy(model)
    except Exception as error:  # a module may hold anything
        raise UserError(
            f"model cannot be copied ({str(error).splitlines()[0] if str(error) else type(error).__name__}): "
            "copy.deepcopy(model) has to work, with torch.nn.utils.parametrizations instead of its "
            "predecessors, say."
        ) from error
    for parameter in twin.parameters():
        parameter.grad = None
    return runtime.place(twin, torch.float32).eval().requires_grad_(False)


def gathered(images: Images, labels: Tensor | None, model: nn.Module, runtime: Runtime) -> Split:
    """All images and labels as a split, where they are; an image's index is its place in it.

    Args:
        images: (N, C, H, W) float32 in [0, 1], or a loader of such batches and their labels.
        labels: (N,) integers, or None with a loader.
        model: in eval mode on the runtime's device; it says how many classes there are.
        runtime: its device.

    Raises:
        UserError: they are not so.
    """
    if isinstance(images, Tensor):
        if labels is None:
            raise UserError("labels are missing: give one for each image, or a DataLoader of both.")
        parts = [pair(images, labels)]
    else:
        if labels is not None:
            raise UserError("labels are given beside a DataLoader, which has its own: leave them out.")
        parts = list(loaded(images))
        if not parts:
            raise UserError("the DataLoader gives no batch: check its data set, batch_size and drop_last.")
        shapes = {tuple(part.shape[1:]) for part, _ in parts}
        if len(shapes) > 1:
            raise UserError(f"the DataLoader's images differ in size ({shapes}): resize them.")
    found = torch.cat([part for part, _ in parts]) if len(parts) > 1 else parts[0][0]
    targets = torch.cat([part for _, part in parts]) if len(parts) > 1 else parts[0][1]
    check_classes(model, found[:2].to(runtime.device), targets)
    found = found.detach().contiguous()
    return Split(found, targets.to(found.device), torch.arange(len(found), device=found.device))


def loaded(loader: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a loader, each batch checked.

    Raises:
        UserError: it gives something else than pairs of images and labels.
    """
    if isinstance(loader, str | bytes | dict) or not isinstance(loader, Iterable):
        raise UserError(f"images are a {type(loader).__name__}: give a tensor (N, C, H, W) or a DataLoader.")
    for batch in loader:
        if not (isinstance(batch, list | tuple) and len(batch) == 2):
            raise UserError(
                f"the DataLoader gives a {type(batch).__name__}: batches have to be pairs (images, labels)."
            )
        yield pair(*batch)


def pair(images: Any, labels: Any) -> tuple[Tensor, Tensor]:
    """Images and labels of one batch or of all, checked; labels as int64.

    Raises:
        UserError: another shape, type or range.
    """
    for name, value in (("images", images), ("labels", labels)):
        if not isinstance(value, Tensor):
            raise UserError(f"{name} are a {type(value).__name__}: give a tensor (torch.as_tensor).")
    if images.dim() != 4:
        raise UserError(f"images have the shape {tuple(images.shape)}: give (N, C, H, W).")
    if images.dtype != torch.float32:
        whole = " / 255" if images.dtype == torch.uint8 else ""
        raise UserError(f"images are of {images.dtype}: give float32 in [0, 1], images.float(){whole}.")
    if labels.dim() != 1 or len(labels) != len(images):
        raise UserError(
            f"labels have the shape {tuple(labels.shape)} beside {len(images)} images: give one class number "
            "for each."
        )
    if len(images) == 0:
        raise UserError("there are no images: give one or more.")
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise UserError(f"labels are of {labels.dtype}: give class numbers, labels.long().")
    low, high = images.min().item(), images.max().item()
    if not (low >= 0 and high <= 1):  # NaN is neither
        raise UserError(
            f"images are outside [0, 1] (from {low:.3g} to {high:.3g}): give them unnormalised, and put the "
            "normalisation into the model."
        )
    return images, labels.long()


@torch.no_grad()
def check_classes(model: nn.Module, images: Tensor, labels: Tensor) -> None:
    """Tries the network on some images: it has to give a logit for every class.

    Raises:
        UserError: it does not take such images, gives no logits, or has no such class.
    """
    try:
        logits = model(images)
    except Exception as error:  # somebody's code, which fails in any way it likes
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise UserError(f"model does not take images of {tuple(images.shape[1:])} ({reason}).") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or len(logits) != len(images):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(f"model gives {shape} for {len(images)} images: it has to give logits (N, classes).")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= logits.shape[1]:
        raise UserError(
            f"labels go from {low} to {high}, but the model has {logits.shape[1]} classes, 0 to "
            f"{logits.shape[1] - 1}."
        )


def check_modules(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Names of convolutions and linear layers, each of which the network has, in its order.

    Raises:
        UserError: none is given, or one is not of those.
    """
    known = scannable_modules(model)
    if not names:
        raise UserError("module names nothing: give the name of a convolution or linear layer.")
    for name in names:
        if name in known:
            continue
        others = dict(model.named_modules())
        if name in others:
            inside = [inner for inner in known if inner.startswith(f"{name}.")]
            say = f": name one of those inside, {choose_from(name, inside)}" if inside else ""
            kind = type(others[name]).__name__
            raise UserError(f"module={name} is a {kind}, no convolution or linear layer{say}.")
        raise UserError(f"module={name} is no module of this network: {choose_from(str(name), known)}.")
    return [name for name in known if name in names]


def attack_of(epsilon: float | None, attack: Attack | None) -> Attack:
    """The attack that is meant: the paper's, of another radius or not, or one that is given whole.

    The step of another radius is a quarter of it, as the paper's 2/255 is of 8/255.

    Raises:
        UserError: both are given, or numbers that cannot be.
    """
    if epsilon is not None and attack is not None:
        raise UserError("epsilon and attack are both given: put the radius into attack, Attack(epsilon=...).")
    if attack is None:
        chosen = Attack() if epsilon is None else Attack(epsilon=epsilon, step_size=epsilon / 4)
    else:
        chosen = attack
    one_of("attack.norm", chosen.norm, ("linf", "l2"))
    one_of("attack.keep", chosen.keep, ("last", "best"))
    at_least("attack.steps", chosen.steps, 1)
    at_least("attack.step_size", chosen.step_size, 0)
    where = "epsilon" if attack is None else "attack.epsilon"
    at_least(where, chosen.epsilon, 0)
    if chosen.norm == "linf" and chosen.epsilon > 1:
        raise UserError(f"{where}={chosen.epsilon:g} is more than a pixel's range [0, 1]: give 8/255, say.")
    return chosen


def options_of(given: Any, kind: type, unused: Sequence[str], **shortcuts: Any) -> Any:
    """The options that are meant: the paper's where none are given, with what was said beside them.

    Args:
        given: an instance of `kind`, or None.
        kind: a dataclass of `rift.stage_options`.
        unused: options of the command line alone, which would be ignored here.
        shortcuts: values that stand for an option; None for none.

    Raises:
        UserError: another kind, an option that is ignored here, or a value that cannot be.
    """
    if given is not None and not isinstance(given, kind):
        raise UserError(f"options are a {type(given).__name__}: give rift.{kind.__name__}(...).")
    options = kind() if given is None else given
    options = replace(options, **{name: value for name, value in shortcuts.items() if value is not None})
    assert is_dataclass(options)
    for entry in fields(options):
        default = entry.default if entry.default is not MISSING else entry.default_factory()
        value = getattr(options, entry.name)
        if entry.name in unused and value != default:
            raise UserError(f"options.{entry.name}={value} is of the command line alone: leave it out here.")
    options.check("options")
    return options


def session_of(model: nn.Module, split: Split, runtime: Runtime, seed: int) -> Session:
    """The surroundings that the stages ask for, with these images as every split.

    Args:
        model: a copy of one's own, see `own_copy`; copied again for each network that is asked for.
        split: on the runtime's device.
        runtime: device, precision, fast paths.
        seed: of everything random.
    """
    at_least("seed", seed, 0, LARGEST_SEED)
    nothing: tuple[Any, ...] = ()
    dataset = Dataset("images", split, None, split, nothing, nothing, nothing, {})
    return Session(dataset, runtime, seed, lambda: copy.deepcopy(model))


@contextmanager
def undisturbed() -> Iterator[None]:
    """Global random generators stay as they are, and sentences speak of this interface's arguments."""
    try:
        with generators_kept():
            yield
    except UserError as error:
        raise UserError(_in_our_words(error.args[0])) from error


def _in_our_words(sentence: str) -> str:
    """The stages' sentences name the command line's options."""
    sentence = re.sub(r"\bstage\.(?:mrc|finetune|interpolate)\.", "options.", sentence)
    return sentence.replace("runtime.batch_size", "batch_size").replace(
        "lower runtime.cache_mib (fewer activations are kept, the numbers stay)",
        "give fewer images, options.max_images",
    )
