"""Results kept in the repository: what is copied, what is noticed, what the page says; and the real ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import report_samples as samples
import torch
from safetensors.torch import save_file
from tiny_jobs import config_of, script

from rift.assembly import make_attack, make_runtime, make_session
from rift.checkpoint import load_tensors
from rift.provenance import made_elsewhere
from rift.report.kept import MANIFEST, damaged, keep, relative
from rift.report.kept_claims import readme_block
from rift.report.kept_figures import kept_figures
from rift.report.kept_page import SECTIONS, page
from rift.report.kept_study import read_kept, row_jobs

ROOT = Path(__file__).resolve().parent.parent
KEPT = ROOT / "outputs" / "reference" / "cifar10_two_cores"
DATA = Path(os.environ.get("RIFT_TEST_DATA", "/nonexistent"))


@pytest.fixture
def study(tmp_path):
    """A finished study of one job, and its training."""
    output = tmp_path / "outputs"
    for stage in ("at", "interpolate", "evaluate_at", "evaluate_rift"):
        place = output / "store" / stage
        place.mkdir(parents=True)
        for name in ("best", "weights", "verdicts"):
            save_file({"x": torch.zeros(2)}, place / f"{name}.safetensors")
        epoch = {"epoch": 2, "clean_accuracy": 0.7, "robust_accuracy": 0.4}
        about = {"command": f"rift output={output}", "commit": "abcdef123", "seconds": 3600.0}
        counts = {"train": 49_000, "holdout": 1000, "test": 10_000}
        about |= {"best": epoch, "last": epoch, "data": {"counts": counts}}
        (place / "result.json").write_text(json.dumps(about))
    rows = [{"epoch": 1, "train_robust_accuracy": 0.2}, {"train_robust_accuracy": 0.3, **epoch}]
    (output / "store" / "at" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    places = ("at", "interpolate", "evaluate_at", "evaluate_rift")
    stages = {name: str(output / "store" / name) for name in places}
    data = {"counts": counts}
    samples.write(
        output / "jobs" / "cifar10_two_cores",
        study="cifar10_two_cores",
        stages=stages,
        provenance={"commit": "abcdef123", "device": "a CPU", "versions": {"torch": "2"}, "data": data},
        intervals=samples.INTERVALS,
        wall_seconds=dict.fromkeys(stages, 60.0),
    )
    return output


def _keep(study: Path, folder: Path) -> None:
    (job,) = (study / "jobs").rglob("summary.json")
    row = json.loads(job.read_text())
    keep(study, folder, training=study / "store" / "at", row=row, here=study.parent)


def test_what_is_kept_is_whole_and_names_no_place_of_the_machine(study, tmp_path):
    folder = tmp_path / "kept"
    _keep(study, folder)
    assert damaged(folder) == []
    for file in folder.rglob("*.json"):
        assert str(tmp_path) not in file.read_text()
    assert json.loads((folder / "training.json").read_text())["command"] == "rift output=outputs"


def test_keeping_again_replaces_what_was_kept(study, tmp_path):
    folder = tmp_path / "kept"
    _keep(study, folder)
    before = (folder / MANIFEST).read_text()
    stray = folder / "jobs" / "old" / "summary.json"
    stray.parent.mkdir()
    stray.write_text("{}")
    assert damaged(folder) == ["jobs/old/summary.json is not in the manifest"]
    _keep(study, folder)
    assert (folder / MANIFEST).read_text() == before and damaged(folder) == []


def test_a_changed_and_a_missing_file_are_noticed(study, tmp_path):
    folder = tmp_path / "kept"
    _keep(study, folder)
    weights = folder / "theta_star.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    (folder / "training.csv").unlink()
    assert damaged(folder) == ["theta_star.safetensors is not what was kept", "training.csv is missing"]


def test_relative_reaches_into_lists_and_objects():
    told = relative({"a": ["x=/work/out/b", 3, None], "b": {"c": "/work/d"}}, Path("/work"))
    assert told == {"a": ["x=out/b", 3, None], "b": {"c": "d"}}


def test_the_page_shows_what_was_run_and_says_what_was_not(study, tmp_path):
    folder = tmp_path / "kept"
    _keep(study, folder)
    kept = read_kept(folder)
    text = page(kept, {})
    assert "| clean | 1 | 81.00 | 83.75 | +2.75 (+2.35 … +3.15) | better |" in _squeezed(text)
    assert "| AutoAttack, 1000 images | – | – | – | – | not run |" in _squeezed(text)
    for title, table, _ in SECTIONS[1:3]:
        assert f"## {title}\n\nNot run." in text, table
    assert "| Δ | +2.75 (+2.35 … +3.15) | – | +0.05 (-0.25 … +0.35) |" in _squeezed(readme_block(kept))
    assert set(kept_figures(kept)) == {"training", "mrc", "alpha"}


def _squeezed(table: str) -> str:
    return "\n".join(" ".join(line.split()) for line in table.splitlines())


# ---- the real ones ----------------------------------------------------------------------------------------


def test_the_kept_files_are_what_was_kept():
    assert damaged(KEPT) == []


def test_page_and_readme_are_written_from_the_kept_files():
    page_script, kept = script("results_page"), read_kept(KEPT)
    names = {name: f"results-{name}.png" for name in kept_figures(kept)}
    for path, text in page_script.texts(kept, names).items():
        assert path.read_text("utf-8") == text, f"{path} is out of date: run scripts/results_page.py"
    assert all((ROOT / "docs" / name).is_file() for name in names.values())


@pytest.mark.skipif(not (DATA / "cifar-10-batches-py").is_dir(), reason="RIFT_TEST_DATA has no real CIFAR-10")
def test_the_kept_network_gets_the_kept_verdicts():
    """PGD-10 on the first full batch of right images; bit for bit on the same kind of CPU."""
    verdicts, _ = load_tensors(KEPT / "verdicts_at.safetensors")
    made = json.loads((KEPT / "verdicts_at.json").read_text())
    config = config_of(
        "experiment=cifar10_two_cores", f"dataset.root={DATA}", "runtime.precision=float32",
        "runtime.selection_precision=float32",
    )  # fmt: skip
    session = make_session(config, make_runtime(config))
    count = int((verdicts["clean"].cumsum(0) < config.runtime.batch_size).sum()) + 1
    some = session.dataset.test.subset(torch.arange(count))
    weights, _ = load_tensors(KEPT / "theta_at.safetensors")
    found = session.attacked(
        session.network(weights), some, make_attack(config.evaluation_attack), runs=1, exact_runs=True,
        label="evaluate", purpose="evaluation",
    )  # fmt: skip
    clean, robust = verdicts["clean"][:count].bool(), verdicts["robust"][0, :count].bool()
    here = session.runtime.describe()
    same_cpu = made["device"].get("instructions") == here["instructions"]
    if same_cpu and made_elsewhere(made, here["name"]) is None:
        assert torch.equal(found.clean, clean) and torch.equal(found.robust[0], robust)
    # Other kernels round otherwise, and an image on the boundary falls to the other side.
    assert (found.clean != clean).sum() <= 2
    assert (found.robust[0] != robust).sum() <= count // 100
    assert abs(int(found.robust.sum()) - int(robust.sum())) <= count // 100
    assert row_jobs(read_kept(KEPT))
