"""The page of an export: what it is worth, and the lines that load it, ready to be copied."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rift.export.card import NETWORKS, WEIGHTS
from rift.export.measured_on import in_words
from rift.models import MODELS
from rift.models.timm_entrypoints import FAMILIES

_BENCHMARKS = ("cifar10", "cifar100")  # RobustBench's sets that are ours too
_THREATS = {"linf": "Linf", "l2": "L2"}

TimmArguments = tuple[str, dict[str, Any]]


def page(card: Mapping[str, Any], arguments: TimmArguments | None) -> str:
    """Markdown whose code runs in the export's folder, ending with a line break.

    Args:
        card: see `rift.export.contents.make_card`.
        arguments: how timm makes the network, see `timm_arguments`.
    """
    which = "rift" if "rift" in card["weights"] else "at"
    network = card["network"]
    parts = [
        f"# {card['name']}",
        _table(card),
        in_words(card["measured_on"]),
        "With rift, which checks the SHA-256:",
    ]
    parts.append(_block("import rift", "", f'model = rift.load_exported(".", "{which}")'))
    if call := _benchmark(card):
        parts += ["That is what RobustBench takes:", call]
    if plain := plain_lines(network, arguments, which):
        parts += ["With PyTorch and the library that has the class:", _block(*plain)]
    if arguments is not None:
        parts += [
            "As a checkpoint of timm, for normalised images:",
            _block(*timm_lines(network, arguments, which)),
        ]
    parts.append("`card.json` has the numbers with their n, attack and intervals, and how they came about.")
    return "\n\n".join(parts) + "\n"


def _block(*lines: str) -> str:
    return "\n".join(["```python", *lines, "```"])


def _table(card: Mapping[str, Any]) -> str:
    numbers, attack = card["numbers"], card["numbers"]["attack"]
    robust = f"robust ({attack['name']}, {attack['norm']}, {attack['epsilon']})"
    rows = [f"| % | clean | {robust} | n |", "|---|---|---|---|"]
    for name in card["weights"]:
        measured = numbers[name] or {}
        shares = [measured.get(f"{what}_accuracy") for what in ("clean", "robust")]
        cells = ["not measured" if share is None else f"{100 * share:.2f}" for share in shares]
        rows.append(
            f"| {NETWORKS[name]} (`{name}`) | {' | '.join(cells)} | {measured.get('num_images', '')} |"
        )
    return "\n".join(rows)


def _benchmark(card: Mapping[str, Any]) -> str | None:
    attack, dataset = card["numbers"]["attack"], card["job"]["dataset"]
    if dataset not in _BENCHMARKS or attack["norm"] not in _THREATS:
        return None
    threat = f'threat_model="{_THREATS[attack["norm"]]}", eps={attack["epsilon_value"]!r}'
    return _block(
        "from robustbench.eval import benchmark", "", f'benchmark(model, dataset="{dataset}", {threat})'
    )


def plain_lines(network: Mapping[str, Any], arguments: TimmArguments | None, which: str) -> list[str] | None:
    """Lines that need neither rift nor its names in timm; None where no other library has the class.

    Args:
        network: the card's.
        arguments: see `timm_arguments`.
        which: `at` or `rift`.
    """
    family, width = network["family"], network["width"]
    size = f"num_classes={network['num_classes']}, in_chans={network['in_channels']}"
    if arguments is None:
        return None
    if family == "timm":
        made = f'timm.create_model("{arguments[0]}", {size}{_given(arguments)})'
    elif family in ("resnet18", "resnet34") and width == 64:
        made = f"torchvision.models.{family}(num_classes={network['num_classes']})"
    else:  # timm's deep stem has as many channels as it is told
        stages = tuple(width * 2**stage for stage in range(4))
        options = f'layers={MODELS[family].keywords["layers"]}, channels={stages}, stem_type="deep", '
        made = f'timm.create_model("resnet18", {options}stem_width={width // 2}, {size})'
    lines = [f"import {'timm, ' if 'timm' in made else ''}torch, torchvision"]
    lines += ["from safetensors.torch import load_file", "", f"network = {made}"]
    if family in FAMILIES:
        stem = f"torch.nn.Conv2d({network['in_channels']}, {width}, 3, padding=1, bias=False)"
        lines.append(f"network.conv1, network.maxpool = {stem}, torch.nn.Identity()")
    normalise = f"torchvision.transforms.Normalize({network['mean']}, {network['std']})"
    return [
        *lines,
        f'network.load_state_dict(load_file("{which}/{WEIGHTS}"))',
        f"model = torch.nn.Sequential({normalise}, network).eval()",
    ]


def timm_lines(network: Mapping[str, Any], arguments: TimmArguments, which: str) -> list[str]:
    """Lines that load the weights as timm's users do; `local-dir:` brings mean and std along."""
    size = f"num_classes={network['num_classes']}, in_chans={network['in_channels']}{_given(arguments)}"
    ours = ["import rift.models.timm_entrypoints  # gives timm the 3x3 stem", ""]
    return [
        "import timm",
        *(ours if network["family"] in FAMILIES else [""]),
        f'network = timm.create_model("{arguments[0]}", {size}, checkpoint_path="{which}/{WEIGHTS}")',
        f'network = timm.create_model("local-dir:{which}", pretrained=True)  # or so',
    ]


def _given(arguments: TimmArguments) -> str:
    return "".join(f", {name}={value!r}" for name, value in arguments[1].items())
