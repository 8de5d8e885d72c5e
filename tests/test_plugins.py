"""Entry points of other packages: the package of docs/extending.md, installed beside rift."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tiny_jobs import TINY, subprocess_arguments

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/extending.md").read_text(encoding="utf-8")
CODE = "\n\n".join(re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL))
POINTS = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)[0].partition('[project.entry-points."')[2]
MODEL = "model=tiny_net"


def install(target: Path, code: str = CODE, points: str | None = None, version: str = "0.1") -> Path:
    """What `pip install --target` leaves behind: a module, and its metadata."""
    about = target / f"rift_extras-{version}.dist-info"
    about.mkdir(parents=True)
    (target / "rift_extras.py").write_text(code, encoding="utf-8")
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: rift-extras\nVersion: {version}\n")
    text = '[project.entry-points."' + POINTS if points is None else points
    text = re.sub(r'\[project\.entry-points\."([\w.]+)"\]', r"[\1]", text).replace('"', "")
    (about / "entry_points.txt").write_text(text, encoding="utf-8")
    return target


def rift(target: Path, *arguments: str) -> subprocess.CompletedProcess:
    how = subprocess_arguments(*arguments)
    how["env"]["PYTHONPATH"] += f":{target}"
    how["env"]["OMP_NUM_THREADS"] = "1"
    return subprocess.run(**how, capture_output=True, text=True, cwd=target, timeout=300)


def test_names_are_listed_and_composed_without_an_import(tmp_path):
    target = install(tmp_path, "raise SystemExit('imported')")
    shown = rift(target, "--help")
    assert shown.returncode == 0, shown.stderr
    groups = dict(re.findall(r"^(\w+): (.*)$", shown.stdout, re.MULTILINE))
    wanted = {"model": "tiny_net", "method": "scaled_at", "dataset": "stripes", "attack": "corner"}
    assert all(name in groups[group].split(", ") for group, name in wanted.items())
    composed = rift(target, "--cfg", "job", MODEL, "+model.options.channels=4", "attack=corner")
    assert composed.returncode == 0, composed.stderr
    assert "family: tiny_net" in composed.stdout and "channels: 4" in composed.stdout


REFUSED = {
    "own": (
        {"points": "[rift.models]\nresnet18 = rift_extras:tiny_net"},
        ["seed=1"],
        "rift-extras 0.1 offers a model named 'resnet18', which is rift's own",
    ),
    "broken": (
        {"code": "import no_such_thing"},
        [MODEL],
        "model=tiny_net of the package rift-extras 0.1 cannot be imported (ModuleNotFoundError: No module",
    ),
    "option": ({}, [MODEL, "+model.options.chanels=4"], "did you mean 'channels'?"),
    "type": ({}, [MODEL, "+model.options.channels=wide"], "model.options.channels=wide is no int"),
    "not a plugin's": ({}, ["+model.options.channels=4"], "model.options are for a plugin's model"),
    "not installed": ({}, ["attack.plugin=os"], "attack.plugin=os is no attack of an installed package"),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_is_one_sentence(what, tmp_path):
    package, arguments, sentence = REFUSED[what]
    done = rift(install(tmp_path / "site", **package), *TINY, f"output={tmp_path / 'out'}", *arguments)
    assert done.returncode == 2 and sentence in done.stderr
    assert done.stderr.strip().count("\n") == 0 and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_job_of_nothing_but_plugins(tmp_path):
    target, out = install(tmp_path / "site"), tmp_path / "out"
    chosen = [MODEL, "dataset=stripes", "dataset.mean=[0.5]", "dataset.std=[0.25]", "method=scaled_at"]
    tiny = [option for option in TINY if not option.startswith("model.width")]
    command = [*tiny, *chosen, "attack=corner", "attack.epsilon=0.1", f"output={out}"]
    done = rift(target, *command, "+method.options.scale=0.5", "+dataset.options.noise=30")
    assert done.returncode == 0, done.stderr
    (at,) = out.glob("store/at/tiny_net*")
    assert at.name.startswith("tiny_net-stripes-scaled_at-s0-")
    options = json.loads((at / "options.json").read_text())
    own = {"package": "rift-extras", "version": "0.1"}
    for plugin in (options["model"]["plugin"], options["method"]["plugin"], options["data"]["plugin"]):
        assert own.items() <= plugin.items() and len(plugin["sha256"]) == 64
    assert options["method"]["scale"] == 0.5 and options["data"]["plugin"]["options"] == {"noise": 30}
    assert options["attack"]["plugin"] == "corner" and ["version", "0.1"] in options["attack"]["identity"]
    (summary,) = out.glob("jobs/*/*/summary.json")
    told = json.loads(summary.read_text())
    assert told["rift"]["clean_accuracy"] > 0.4
    assert set(told["plugins"]) == {"model", "method", "dataset", "attack"}
    # Another version's results do not mix; and results of ours have no such mark.
    (target / "rift_extras-0.1.dist-info").rename(target / "old")
    again = rift(install(tmp_path / "new", version="0.2"), *command, "stage.run=[at]")
    assert again.returncode == 0, again.stderr
    assert len(list(out.glob("store/at/tiny_net*"))) == 2


def test_pages_code_is_python():
    compile(CODE, "docs/extending.md", "exec")
    assert set(re.findall(r"^def (\w+)", CODE, re.MULTILINE)) == {
        "tiny_net",
        "scaled_at",
        "stripes",
        "corner",
    }


def test_results_of_our_own_carry_no_mark():
    from rift.plugins import identity

    assert identity("model", "resnet18") == () and sys.modules.get("rift_extras") is None
