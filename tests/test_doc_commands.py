"""Every command of README and docs/*.md is composed, parsed or run: a renamed option breaks a test.

Nothing trains here. `test_doc_code.py` runs the blocks of Python, `test_first_commands.py` the first table.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from runpy import run_module

import pytest
from doc_checks import check, what_make_runs
from doc_commands import ROOT, SHELL, Command, blocks, commands, in_block
from report_samples import write
from test_export import made_up_job
from test_plugins import install
from tiny_jobs import command as run_rift

from rift import command_line

# What no program could be given, and why.
EXEMPT = {
    "rift group=choice": "a pattern",
    "rift option=value": "a pattern",
    "python -O": "a switch of Python's",
    "python -m rift.export": "a program's name: it wants a job",
    "python scripts/benchmark.py --only": "what was run: the table below it names the loops",
}
# Why a command of a block, or of README's first table, is not run.
NOT_RUN = {
    r"hydra/launcher=slurm": "needs a cluster: test_slurm.py, where SLURM is installed",
    r"hydra/launcher=gpus": "needs GPUs: test_launchers.py, with pretended ones",
    r"^torchrun ": "needs GPUs: test_distributed.py, two processes on a CPU",
    r"^rift -m experiment=table1": "downloads, and days of a GPU: test_experiments.py, made small",
    r"^pip ": "would change the environment that the tests run in",
    r"^make ": "sets up that environment, or runs the tests themselves",
    r"=(tiny_net|scaled_at|corner)\b": "needs the page's own package: test_plugins.py, all in one job",
}
# Run in the world as they stand; the others are parsed. Those with figures or a page are slow.
RUN = re.compile(r"python -m rift\.(report|export|store|doctor)\b")
DRAWS = re.compile(r"--html|--output report|rift\.report table1$|rift\.doctor")
COMMANDS = [one for one in commands() if one.text not in EXEMPT]


def of_a_package(command: Command) -> bool:
    """Whether it is of the package that docs/extending.md makes."""
    return command.where.startswith("extending.md")


def named(commands: list[Command]) -> list:
    """A script of many sweeps is slow."""
    slow = [pytest.mark.slow]
    return [
        pytest.param(one, id=" ".join(one.words), marks=slow if "two_cores_studies" in one.text else ())
        for one in commands
    ]


def why_not_run(command: Command) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.search(pattern, command.text)), None)


# ---- nothing is overlooked --------------------------------------------------------------------------------


def complain(where: str, sentence: str) -> None:
    pytest.fail(f"{where}: {sentence}", pytrace=False)


def test_each_block_is_of_a_known_kind():
    """The Python blocks are asked for their situation in `test_doc_code.py`."""
    for block in blocks():
        if block.language not in (*SHELL, "python", "toml", ""):
            complain(
                block.where, f"no test runs '{block.language}': teach tests/doc_commands.py that language."
            )
        typed = re.search(r"^\s*(\$|rift|python|make|pip) ", block.code, re.MULTILINE)
        if block.language == "" and typed:
            complain(block.where, "a block of commands without a language is not tested: write ```bash.")


def test_each_command_of_a_block_is_run_or_has_a_reason():
    for command in (one for block in blocks() if block.language in SHELL for one in in_block(block)):
        if not (RUN.match(command.text) or why_not_run(command)):
            complain(
                command.where, f"'{command.text}' is not run: say why in NOT_RUN of {Path(__file__).name}."
            )
    texts = [one.text for one in commands()]
    assert all(any(re.search(pattern, text) for text in texts) for pattern in NOT_RUN)


def test_make_demo_is_what_it_is_said_to_be():
    """The README has `make demo` beside its command."""
    assert what_make_runs(["demo", "VENV=", "PYTHON=python"])[-1] == "python -m rift experiment=demo"
    row = "| the demo, as `make demo` runs it | `rift experiment=demo` |"
    assert row in (ROOT / "README.md").read_text("utf-8")


def test_make_setup_lets_pip_say_what_it_does(tmp_path):
    (install,) = [line for line in what_make_runs(["setup", f"VENV={tmp_path}"]) if " pip install " in line]
    assert "-q" not in install and "'.[dev]'" in install


def test_there_are_commands_and_each_exemption_is_needed():
    assert len(COMMANDS) > 100
    gone = set(EXEMPT) - {one.text for one in commands()}
    assert not gone, f"{gone}: in no page any more, so take it out of EXEMPT."


def test_a_program_that_no_test_knows_is_one_sentence():
    with pytest.raises(
        pytest.fail.Exception, match=r"page\.md:3: no test knows how to check 'curl -O x': teach"
    ):
        check(Command("page.md:3", "curl -O x", ("curl", "-O", "x")))


def test_a_renamed_option_is_found():
    with pytest.raises(pytest.fail.Exception, match=r"stage\.at\.epoch: Key 'epoch' not in"):
        check(Command("page.md:3", "", ("rift", "method=trades", "stage.at.epoch=3")))
    with pytest.raises(AssertionError):
        check(Command("page.md:3", "", ("rift", "-m", "method=trades,trade")))
    with pytest.raises(SystemExit):
        check(Command("page.md:3", "", ("python", "-m", "rift.report", "--htm1")))


# ---- composed and parsed ----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", named([one for one in COMMANDS if not of_a_package(one)]))
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_it_is_composed_or_parsed(command, monkeypatch, tmp_path):
    monkeypatch.setattr(command_line, "has_slurm_extra", lambda: True)
    monkeypatch.setattr(sys, "path", [str(ROOT / "scripts"), *sys.path])
    monkeypatch.chdir(tmp_path)
    check(command)


def test_the_help_gives_commands_that_compose(capsys, monkeypatch):
    assert run_rift("--help") == 0
    lines = re.findall(
        r"^ +((?:rift|python -m rift\.\w+) .*?)(?:   .*)?$", capsys.readouterr().out, re.MULTILINE
    )
    lines = [line for line in lines if "..." not in line and "option=value" not in line]
    assert len(lines) > 5
    for line in lines:
        check(Command("rift --help", line, tuple(shlex.split(line))))


def test_commands_with_a_package_of_others(tmp_path):
    """In one process, where the package of the page is installed."""
    found = [list(one.words[1:]) for one in COMMANDS if of_a_package(one) and one.words[0] == "rift"]
    assert len(found) == 3
    code = (
        "import rift.main; from hydra import compose, initialize_config_dir as use\n"
        "from rift.conf_files import CONF\n"
        "from rift.config import register_plugins, to_config; register_plugins()\n"
        "with use(str(CONF), version_base='1.3'):\n"
        f"    for words in {found!r}: to_config(compose('config', words))\n"
        "print('composed')\n"
    )
    path = os.pathsep.join([str(ROOT), str(install(tmp_path))])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.stdout == "composed\n", done.stderr


# ---- run --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    """A folder in which what the pages call FOLDER, NAME, A or B is there."""
    kept = tmp_path_factory.mktemp("kept")
    job, *_ = made_up_job(kept / "outputs")
    for name in ("A", "B"):
        shutil.copytree(kept / "outputs", kept / name)
    for place in ("outputs/jobs/STUDY/NAME", "outputs/jobs/default/NAME", "NAME"):
        shutil.copytree(job, kept / place)
    for seed in (0, 1):
        write(kept / "outputs/jobs/default", f"resnet18-{seed}", seed=seed)
    return kept


@pytest.fixture
def world(kept, tmp_path, monkeypatch) -> Path:
    """A copy of it, as the working folder; what is exported goes where nothing is."""
    world = shutil.copytree(kept, tmp_path / "world")
    monkeypatch.chdir(world)
    return world


def exit_code(*words: str) -> int:
    """Of `python -m MODULE …` in this process."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(sys, "argv", list(words[2:]))
        run_module(words[2], run_name="__main__", alter_sys=True)
    return left.value.code or 0


RUNNABLE = [
    pytest.param(one, id=" ".join(one.words[2:]), marks=pytest.mark.slow if DRAWS.search(one.text) else ())
    for one in COMMANDS
    if RUN.match(one.text) and one.whole
]


@pytest.mark.parametrize("command", RUNNABLE)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_it_runs_as_it_stands(command, world, capsys):
    code, said = exit_code(*command.words), capsys.readouterr()
    assert code == ("--collect" in command.words), said.out + said.err  # not all of its jobs are done
    assert said.out
    if "--output" in command.words:
        assert any((world / command.words[command.words.index("--output") + 1]).iterdir())
    if "--html" in command.words:
        assert (world / "outputs/report/report.html").stat().st_size > 5e5  # it holds its library
    if "export" in command.words[2] and "--output" not in command.words:
        assert (world / command.words[3] / "export/card.json").is_file()
