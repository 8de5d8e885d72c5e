"""Every block of Python in README and docs/*.md is run in the situation that the text around it promises."""

from __future__ import annotations

import ast
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from doc_commands import ROOT, blocks, parsed
from test_export import made_up_job
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rift.attacks import Attack
from rift.attacks.pgd import cross_entropy
from rift.export import export_job
from rift.methods import Method

PYTHON = [block for block in blocks() if block.language == "python"]
CLASSES = [str(number) for number in range(10)]
COLOURS = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
Names = dict[str, object]


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> tuple[Path, nn.Module]:
    """A folder with `export/`, of a job with ResNet18 on ten classes, and its θ*."""
    folder = tmp_path_factory.mktemp("exported")
    resnet18 = {"family": "resnet18", "width": 64, "timm_name": None}
    job, _, theta_star = made_up_job(folder, resnet18, channels=3, classes=CLASSES)
    export_job(job, folder / "export")
    return folder, theta_star


# ---- the situations: what a block finds, and what must come of it ----------------------------------------


def four_steps(code: str, _) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
    model = model.append(nn.Linear(4 * 3 * 3, 2)).eval()
    images, labels = torch.rand(24, 3, 8, 8), torch.arange(24) % 2
    loader = DataLoader(TensorDataset(images, labels), batch_size=12)
    found = run(code, model=model, images=images, labels=labels, loader=loader)
    assert 0 < (found["adversarial"] - images).abs().max() <= 8 / 255 + 1e-7
    assert list(found["ranking"]["module"]) == ["0", "4"]
    if promised := re.search(r"# data frame: (.*)", code):
        assert list(found["ranking"].columns) == promised[1].split(", ")
    moved = {
        name.partition(".")[0] for name, value in found["tuned"].state_dict().items()
        if not torch.equal(value, model.state_dict()[name])
    }  # fmt: skip
    assert moved == {found["ranking"].least_critical}
    assert list(found["curve"].columns) == ["alpha", "clean", "robust"] and len(found["curve"]) == 11
    assert found["best"](images).shape == (24, 2)


def loaded_by_rift(code: str, export) -> None:
    _, theta_star = export
    assert torch.equal(run(code)["model"](COLOURS), theta_star(COLOURS))


def loaded_by_hub(code: str, export) -> None:
    _, theta_star = export
    found = run(code.replace("CHECKOUT", str(ROOT)), torch=torch)
    assert torch.equal(found["model"](COLOURS), theta_star(COLOURS))


def loaded_plainly(code: str, export) -> None:
    """In front of the network comes the normalisation that docs/export.md gives for it."""
    _, theta_star = export
    found = run("import safetensors.torch, torch, torchvision\n" + code)
    normalised = inline("torch.nn.Sequential(torchvision.transforms.Normalize")
    model = eval(normalised, found | {"mean": [0.3] * 3, "std": [0.4] * 3})
    assert torch.equal(model(COLOURS), theta_star(COLOURS))


def given_to_robustbench(code: str, _) -> None:
    import rift

    calls, library = [], ModuleType("robustbench.eval")  # a stand-in: the library is not among rift's
    library.benchmark = lambda model, **options: calls.append((model(COLOURS).shape, options))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "robustbench", ModuleType("robustbench"))
        patch.setitem(sys.modules, "robustbench.eval", library)
        run(code, rift=rift)
    ((shape, options),) = calls
    assert shape == (4, 10) and (options["threat_model"], options["eps"]) == ("Linf", 8 / 255)


def a_model_of_others(code: str, _) -> None:
    network = run(code)["tiny_net"](num_classes=3, in_channels=1)
    assert network(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def a_method_of_others(code: str, _) -> None:
    method = run(code)["scaled_at"](scale=2.0)
    network, images, labels = nn.Flatten(), torch.rand(2, 1, 2, 2), torch.tensor([0, 3])
    loss, logits = method.loss(network, images, images, images, labels)
    assert isinstance(method, Method) and torch.equal(logits, images.flatten(1))
    assert torch.equal(loss, 2 * nn.functional.cross_entropy(logits, labels))


def a_data_set_of_others(code: str, _) -> None:
    source = run(code)["stripes"](".", download=False, image_size=8, cache=None)
    assert (len(source.train.labels), len(source.test.labels)) == (200, 100)
    assert source.train.images.dtype == torch.uint8
    above, below = (source.train.images[source.train.labels == label].float() for label in (0, 1))
    assert above[:, :, :4].mean() > 100 > below[:, :, :4].mean()


def an_attack_of_others(code: str, _) -> None:
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    images, attack = torch.full((3, 1, 2, 2), 0.5), Attack("linf", 0.1, 0.05, 2)
    found = run(code)["corner"]
    moved = found(
        network, images, torch.tensor([0, 1, 0]), images, attack=attack, objective=cross_entropy
    )  # fmt: skip
    assert torch.allclose((moved - images).abs(), torch.tensor(0.1))


# The block is told by what it calls or defines.
SITUATIONS: dict[str, Callable[[str, object], None]] = {
    "rift.mrc_scan(": four_steps,
    "\nmodel = rift.load_exported(": loaded_by_rift,
    "torch.hub.load(": loaded_by_hub,
    "torchvision.models.resnet18(": loaded_plainly,
    "from robustbench": given_to_robustbench,
    "def tiny_net(": a_model_of_others,
    "def scaled_at(": a_method_of_others,
    "def stripes(": a_data_set_of_others,
    "def corner(": an_attack_of_others,
}


# ---- the tests -------------------------------------------------------------------------------------------


def situation(where: str, code: str) -> Callable[[str, object], None]:
    found = [run for mark, run in SITUATIONS.items() if mark in code]
    if len(found) != 1:
        pytest.fail(
            f"{where}: no test knows what this block of Python needs: give it a situation in "
            "tests/test_doc_code.py.",
            pytrace=False,
        )
    return found[0]


def distinct() -> Iterator:
    """Blocks that say the same, but for comments, are run once: the first of them, which says more."""
    seen: set[str] = set()
    for block in PYTHON:
        if (same := ast.dump(ast.parse(block.code))) not in seen:
            seen.add(same)
            yield pytest.param(block, id=block.where)


@pytest.mark.parametrize("block", list(distinct()))
def test_it_runs(block, export, monkeypatch):
    monkeypatch.chdir(export[0])
    situation(block.where, block.code)(block.code, export)


def test_a_block_without_a_situation_is_one_sentence():
    with pytest.raises(pytest.fail.Exception, match=r"^page\.md:3: no test knows what this block of Python"):
        situation("page.md:3", "import rift\n")


def test_timm_loads_it_as_the_page_says(export, monkeypatch):
    """The stem is no argument of timm's, so for ResNet18 its name is ours."""
    folder, theta_star = export
    monkeypatch.chdir(folder)
    names = {"NAME": "rift_resnet18"}
    exec("import timm\n" + inline("import rift.models.timm_entrypoints"), names)
    first = inline("timm.create_model(NAME").replace("num_classes=…", "num_classes=10")
    first, second = eval(first, names).eval(), eval(inline('timm.create_model("local-dir:'), names).eval()
    mean, std = (torch.tensor(second.pretrained_cfg[what]).view(-1, 1, 1) for what in ("mean", "std"))
    told = json.loads((folder / "export/rift/config.json").read_text())["pretrained_cfg"]
    assert torch.equal(torch.tensor([told["mean"], told["std"]]), torch.stack([mean, std]).squeeze())
    for network in (first, second):
        assert torch.equal(network((COLOURS - mean) / std), theta_star(COLOURS))


def test_an_export_holds_what_the_page_shows(export):
    (shown,) = [
        block.code for block in blocks() if block.where.startswith("export.md") and not block.language
    ]
    wanted = {line.split()[0].rstrip("/") for line in shown.splitlines()}
    wanted |= {f"at/{name}" for name in re.findall(r"[\w.]+[.]\w+", shown[shown.index("at/") :])}
    found = {path.relative_to(export[0] / "export") for path in (export[0] / "export").rglob("*")}
    assert wanted == {path.as_posix() for path in found if path.parts[:-1] != ("rift",)}


def run(code: str, **names: object) -> Names:
    """What a block has made, of these names."""
    exec(compile(code, "a block", "exec"), names)
    return names


def inline(beginning: str) -> str:
    """The one piece of inline code of docs/export.md that begins so."""
    tokens = parsed(ROOT / "docs" / "export.md")
    children = (child for token in tokens for child in token.children or ())
    pieces = {child.content for child in children if child.type == "code_inline"}
    (found,) = (piece for piece in pieces if piece.startswith(beginning))
    return found
