"""Joining the results of several machines, from sources that may be damaged or hostile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from report_samples import write
from tiny_jobs import restored_process, results_of, tiny_config

import rift
from rift.job import run_job
from rift.job_state import LOCK_FILE, job_state
from rift.resume_point import RESUME
from rift.store import MANIFEST, Store, lock_of
from rift.store_command import main

KEY = "0123456789abcdef"
COUNTS = ("copied", "already there", "different", "damaged", "unfinished")


@pytest.fixture(autouse=True)
def _process():
    with restored_process():
        yield


def result(output, *, weight=1.0, seconds=1.0, accuracy=0.5, finish=True, stage="at", **options):
    """A result as a stage leaves it."""
    folder = Store(output / "store").folder(stage, "tiny", options)
    with folder.locked():
        folder.begin()
        folder.load_resume_point()
        folder.add_row({"epoch": 1, "seconds": seconds})
        folder.save("weights", {"w": torch.full((4,), weight)})
        folder.save_resume_point({"w": torch.ones(2)}, {})
        folder.settle()
        if finish:
            folder.finish(
                {"best": {"accuracy": accuracy, "seconds": seconds}, "device": {"name": output.name}}
            )
    return folder.path


def job(output, *, finish=True, name=f"tiny-{KEY}", **changes):
    """A job's folder."""
    folder = output / "jobs" / "demo" / name
    if finish:
        write(output / "jobs" / "demo", name, **{"key": KEY, **changes})
    (folder / "figures").mkdir(parents=True)
    (folder / "wandb").mkdir()
    for file in ("config.json", "job.log", "figures/mrc.png", "wandb/run.wandb", "core.4711", LOCK_FILE):
        (folder / file).write_text(f"{file} of {output.name}")
    return folder


def contents(folder):
    """Every file below, without locks and links' targets."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def counts(capsys, kind="results"):
    """The last line's counts of one kind, in the order of `COUNTS`."""
    line = capsys.readouterr().out.splitlines()[-1]
    part = next(part for part in line.split("; ") if part.startswith(f"{kind}: "))
    numbers = dict(reversed(entry.split(" ", 1)) for entry in part.removeprefix(f"{kind}: ").split(", "))
    return [int(numbers[name]) for name in COUNTS]


def merge(*folders, options=()):
    return main(["merge", *options, *map(str, folders)])


def python(*arguments):
    root = Path(rift.__file__).parents[1]  # the package need not be installed
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)


@pytest.fixture
def a(tmp_path):
    return tmp_path / "a"


@pytest.fixture
def b(tmp_path):
    return tmp_path / "b"


# -- what is copied -----------------------------------------------------------------------------------


def test_a_new_folder_gets_everything_and_a_second_time_nothing(a, b, tmp_path, capsys):
    c = tmp_path / "c"
    result(b, lr=0.1), result(b, lr=0.2), result(b, stage="mrc"), result(b, lr=0.3, finish=False)
    result(c, lr=0.1), result(c, lr=0.4)
    assert merge(a, b, c) == 0
    assert counts(capsys) == [4, 1, 0, 0, 1]
    for folder in [*b.glob("store/*/tiny-*"), *c.glob("store/*/tiny-*")]:
        there = a / folder.relative_to(folder.parents[2])
        if (folder / MANIFEST).exists() and folder.parents[2] == b:
            assert contents(there) == contents(folder)
        assert there.exists() == (folder / MANIFEST).exists()
    for options in ({"lr": 0.1}, {"lr": 0.2}, {"lr": 0.4}):
        found = Store(a / "store").folder("at", "tiny", options)
        assert found.finished
        found.verify()
    before = contents(a)
    assert merge(a, b, c) == 0
    assert counts(capsys) == [0, 5, 0, 0, 1]
    assert contents(a) == before
    assert main(["verify", str(a)]) == 0
    assert capsys.readouterr().out == "results: 4 whole, 0 damaged, 0 unfinished\n"


def test_only_what_the_manifest_lists_is_copied(a, b):
    folder = result(b)
    (folder / "extra.py").write_text("print('hello')")
    (folder / "extra").mkdir()
    assert merge(a, b) == 0
    (there,) = a.glob("store/at/tiny-*")
    assert {path.name for path in there.iterdir()} == {
        "options.json", "result.json", "metrics.jsonl", "weights.safetensors", MANIFEST,
    }  # fmt: skip


def test_a_dry_run_says_the_same_and_writes_nothing(a, b, capsys):
    result(b, lr=0.1), result(b, lr=0.2), result(b, finish=False), job(b)
    broken = result(b, lr=0.3)
    (broken / "weights.safetensors").write_bytes(b"")
    assert merge(a, b, options=["--dry-run"]) == 1
    told = capsys.readouterr().out
    assert told.count("would be copied: ") == 3
    assert told.splitlines()[-1].startswith("dry run, nothing is written; results: 2 copied, 0 already there")
    assert not a.exists()
    assert merge(a, b) == 1
    assert counts(capsys) == [2, 0, 0, 1, 1]


def test_the_same_numbers_of_another_time_are_already_there(a, b, capsys):
    ours = result(a, seconds=1.0)
    theirs = result(b, seconds=2.0)
    assert (ours / "result.json").read_bytes() != (theirs / "result.json").read_bytes()
    assert merge(a, b) == 0
    assert counts(capsys) == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("other", [{"weight": 1.0000001}, {"accuracy": 0.51}])
def test_other_numbers_under_the_same_key_are_said_and_ours_stay(a, b, capsys, other):
    ours = result(a)
    theirs = result(b, **other)
    before = contents(a)
    assert merge(a, b) == 0
    output = capsys.readouterr().out.splitlines()
    assert output[0] == f"different: {ours} stays: {theirs} has the same key and other numbers."
    assert output[1].startswith("results: 0 copied, 0 already there, 1 different, 0 damaged, 0 unfinished; ")
    assert contents(a) == before


def test_a_job_here_goes_on_from_what_another_machine_has_made(a, b, caplog):
    def run(output, stages):
        with caplog.at_level("INFO", logger="rift"):
            caplog.clear()
            run_job(tiny_config(f"stage.run={stages}", "stage.at.epochs=1", output=output), {})
        return [record.message for record in caplog.records]

    assert not [message for message in run(b, "[at]") if "reused" in message]
    with restored_process():
        assert merge(a, b) == 0
    made = results_of(b)
    assert results_of(a) == made
    assert len([message for message in run(a, "[at,mrc]") if message.startswith("at: reused")]) == 1
    assert results_of(a).items() > made.items()
    assert [job_state(job).state for job in a.glob("jobs/demo/*")] == ["done", "done"]


# -- what is unfinished here --------------------------------------------------------------------------


def test_an_unfinished_result_gives_way_to_a_finished_one(a, b, capsys):
    ours = result(a, finish=False)
    theirs = result(b)
    assert (ours / RESUME).exists()
    assert merge(a, b) == 0
    assert counts(capsys) == [1, 0, 0, 0, 0]
    assert contents(ours) == contents(theirs)
    assert [path.name for path in ours.parent.iterdir() if path.suffix != ".lock"] == [ours.name]


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_what_a_job_is_working_on_is_left_alone(a, b, capsys, options):
    ours = result(a, finish=False)
    result(b)
    before = contents(a)
    with FileLock(lock_of(ours)):
        assert merge(a, b, options=options) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"in use: {ours} is being worked on here")
    assert "0 unfinished, 1 in use; jobs" in output
    assert contents(a) == before
    assert merge(a, b) == 0
    assert (ours / MANIFEST).exists()


# -- damage -------------------------------------------------------------------------------------------


def flipped(folder):
    path = folder / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def relisted(folder, change):
    """Changes the manifest's list of files."""
    manifest = json.loads((folder / MANIFEST).read_text())
    change(manifest["files"])
    (folder / MANIFEST).write_text(json.dumps(manifest))


def linked(folder):
    """The right bytes, but somewhere else."""
    path = folder / "weights.safetensors"
    path.rename(folder.parents[2] / "elsewhere")
    path.symlink_to(folder.parents[2] / "elsewhere")


def of_other_options(folder):
    text = json.dumps({"stage": "at", "lr": 0.2})
    (folder / "options.json").write_text(text)
    relisted(folder, lambda files: files.update({"options.json": hashlib.sha256(text.encode()).hexdigest()}))


def pipe(folder):
    (folder / "weights.safetensors").unlink()
    os.mkfifo(folder / "weights.safetensors")


def listing(name):
    """The manifest lists a file by a name that leads elsewhere, with its true digest."""

    def damage(folder):
        (folder.parents[2] / "secret").write_text("secret")
        sha = hashlib.sha256(b"secret").hexdigest()
        relisted(folder, lambda files: files.update({name: sha}))

    return damage


def moved(folder):
    (folder.parents[1] / "mrc").mkdir()
    folder.rename(folder.parents[1] / "mrc" / folder.name)


def replaced_by_link(folder):
    folder.rename(folder.parents[2] / "elsewhere")
    folder.symlink_to(folder.parents[2] / "elsewhere", target_is_directory=True)


DAMAGE = {
    "flipped bit": (flipped, "weights.safetensors is damaged"),
    "missing": (lambda folder: (folder / "weights.safetensors").unlink(), "weights.safetensors is missing"),
    "link": (linked, "weights.safetensors is a link"),
    "pipe": (pipe, "weights.safetensors is no plain file"),
    "folder": (lambda folder: (pipe(folder), (folder / MANIFEST).unlink(), (folder / MANIFEST).mkdir()),
               "manifest.json is no plain file"),
    "path up": (listing("../../../secret"), "lists '../../../secret'"),
    "absolute path": (listing("/etc/passwd"), "lists '/etc/passwd'"),
    "hidden": (listing(".bashrc"), "lists '.bashrc'"),
    "escape": (listing("\x1b[2J"), r"lists '\x1b[2J'"),
    "surrogate": (listing("\ud800"), r"lists '\ud800'"),
    "empty name": (listing(""), "lists ''"),
    "resume point": (listing(RESUME), f"lists '{RESUME}'"),
    "other options": (of_other_options, "options of another result"),
    "other stage": (moved, "options of another result"),
    "linked folder": (replaced_by_link, "is a link"),
    "half a manifest": (lambda folder: (folder / MANIFEST).write_text("{"), "not JSON"),
    "deep manifest": (lambda folder: (folder / MANIFEST).write_text("[" * 10**5), "not JSON"),
    "list": (lambda folder: (folder / MANIFEST).write_text("[]"), "no JSON object"),
    "no digests": (lambda folder: relisted(folder, lambda files: files.update({"x": 3})), "SHA-256"),
    "no result": (lambda folder: relisted(folder, lambda files: files.pop("result.json")), "result.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_named_and_the_rest_is_copied(a, b, capsys, name):
    damage, sentence = DAMAGE[name]
    damage(result(b, lr=0.1))
    result(b, lr=0.5)
    assert merge(a, b) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("damaged: ") and sentence in first
    assert last.startswith("results: 1 copied, 0 already there, 0 different, 1 damaged, 0 unfinished; ")
    assert sum(name == MANIFEST for *_, name in (path.parts for path in a.rglob("*"))) == 1
    assert not [path for path in a.rglob("*") if path.name in ("secret", "elsewhere") or path.is_symlink()]


@pytest.mark.parametrize(
    "name", ["flipped bit", "missing", "pipe", "path up", "other options", "other stage"]
)
def test_verify_names_what_is_damaged(a, capsys, name):
    damage, sentence = DAMAGE[name]
    result(a, lr=0.5), result(a, lr=0.6, finish=False)
    damage(result(a, lr=0.1))
    before = contents(a)
    assert main(["verify", str(a)]) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("damaged: ") and sentence in first
    assert last == "results: 1 whole, 1 damaged, 1 unfinished"
    assert contents(a) == before


def test_a_whole_one_is_taken_where_the_first_source_is_damaged(a, b, tmp_path, capsys):
    flipped(result(b))
    theirs = result(tmp_path / "c")
    assert merge(a, b, tmp_path / "c") == 1
    assert counts(capsys) == [1, 0, 0, 1, 0]
    (there,) = a.glob("store/at/tiny-*")
    assert contents(there) == contents(theirs)


def flipped_after_its_check(folder, monkeypatch):
    real = rift.foreign.check

    def check(finished, tell):
        real(finished, tell)
        if finished.folder == folder:
            flipped(folder)

    monkeypatch.setattr("rift.foreign.check", check)


def test_what_changes_between_check_and_copy_does_not_arrive(a, b, capsys, monkeypatch):
    flipped_after_its_check(result(b), monkeypatch)
    assert merge(a, b) == 1
    assert counts(capsys) == [0, 0, 0, 1, 0]
    assert contents(a) == {}


def test_our_own_damage_is_named_too(a, b, capsys):
    ours = result(a)
    result(b)
    (ours / MANIFEST).write_text('{"files": 3}')
    assert merge(a, b) == 1
    assert f"damaged: {ours / MANIFEST} is damaged" in capsys.readouterr().out


# -- jobs ---------------------------------------------------------------------------------------------


def test_a_job_is_copied_with_its_small_files_and_dates(a, b, capsys):
    theirs = job(b)
    (theirs / "figures" / "run.sh").write_text("no figure")
    os.utime(theirs / "summary.json", (1000, 1000))
    assert merge(a, b) == 0
    assert counts(capsys, "jobs") == [1, 0, 0, 0, 0]
    there = a / "jobs" / "demo" / theirs.name
    kept = {"summary.json", "config.json", "job.log", "figures/mrc.png"}
    assert contents(there) == {name: data for name, data in contents(theirs).items() if name in kept}
    assert (there / "summary.json").stat().st_mtime == 1000
    assert merge(a, b) == 0
    assert counts(capsys, "jobs") == [0, 1, 0, 0, 0]


def test_our_finished_job_stays_whatever_it_is_called(a, b, capsys):
    job(a, name=f"other-{KEY}", seed=1), job(b, seed=0)
    before = contents(a)
    assert merge(a, b) == 0
    assert counts(capsys, "jobs") == [0, 1, 0, 0, 0]
    assert contents(a) == before


def test_our_unfinished_job_gives_way_but_for_its_wandb_files(a, b, capsys):
    ours, theirs = job(a, finish=False), job(b)
    with FileLock(ours / LOCK_FILE):
        assert merge(a, b) == 0
    assert "1 in use" in capsys.readouterr().out
    assert not (ours / "summary.json").exists()
    assert merge(a, b) == 0
    assert counts(capsys, "jobs") == [1, 0, 0, 0, 0]
    assert (ours / "job.log").read_bytes() == (theirs / "job.log").read_bytes()
    assert (ours / "wandb" / "run.wandb").read_text() == "wandb/run.wandb of a"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda folder: (folder / "summary.json").write_text("{"), "not JSON"),
        (lambda folder: (folder / "summary.json").write_text("{}"), "format None"),
        (lambda folder: folder.rename(folder.with_name("tiny-fedcba9876543210")), "another job"),
        (lambda folder: folder.rename(folder.with_name("tiny")), "another job"),
        (lambda folder: (write(folder.parent, "tiny-", key=""), shutil.rmtree(folder)), "another job"),
        (lambda folder: ((folder / "job.log").unlink(), (folder / "job.log").symlink_to("/proc")), "link"),
        (lambda folder: os.mkfifo(folder / "figures" / "x.png"), "no plain file"),
        (lambda folder: (shutil.rmtree(folder / "figures"), (folder / "figures").symlink_to("/")), "link"),
        (lambda folder: folder.parent.rename(folder.parents[1] / "\x1b[2J"), r"'\x1b[2J'"),
    ],
)  # fmt: skip
def test_a_damaged_job_is_named(a, b, capsys, damage, sentence):
    damage(job(b))
    assert merge(a, b) == 1
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("damaged: ") and sentence in first and "\x1b" not in first
    assert "jobs: 0 copied, 0 already there, 0 different, 1 damaged" in last
    assert not a.exists()


def test_an_unfinished_job_is_counted(a, b, capsys):
    job(b, finish=False)
    assert merge(a, b) == 0
    assert counts(capsys, "jobs") == [0, 0, 0, 0, 1]


# -- killed, or without room --------------------------------------------------------------------------


def killed(where, a, b):
    """The merge in a process of its own, which kills itself somewhere."""
    child = os.fork()
    if child == 0:
        kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)  # noqa: E731
        rename = Path.rename
        if where == "copying":  # one file is written, the next is not there
            os.fsync = kill
        elif where == "swapping":  # ours is aside, theirs not yet in its place
            Path.rename = lambda self, to: kill() if self.suffix == ".merging" else rename(self, to)
        elif where == "dropping":  # theirs is in its place, ours still aside
            rift.transfer.sync_folder = lambda path: kill() if path.name == "at" else None
        try:
            merge(a, b)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("where", ["copying", "swapping", "dropping"])
def test_a_killed_merge_leaves_nothing_half_made_and_goes_on(a, b, where):
    ours, theirs = result(a, finish=False), result(b)
    before = contents(ours)
    assert killed(where, a, b) == -signal.SIGKILL
    left = {path.suffix for path in ours.parent.iterdir()} - {".lock", ""}
    assert (
        left
        == {"copying": {".merging"}, "swapping": {".merging", ".replaced"}, "dropping": {".replaced"}}[where]
    )
    assert contents(ours) == {"copying": before, "swapping": {}, "dropping": contents(theirs)}[where]
    assert merge(a, b) == 0
    assert contents(ours) == contents(theirs)
    assert [path.name for path in ours.parent.iterdir() if path.suffix != ".lock"] == [ours.name]


def test_what_was_set_aside_comes_back_if_nothing_whole_follows(a, b, monkeypatch):
    ours, theirs = result(a, finish=False), result(b)
    before = contents(ours)
    assert killed("swapping", a, b) == -signal.SIGKILL
    assert not ours.exists()
    flipped_after_its_check(theirs, monkeypatch)
    assert merge(a, b) == 1
    assert contents(ours) == before


FULL = """
import resource, sys
from rift.store_command import main
resource.setrlimit(resource.RLIMIT_FSIZE, (64, resource.RLIM_INFINITY))
sys.exit(main(sys.argv[1:]))
"""


def test_a_write_that_fails_is_one_sentence_and_leaves_nothing(a, b):
    job(b)
    done = python("-c", FULL, "merge", a, b)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert contents(a) == {} and not list(a.glob("jobs/demo/*"))
    assert merge(a, b) == 0


def test_room_is_looked_for_before_anything_is_written(a, b, capsys, monkeypatch):
    result(b)
    full = shutil.disk_usage(b)._replace(free=2**20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    assert merge(a, b) == 2
    error = capsys.readouterr().err
    assert (
        error == f"error: {a} has room for 1 MiB and 64 are needed: make room and give the command again.\n"
    )
    assert not a.exists()


# -- the command --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["merge", "a", "nowhere"], "nowhere does not exist"),
        (["merge", "a", "b/store"], "store is no output folder"),
        (["merge", "b/store", "b"], "store is no output folder"),
        (["merge", "b", "b/../b"], "are the same folder"),
        (["merge", "a", "b", "link"], "are the same folder"),
        (["merge", "file", "b"], "file does not exist or is no folder"),
        (["verify", "nowhere"], "nowhere does not exist"),
        (["verify", "b/store"], "store is no output folder"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, b, capsys, monkeypatch, arguments, sentence):
    result(b)
    (tmp_path / "link").symlink_to(b)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ") and sentence in captured.err
    assert captured.err.count("\n") == 1


def test_the_module_is_the_command(a, b):
    result(b)
    done = python("-m", "rift.store", "merge", a, b)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("results: 1 copied, ")
