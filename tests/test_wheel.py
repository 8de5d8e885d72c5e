"""The built package holds all that a run needs: installed without the checkout, it runs in another folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from importlib.metadata import distributions
from pathlib import Path

import pytest
from tiny_jobs import TINY

ROOT = Path(__file__).resolve().parent.parent


def test_every_package_is_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "rift").rglob("__init__.py")}
    assert listed == found | {"rift.conf"}


def installed_editable() -> bool:
    origins = [json.loads(found.read_text("direct_url.json") or "{}") for found in distributions(name="rift")]
    return any(origin.get("dir_info", {}).get("editable") for origin in origins)


@pytest.mark.skipif(not installed_editable(), reason="rift is not installed from a checkout")
def test_a_script_beside_the_checkout_gets_the_package(tmp_path):
    (tmp_path / "rift" / "docs").mkdir(parents=True)  # what `git clone` makes beside the script
    (tmp_path / "own.py").write_text("import rift; print(rift.__file__)")
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "own.py"], cwd=tmp_path, env=alone, capture_output=True, text=True, check=True
    )
    assert Path(done.stdout.strip()).parts[-2:] == ("rift", "__init__.py")


@pytest.mark.slow
def test_the_wheel_runs_outside_of_the_checkout(tmp_path):
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # A copy, since setuptools leaves its build folder behind.
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    for name in filter(None, tracked.stdout.split("\0")):
        if name.startswith(("rift/", "conf/")) or "/" not in name:
            (tmp_path / "copy" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "copy" / name).write_bytes((ROOT / name).read_bytes())
    built = [*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", str(tmp_path / "dist"), "."]
    subprocess.run(built, cwd=tmp_path / "copy", check=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    surroundings = {**os.environ, "PYTHONPATH": str(site)}

    def run(*arguments):
        return subprocess.run(
            [sys.executable, *arguments], cwd=elsewhere, env=surroundings, capture_output=True, text=True
        )

    where = run("-c", "import rift; print(rift.__file__)")
    assert where.stdout.strip() == str(site / "rift" / "__init__.py")
    job = run("-m", "rift", *TINY, "runtime.threads=1")
    assert job.returncode == 0, job.stderr[-2000:]
    (summary,) = elsewhere.glob("outputs/jobs/demo/*/summary.json")
    for command in (("--output", "report"), ("--html",), ("table1", "--format", "md")):
        shown = run("-m", "rift.report", "outputs/jobs", *command)
        assert shown.returncode == 0, shown.stderr[-2000:]
    exported = run("-m", "rift.export", str(summary.parent))
    assert exported.returncode == 0, exported.stderr[-2000:]
