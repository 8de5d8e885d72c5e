"""A hostile command line: nothing is executed, read from elsewhere, or taken from the environment."""

from __future__ import annotations

import pickle
import subprocess
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import get_type_hints

import pytest
from omegaconf import OmegaConf
from tiny_jobs import TINY, command, composed, subprocess_arguments

from rift.command_line import LAUNCHERS, LONGEST, check_arguments
from rift.config import Config, to_config
from rift.errors import LONGEST_SENTENCE, UserError, printable
from rift.explain import EXPECTED, explain, option_names
from rift.method_options import MethodConfig


class Touch:
    """Pickled, it makes a file when it is read; named as a target, likewise."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.fixture
def trap(tmp_path):
    """Names for what would be executed, all of which would make the file `executed`."""
    mark = tmp_path / "executed"
    stranger = tmp_path / "stranger"
    (stranger / "experiment").mkdir(parents=True)
    evil = (
        f"# @package _global_\nhydra:\n  callbacks:\n    x: {{_target_: pathlib.Path.touch, self: {mark}}}\n"
    )
    target = (
        f"hydra:\n  callbacks:\n    x:\n      _target_: builtins.open\n      file: {mark}\n      mode: w\n"
    )
    (stranger / "experiment" / "evil.yaml").write_text(f"# @package _global_\n{target}")
    (stranger / "config.yaml").write_text(f"defaults: [_self_]\n{target}")
    (stranger / "plain.yaml").write_text(evil)
    (tmp_path / "rerun.pickle").write_bytes(pickle.dumps(Touch(mark)))
    return tmp_path


OPEN = "_target_:builtins.open,file:{trap}/executed,mode:w"
FACTORY = "()"
HOSTILE = [
    ["+hydra.callbacks.x={{" + OPEN + "}}"],
    ["hydra.callbacks={{x:{{" + OPEN + "}}}}"],
    ["hydra.callbacks.sweep_plan._target_=os.abort"],
    ["+hydra.job_logging.handlers.x={{'" + FACTORY + "':builtins.open,file:{trap}/executed,mode:w}}"],
    ["+hydra.job_logging={{version:1,root:{{level:INFO}},handlers:{{x:{{class:os.abort}}}}}}"],
    ["+hydra.hydra_logging.handlers.x={{'" + FACTORY + "':builtins.open,file:{trap}/executed,mode:w}}"],
    ["hydra/job_logging=default"],
    ["hydra/hydra_logging=disabled"],
    ["--config-dir={trap}/stranger", "+experiment=evil"],
    ["--config-d", "{trap}/stranger"],
    ["-cd", "{trap}/stranger"],
    ["--config-path={trap}/stranger"],
    ["-cp", "{trap}/stranger"],
    ["--config-name={trap}/stranger/config"],
    ["-cn", "evil"],
    ["--experimental-rerun={trap}/rerun.pickle"],
    ["--exp", "{trap}/rerun.pickle"],
    ["hydra.searchpath=[file://{trap}/stranger]", "experiment=evil"],
    ["experiment={trap}/stranger/experiment/evil"],
    ["experiment=../../../../../../../../../../..{trap}/stranger/experiment/evil"],
    ['experiment="../../{trap}/stranger/plain"'],
    ["+experiment@_global_=demo"],
    ["attack@hydra.callbacks.x=pgd10"],
    ["hydra/launcher@hydra.callbacks.x=basic"],
    ["hydra.launcher._target_=os.abort"],
    ["-m", "hydra.launcher._target_=os.abort"],
    ["-m", "hydra/launcher=basic,joblib"],
    ["-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs={{" + OPEN + "}}"],
    ["-m", "hydra/launcher=submitit_slurm", "hydra.launcher.setup=[touch {trap}/executed]"],
    ["-m", "hydra/launcher=submitit_slurm", "+hydra.launcher.python=touch"],
    ["-m", "hydra/launcher=submitit_slurm", "hydra.launcher.submitit_folder={trap}"],
    ["-m", "hydra.sweeper._target_=os.abort"],
    ["-m", "hydra/sweeper=optuna"],
    ["-m", "+hydra.sweeper.params={{hydra.callbacks: x}}"],
    ["hydra.job.env_set.PYTHONPATH={trap}"],
    ["hydra.job.chdir=true"],
    ["hydra.run.dir=../../x"],
    ["hydra.sweep.dir={trap}/../x"],
    ["hydra.sweep.subdir=../../x"],
    ["hydra.output_subdir=../x"],
    ["hydra={{run:{{dir:x}}}}"],
    ["~hydra.callbacks"],
]


@pytest.mark.parametrize("arguments", HOSTILE, ids=lambda arguments: " ".join(arguments)[:60])
def test_nothing_is_executed_or_read_from_elsewhere(trap, capsys, monkeypatch, arguments):
    """Through the whole entry point, whose job would fail the test."""
    monkeypatch.setattr("rift.job.run_job", lambda *_: pytest.fail("the job began"))
    before = set(trap.rglob("*"))
    typed = [text.format(trap=trap) for text in arguments]
    assert command(*typed, "logger=none", f"output={trap}/out") == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and captured.err.startswith("rift: error: ")
    assert captured.out == ""
    assert set(trap.rglob("*")) == before, "something was executed or written"


@pytest.mark.parametrize("arguments", [HOSTILE[0], HOSTILE[15]], ids=["callback", "rerun"])
def test_the_trap_springs_where_nothing_is_checked(trap, monkeypatch, arguments):
    """Else the test above would show nothing."""
    monkeypatch.setattr("rift.main.check_arguments", lambda arguments, **_: None)
    monkeypatch.setattr("rift.main._run", lambda composed: 0.0)
    typed = [text.format(trap=trap) for text in arguments]
    with suppress(Exception):  # Hydra stumbles over what it has made
        command(*typed, "logger=none", f"output={trap}/out")
    assert (trap / "executed").exists()


# -- interpolation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["study", "output", "logger.project", "dataset.root", "model.checkpoint"])
@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:RIFT_SECRET}",
        "x${oc.env:RIFT_SECRET}",
        '"${oc.env:RIFT_SECRET}"',
        "'${oc.env:RIFT_SECRET}'",
        "${oc.env:RIFT_SECRET,none}",
        "${ oc.env : RIFT_SECRET }",
        "${oc.${logger.name}:RIFT_SECRET}",
        "'${oc.decode:\"\\${oc.env:RIFT_SECRET}\"}'",
        "'${oc.create:\"{a: \\${oc.env:RIFT_SECRET}}\"}'",
        "${oc.select:hydra.job.env_set}",
        "${hydra:runtime.cwd}",
        "${hydra.runtime.cwd}",
        "${.hydra.runtime.cwd}",
        "${now:%Y}",
        "${python_version:}",
    ],
)
def test_no_secret_gets_into_a_value(tmp_path, capsys, monkeypatch, option, value):
    monkeypatch.setenv("RIFT_SECRET", "hunter2")
    monkeypatch.setattr("rift.job.run_job", lambda *_: pytest.fail("the job began"))
    arguments = ["logger=none", f"output={tmp_path}/out", f"{option}={value}"]
    assert command(*arguments) == 2
    captured = capsys.readouterr()
    assert "hunter2" not in captured.err + captured.out and captured.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_another_option_may_be_named():
    check_arguments(["stage.mrc.batch_size=${stage.at.batch_size}", "stage.at.batch_size=${half:8}"])
    check_arguments(["dataset.root=/data/a$b"])


# -- what goes on working -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--help"], "rift experiment=demo"),
        (["--hydra-help"], "Hydra"),
        (["--version"], "Hydra 1."),
        (["--cfg", "job", "-p", "seed", "seed=3"], "3"),
        (["-c", "job", "-p", "attack.epsilon"], "8/255"),
        (["--info", "searchpath"], "conf"),
        (["-sc", "install=bash"], "-sc query="),
    ],
)
def test_what_shows_something(capsys, arguments, words):
    assert command(*arguments) == 0
    assert words in capsys.readouterr().out


@pytest.mark.parametrize("flag", ["-m", "--multirun", "-r", "--run"])
def test_ways_to_run(flag):
    check_arguments([flag, "seed=0,1" if "m" in flag else "seed=0", "model=resnet18", "experiment=demo"])


@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_launchers(launcher, monkeypatch):
    monkeypatch.setattr("rift.command_line.has_slurm_extra", lambda: True)
    check_arguments(["-m", f"hydra/launcher={launcher}", "hydra.launcher.n_jobs=2"])
    check_arguments(["-m", f"hydra/launcher={launcher}", "+hydra.launcher.timeout_min=600", "seed=0,1"])
    check_arguments(["-m", f"hydra/launcher={launcher}", "hydra.launcher.devices=[0, 1,GPU-8a5b]"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--hepl"], "unrecognized arguments: --hepl"),
        (["--cfg", "everything"], "everything"),
        (["--cfg", "job", "-sc"], "--cfg and -sc cannot go together"),
        (["--resolve"], "rift --cfg job --resolve"),
        (["-sc", "install=tcsh"], "bash, zsh or fish"),
        (["-sc"], "bash, zsh or fish"),
        (["seed=" + "9" * 5000], "cannot be read"),
        (["seed=" + "[" * 5000], "brackets in brackets"),
        (["seed=" + "9" * (LONGEST + 1)], f"longer than {LONGEST} characters"),
        (["seed=\udcff"], "this terminal's encoding"),
        (["study=a\nb"], "control characters"),
        (["study=\x1b[31mred"], "control characters"),
        (["study=\u202eabc"], "control characters"),
    ],
)
def test_flags_and_texts_that_cannot_be(capsys, arguments, words):
    assert command(*arguments) == 2
    said = capsys.readouterr().err
    assert words in said and said.count("\n") == 1 and len(said) < LONGEST_SENTENCE + 100
    assert said.rstrip("\n").isprintable()


def test_a_sentence_moves_no_cursor():
    assert printable("a\x1b[2J\r\n\u202eb\udcff") == "a\\x1b[2J\\r\\n\\u202eb\\udcff"
    assert len(printable("x" * 10**6)) < LONGEST_SENTENCE + 10


@pytest.mark.slow
def test_as_a_process(trap):
    arguments = f"+hydra.callbacks.x={{_target_:builtins.open,file:{trap}/executed,mode:w}}"
    given = subprocess_arguments(*TINY, arguments, f"output={trap}/out")
    done = subprocess.run(**given, cwd=trap, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert not (trap / "executed").exists()


# -- numbers --------------------------------------------------------------------------------------------


def _numbers(schema: type = Config, prefix: str = ""):
    """Every option that is a number, or is written as one, with whether it is a list."""
    types = get_type_hints(schema)
    for entry in fields(schema):
        kind, name = types[entry.name], prefix + entry.name
        if is_dataclass(kind):
            yield from _numbers(kind, f"{name}.")
        elif any(word in str(kind) for word in ("float", "int")) or entry.name in ("epsilon", "step_size"):
            yield name, "list" in str(kind)


def test_the_numbers_of_the_schema_are_found():
    names = dict(_numbers())
    assert len(names) > 70 and set(names) <= set(option_names())
    assert names["stage.at.milestones"] and not names["stage.at.lr"] and "attack.epsilon" in names


@pytest.fixture(scope="module")
def tree():
    return composed(*TINY)


# Where -1 is a number like any other, and where a large one is: no limit would be anything but arbitrary.
NEGATIVE = {"dataset.mean"}
LARGE = {
    *("dataset.mean", "dataset.std", "stage.mrc.epsilon_w", "stage.mrc.lr", "stage.interpolate.tolerance"),
    *(
        f"stage.{stage}.{name}"
        for stage in ("at", "finetune")
        for name in ("lr", "weight_decay", "decay_rate")
    ),
    "runtime.save_seconds",
}


@pytest.mark.parametrize(
    ("value", "taken"),
    [
        *((value, set()) for value in ("nan", "inf", "-inf", "1e400", "-1e400")),
        ("-1", NEGATIVE),
        (str(10**30), LARGE),
    ],
)
def test_numbers_that_are_none_are_one_sentence(tree, value, taken):
    """Every option of the schema in turn."""
    accepted = set()
    for name, several in _numbers():
        typed = f"{name}=[{value}]" if several else f"{name}={value}"
        try:
            to_config(OmegaConf.merge(tree, OmegaConf.from_dotlist([typed])))
        except EXPECTED as error:
            sentence = explain(error)
            assert "\n" not in sentence and name.rpartition(".")[2] in sentence, sentence
        else:
            accepted.add(name)
    assert accepted == taken


METHODS = [
    ("trades", "beta"),
    ("trades", "start_std"),
    ("score", "clip"),
    ("awp", "gamma"),
    ("awp", "warmup"),
]
METHODS += [("n_fgsm", "step"), ("n_fgsm", "start_radius"), *(("aaer", f"lambda{i}") for i in (1, 2, 3))]


@pytest.mark.parametrize("value", ["nan", "inf", "-1"])
@pytest.mark.parametrize(("method", "option"), METHODS)
def test_numbers_of_a_method(method, option, value):
    config = MethodConfig(name=method, base="trades" if method == "awp" else None)
    config.form = "trades" if method == "score" else None
    setattr(config, option, float(value))
    with pytest.raises(UserError, match=rf"method\.{option}="):
        config.check("method")


def test_an_infinite_rate_typed_at_the_command_line(capsys, tmp_path):
    for value in (".nan", "nan", "inf", "-inf", "1e999", "1e400"):
        assert command("stage.finetune.lr=" + value, "logger=none", f"output={tmp_path}/out") == 2
        said = capsys.readouterr().err
        assert "stage.finetune.lr=" in said and said.count("\n") == 1


# -- what is imported -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["hydra_plugins/evil.py", "hydra_plugins/evil/__init__.py", "hydra_plugins.py"]
)
def test_plugins_in_the_working_folder_are_not_imported(tmp_path, name):
    """`python -m rift` looks for modules there, and Hydra imports every plugin that it finds."""
    plugin = tmp_path / name
    plugin.parent.mkdir(parents=True, exist_ok=True)
    plugin.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    done = subprocess.run(
        **subprocess_arguments("--cfg", "job"), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and f"{tmp_path}/hydra_plugins is code" in done.stderr
    assert not (tmp_path / "executed").exists()
