"""README's first commands, one after the other in one folder as a reader gives them, on few digits."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from doc_commands import ROOT, Command, blocks, in_prose, parsed
from safetensors.torch import load_file
from test_doc_commands import exit_code, why_not_run
from tiny_jobs import TINY
from tiny_jobs import command as run_rift

# The network stays the one that the text names, two channels wide.
SMALL = [
    *(text for text in TINY if not text.startswith(("experiment=", "model.width", "attack.step_size"))),
    "model.width=2",
    "runtime.threads=1",
]
DATA = re.compile(r"dataset=|dataset\.root=|dataset\.download=")


def first_commands() -> list[Command]:
    """Those of the table under the title of that name."""
    tokens = parsed(ROOT / "README.md")
    titles = [at for at, token in enumerate(tokens) if token.type == "heading_open"]
    (begin,) = [at for at in titles if tokens[at + 1].content == "First commands"]
    end = next(at for at in titles if at > begin)
    table = next(at for at in range(begin, end) if tokens[at].type == "table_open")
    return list(in_prose("README.md", tokens[table:end]))


def made_small(words: list[str]) -> list[str]:
    """Digits instead of CIFAR-10, two channels, few images and epochs; of a sweep over seeds the first."""
    words = ["seed=0" if text.startswith("seed=") else text for text in words if not DATA.match(text)]
    data = [] if "experiment=demo" in words else ["dataset=digits"]
    return [*words, *data, *SMALL]


def saved(shown: str) -> list[Path]:
    """The files that a job says it has written."""
    return [Path(path) for path in re.findall(r"^(?:summary|page|figure): +(\S+)$", shown, re.MULTILINE)]


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_they_run_in_their_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    job, ran = Path(), []
    for command in first_commands():
        if why_not_run(command):
            continue
        ran.append(command.text)
        before = sorted(tmp_path.rglob("*"))
        match list(command.words):
            case ["rift", "--check", *rest]:
                code, shown = run_rift("--check", *made_small(rest)), capsys.readouterr().out
                assert "all is well, nothing was written" in shown and sorted(tmp_path.rglob("*")) == before
            case ["rift", "-m", *rest]:
                code, shown = run_rift("-m", *made_small(rest)), capsys.readouterr()
                table = (shown.out + shown.err).rpartition("Jobs of this sweep")[2]
                assert len(re.findall(r"#\d+ .* done", table)) == 3, table
            case ["rift", *rest]:
                code, shown = run_rift(*made_small(rest)), capsys.readouterr()
                assert code == 0, shown.err
                assert [path.name for path in saved(shown.out)][:2] == ["summary.json", "report.md"]
                assert all(path.is_file() for path in saved(shown.out))
                job = check_job(command.text, saved(shown.out)[0].parent, shown.out + shown.err) or job
            case ["python", "-m", "rift.export", "outputs/jobs/STUDY/NAME"]:
                code, shown = exit_code("python", "-m", "rift.export", str(job)), capsys.readouterr()
                check_export(Path(shown.out.strip()), job)
            case ["python", "-m", *rest]:
                code, shown = exit_code("python", "-m", *rest), capsys.readouterr().out
                assert shown
            case _:
                pytest.fail(f"{command.where}: '{command.text}' is not run: teach this test, or NOT_RUN why.")
        assert code == 0, command.text
    assert len(ran) > 12 and ran[0] == "rift experiment=demo"
    assert (tmp_path / "outputs/report/report.html").is_file()
    check_layout(job)


def check_job(text: str, folder: Path, shown: str) -> Path | None:
    """What a command's row promises of its job; returns the folder of the demo's, which is exported."""
    summary = json.loads((folder / "summary.json").read_text())
    if stage := re.fullmatch(r"rift stage=(\w+)", text):  # it and what it needs are found in the store
        assert " reused " in shown and summary["run"] == [stage[1]]
    elif "from_checkpoint" not in text:
        assert {"at", "rift", "mrc", "sweep", "paired"} <= set(summary)
    if target := re.search(r"stage\.finetune\.target=(\S+)", text):
        assert summary["target_modules"] == [target[1]] and summary["method"] == "trades"
    if protocol := re.search(r"protocol=(\w+)", text):
        assert summary["protocol"] == protocol[1]
        on_test = [note for note in summary["notes"] if note.startswith("selected on the test set")]
        assert bool(on_test) == (protocol[1] == "official")
    if "model=resnet18 dataset=cifar10" in text:  # the next row but some wants somebody's weights
        (best,) = Path("outputs/store/at").glob("resnet18_w2-*-pgd_at-*/best.safetensors")
        torch.save(load_file(best), "robust.pt")
    return folder if text == "rift experiment=demo" else None


def check_export(export: Path, job: Path) -> None:
    import rift

    assert export.resolve() == (job / "export").resolve()
    assert rift.load_exported(str(export))(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def check_layout(job: Path) -> None:
    """What lies in the folders of a job and of its stages is what docs/results-format.md shows."""
    plain = [block for block in blocks() if not block.language]
    (shown,) = [block.code for block in plain if block.where.startswith("results-format.md")]
    of_job, of_stage = ({name.rstrip("/") for name in line.split()[1:]} for line in shown.splitlines())
    assert {path.name for path in job.iterdir()} - {"export"} == of_job - {"wandb"}
    weights = "*.safetensors"
    for stage in Path("outputs/store").glob("*/*/manifest.json"):
        found = {weights if path.suffix == ".safetensors" else path.name for path in stage.parent.iterdir()}
        assert of_stage - found <= {weights} and found <= of_stage, stage
