"""Starting from anyone's weights: other names for the same network are understood, all else is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import torch
from torch import Tensor, nn

from rift.errors import UserError
from rift.models.checkpoint_file import read_state_dict
from rift.models.checkpoint_form import Images, advice, ends, form
from rift.models.modules import scannable_modules

# What DistributedDataParallel, torch.compile, a wrapper that holds the network as its `model`, and
# nn.Sequential(normalisation, network) put before every name.
_PREFIXES = ("module.", "_orig_mod.", "model.", "1.")
# The widespread CIFAR ResNet's names for what is called like this here and in timm; classifiers have either.
_SYNONYMS = {"shortcut": "downsample", "linear": "fc", "fc": "linear"}
_NORMALISATION = {"mean": "mean", "_mean": "mean", "mu": "mean", "std": "std", "_std": "std", "sigma": "std"}
_CHOOSE = "choose the model and model.width that it was trained with"
# Publications round to four decimals, some up and some down.
_NORMALISATION_TOLERANCE = 1.01e-4


def load_foreign_checkpoint(model: nn.Module, path: str | Path, images: Images | None = None) -> list[str]:
    """Loads weights that were saved by any program into `model`, in place.

    Understood are state dicts in `.safetensors` or by `torch.save`, plain or under `state_dict`,
    `model_state_dict`, `model`, `net`, `best` or `last`; the prefixes of DDP, torch.compile and wrappers that
    normalise; the names of the widespread CIFAR ResNets and WRNs, RobustBench's and Bag-of-Tricks' among
    them; and normalisation layers that agree with the model's own.

    Args:
        model: as `build_model` made it; after a refusal it is what it was before.
        path: the file.
        images: that the model is for, to be named in a refusal.

    Returns:
        One sentence for each kind of thing that was renamed, dropped, filled in or converted.

    Raises:
        UserError: the file cannot be read, or its weights are not exactly this network's.
    """
    path = Path(path).expanduser()
    entries, notes = read_state_dict(path)
    expected = model.state_dict()
    entries = _rename(entries, expected, path, notes)
    entries = _drop_dead_stage(entries, expected, notes)
    entries = _drop_normalisation(entries, expected, model, path, notes)
    entries = _fill_counters(entries, expected, notes)
    _check_fit(entries, expected, list(scannable_modules(model)), path, images or Images())
    entries = _convert(entries, expected, path, notes)
    model.load_state_dict(entries, strict=True)
    return notes


def _rename(
    entries: dict[str, Tensor], expected: dict[str, Tensor], path: Path, notes: list[str]
) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    counts: Counter[str] = Counter()
    for original, value in entries.items():
        name = original
        while name not in expected and name.startswith(_PREFIXES):
            name = name.split(".", 1)[1]
        if name != original:
            counts[f"Stripped the prefix '{original.removesuffix(name)}' from {{}} name(s)."] += 1
        parts = name.split(".")
        synonym = ".".join(_SYNONYMS.get(part, part) for part in parts)
        if name not in expected and synonym in expected:
            name = synonym
            for part in sorted(_SYNONYMS.keys() & parts):
                counts[f"Renamed '{part}' to '{_SYNONYMS[part]}' in {{}} name(s)."] += 1
        if name in renamed:
            raise UserError(f"The checkpoint {path} holds '{name}' twice under different names: remove one.")
        renamed[name] = value
    notes.extend(sentence.format(count) for sentence, count in counts.items())
    return renamed


def _drop_dead_stage(
    entries: dict[str, Tensor], expected: dict[str, Tensor], notes: list[str]
) -> dict[str, Tensor]:
    """The widespread WRN has a second copy of `block1` that its forward never calls."""
    dead = {name for name in entries.keys() - expected.keys() if name.startswith("sub_block1.")}
    if not dead or not any(name.startswith("block1.") for name in expected):
        return entries
    notes.append(f"Dropped {len(dead)} entries of 'sub_block1', which that network never uses.")
    return {name: value for name, value in entries.items() if name not in dead}


def _drop_normalisation(
    entries: dict[str, Tensor], expected: dict[str, Tensor], model: nn.Module, path: Path, notes: list[str]
) -> dict[str, Tensor]:
    own = getattr(model, "normalize", None)
    kept, theirs, differing = {}, {}, False
    for name, value in entries.items():
        kind = _NORMALISATION.get(name.rpartition(".")[2])
        candidate = name not in expected and own is not None and kind is not None
        fits = candidate and value.numel() == own.mean.numel()
        plain = _cast(value, torch.float64) if fits else None
        if plain is None:
            kept[name] = value
            continue
        _check_finite(name, value, torch.float32, path)
        theirs[kind] = plain.flatten()
        difference = theirs[kind] - getattr(own, kind).flatten().double().cpu()
        differing = differing or bool((difference.abs() > _NORMALISATION_TOLERANCE).any())
        notes.append(f"Dropped '{name}', which agrees with the model's own normalisation.")
    if differing:
        ours = {kind: getattr(own, kind).flatten() for kind in theirs}
        raise UserError(
            f"The checkpoint {path} normalises with {_in_words(theirs)} but the model with "
            f"{_in_words(ours)}: set {_normalisation_options(theirs, own)}."
        )
    return kept


def _in_words(values: dict[str, Tensor]) -> str:
    return " and ".join(f"{kind} {tuple(_rounded(value))}" for kind, value in sorted(values.items()))


def _normalisation_options(theirs: dict[str, Tensor], own: nn.Module) -> str:
    """What to type for the checkpoint's normalisation instead of the model's own."""
    rounded = {kind: _rounded(value) for kind, value in sorted(theirs.items())}
    if not any(rounded.get("mean", [1])) and set(rounded.get("std", [0])) == {1}:
        return "model.normalise=false"
    options = [f"'dataset.{kind}={values}'" for kind, values in rounded.items()]
    if bool((own.mean == 0).all()) and bool((own.std == 1).all()):
        options.insert(0, "model.normalise=true")
    return " ".join(options)


def _fill_counters(
    entries: dict[str, Tensor], expected: dict[str, Tensor], notes: list[str]
) -> dict[str, Tensor]:
    """Files from before PyTorch 0.4.1 lack BatchNorm's batch counters; nothing is computed from them."""
    counters = [
        name
        for name in expected.keys() - entries.keys()
        if name.endswith(".num_batches_tracked")
        and name.replace("num_batches_tracked", "running_mean") in entries
    ]
    if counters:
        notes.append(f"Set {len(counters)} missing 'num_batches_tracked' to 0.")
    return entries | {name: torch.zeros_like(expected[name]) for name in counters}


def _check_fit(
    entries: dict[str, Tensor], expected: dict[str, Tensor], layers: list[str], path: Path, images: Images
) -> None:
    missing = [name for name in expected if name not in entries]
    surplus = [name for name in entries if name not in expected]
    both = [name for name in expected if name in entries]
    reshaped = [name for name in both if entries[name].shape != expected[name].shape]
    theirs, ours = ends(entries, layers), ends(expected, layers)
    if not missing and not surplus and reshaped:
        _check_classes(entries, expected, reshaped, layers, path, images)
    problems = []
    if missing:
        problems.append(f"{len(missing)} of the model's entries are missing (first '{missing[0]}')")
    if surplus:
        problems.append(f"{len(surplus)} of its entries are unknown to the model (first '{surplus[0]}')")
    if reshaped:
        shapes = " and not ".join(str(tuple(state[reshaped[0]].shape)) for state in (entries, expected))
        problems.append(f"{len(reshaped)} differ in shape (first '{reshaped[0]}', {shapes})")
    if not problems:
        return
    # Of the same form as the model, the file is a damaged or a varied copy of it.
    remedy = None if advice(entries) == advice(expected) else advice(entries)
    if theirs is not None and ours is not None and theirs != ours:
        (channels, classes), (wanted, told) = theirs, ours
        problems.append(
            f"it takes {channels} channel{'s' * (channels != 1)} and knows {classes} classes where "
            f"{images.ours} has {wanted} and {told}"
        )
        remedy = f"{remedy}, and" if remedy else "choose"
        remedy += f" {images.choice(channels, classes)}"
    form_of_model = form(expected) or ""
    asked = f" ({form_of_model})" if form_of_model.startswith("model=") else ""
    raise UserError(
        f"The checkpoint {path} does not fit the model{asked}: {', '.join(problems)}; {remedy or _CHOOSE}."
    )


def _check_classes(
    entries: dict[str, Tensor],
    expected: dict[str, Tensor],
    reshaped: list[str],
    layers: list[str],
    path: Path,
    images: Images,
) -> None:
    """If nothing but the classifier's number of rows differs, that is what the user should hear."""
    rows = {(len(entries[name]), len(expected[name])) for name in reshaped if entries[name].ndim}
    same_columns = all(entries[name].shape[1:] == expected[name].shape[1:] for name in reshaped)
    if len(rows) == 1 and same_columns and set(reshaped) <= {f"{layers[-1]}.weight", f"{layers[-1]}.bias"}:
        theirs, ours = rows.pop()
        channels, _ = ends(entries, layers) or (0, 0)
        raise UserError(
            f"The checkpoint {path} is for {theirs} classes but {images.ours} has {ours}: choose "
            f"{images.choice(channels, theirs)}, or another checkpoint."
        )


def _convert(
    entries: dict[str, Tensor], expected: dict[str, Tensor], path: Path, notes: list[str]
) -> dict[str, Tensor]:
    """The entries in the model's types; refused is what these cannot hold, and what no network has."""
    converted, counts = {}, Counter[str]()
    for name, value in entries.items():
        mine = expected[name].dtype
        converted[name] = _cast(value, mine)
        if converted[name] is None:
            raise UserError(
                f"The checkpoint {path} holds '{name}' as {_dtype(value.dtype)} where the model has "
                f"{_dtype(mine)}: give the original weights, not quantised ones."
            )
        _check_finite(name, value, mine, path)
        if name.endswith("running_var") and bool((converted[name] < 0).any()):
            raise UserError(
                f"The checkpoint {path} has values in '{name}' that are negative, which no variance is: give "
                "the original weights."
            )
        if value.dtype != mine:
            counts[f"Converted {{}} entries from {_dtype(value.dtype)} to {_dtype(mine)}."] += 1
    notes.extend(sentence.format(count) for sentence, count in counts.items())
    return converted


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor | None:
    """The tensor with real numbers as real numbers and whole ones as whole ones; None if it has neither."""
    if value.is_complex() or value.dtype == torch.bool:
        return None
    if value.is_floating_point() != dtype.is_floating_point:
        return None
    try:
        return value.to(dtype)
    except (RuntimeError, NotImplementedError):  # several values in a byte, as in float4
        return None


def _check_finite(name: str, value: Tensor, dtype: torch.dtype, path: Path) -> None:
    if bool(value.to(dtype).isfinite().all()):
        return
    # From float64, the type of all numbers that the file may have.
    if bool(value.double().isfinite().all()):
        raise UserError(
            f"The checkpoint {path} has values in '{name}' that {_dtype(dtype)} cannot hold: give weights "
            "that were trained in that precision."
        )
    raise UserError(
        f"The checkpoint {path} has values in '{name}' that are not finite: give one from before the "
        "training diverged."
    )


def _dtype(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]
